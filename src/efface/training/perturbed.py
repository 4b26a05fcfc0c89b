"""Where is a step's gradient taken? At P(w), the weights as an adversary would leave them; it is applied at w.

    g = gradient of the method's whole loss at P(w),    w <- optimizer(w, g)

and nowhere else is a gradient taken. P is drawn anew for each optimizer step from the perturbations of `--withstand`
(`withstand.py`), by seed and step alone: alike on every process and after a resume. While the gradient is computed the
parameters point at other memory; the weights themselves are never written, and so stand where they stood afterwards,
to the bit, also after an error.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import Trainer

from efface.data.batch import PairBatch
from efface.errors import UserError
from efface.model.blocks import unwrap
from efface.model.devices import keep_random_state
from efface.training.config import PairConfig
from efface.training.step import Counts

STATE = "withstand.safetensors"
KINDS = "withstand"
"""Under which the file's metadata name the perturbations."""
PIECE = 2**20
"""Weights that are moved at once: what is in the cache need not come from memory twice."""


Maps = Callable[[], Sequence[Tensor]]
"""The weights of the blocks' linear maps, for kinds that move these: asked for, since packed ones cannot be moved."""


class Perturbation(Protocol):
    """One kind, with its values."""

    keeps: ClassVar[bool]
    """It has something to go on with: `kept`, which a checkpoint holds."""
    wants_start: ClassVar[bool]
    """It looks at the weights that training began with."""
    each_micro_batch: ClassVar[bool]
    """Of each micro-batch by itself; else of the whole optimizer step."""
    kept: dict[str, Tensor]

    def move_(self, place: "Place") -> None:
        """Write P(w) of what it moves, with `place.put`."""

    def nbytes(self, trained: Sequence[Tensor], maps: Maps) -> tuple[int, int]:
        """Of memory: for P(w) (shared by all kinds), and beside it; from the trained weights and the blocks' maps."""


class Place:
    """An optimizer step as a perturbation sees it: where w is, and where P(w) is to be written.

    Args:
        model: the trained model, unwrapped and in training mode.
        batches: all micro-batches of the step on this process.
        counts: of the whole step on all processes.
        buffers: memory to write to, kept from step to step.
        start: name -> the trained weights before training, if a kind wants them.
        loss: the method's whole loss on the micro-batch that is about to be computed, from which nothing is recorded.
        trainer: for its head and what its processes share.
    """

    def __init__(
        self,
        model: nn.Module,
        step: int,
        generator: torch.Generator,
        batches: Sequence[PairBatch],
        counts: Counts,
        buffers: dict[str, Tensor],
        start: dict[str, Tensor],
        loss: Callable[[], Tensor],
        trainer: Any,
    ):
        self.model, self.step, self.generator = model, step, generator
        self.batches, self.counts, self.start, self.loss = batches, counts, start, loss
        self.head, self.accelerator = trainer.head, trainer.accelerator
        self.parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        self.trained = {name: each for name, each in self.parameters.items() if each.requires_grad}
        self._buffers = buffers
        self._moved: dict[str, Tensor] = {}
        self._here: dict[str, Tensor] | None = None

    def put(self, name: str) -> Tensor:
        """Where P(w) of a parameter is to be written, of its shape and dtype; what is in it means nothing."""
        found = self._buffers.get(name)
        if found is None or found.shape != self.parameters[name].shape:
            found = self._buffers[name] = torch.empty_like(self.parameters[name].data)
        self._moved[name] = found
        return found

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Within, the model has the weights P(w)."""
        assert self._here is None
        self._here = {name: self.parameters[name].data for name in self._moved}
        try:
            self._point(self._moved)
            yield
        finally:
            self._point(self._here)
            self._here = None

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Within, the model has its own weights after all: a reference that is the model without its adapter."""
        here = self._here or {}
        there = {name: self.parameters[name].data for name in here}
        self._point(here)
        try:
            yield
        finally:
            self._point(there)

    def _point(self, at: dict[str, Tensor]) -> None:
        for name, tensor in at.items():
            self.parameters[name].data = tensor

    def gradients(self, losses: Iterable[Tensor]) -> dict[str, Tensor]:
        """name -> gradient at P(w), as far as it is written, of the sum of some losses; of the trained weights that
        have one. Gradients that they hold already are left alone.

        Args:
            losses: computed one after the other, each let go before the next.
        """
        held = {name: parameter.grad for name, parameter in self.trained.items()}
        try:
            for parameter in self.trained.values():
                parameter.grad = None
            with self.standing():
                for loss in losses:
                    loss.backward()
                    del loss
            return {name: each.grad for name, each in self.trained.items() if each.grad is not None}
        finally:
            for name, gradient in held.items():
                self.trained[name].grad = gradient

    def summed(self, gradients: dict[str, Tensor], like: dict[str, Any]) -> dict[str, Tensor]:
        """The sum of some gradients over all processes; one that a process has not is zero there.

        Args:
            like: name -> what a gradient is of, in the same order on every process.
        """
        if self.accelerator.num_processes == 1:
            return gradients
        whole = {name: gradients[name] if name in gradients else torch.zeros_like(each) for name, each in like.items()}
        return {name: self.accelerator.reduce(each, "sum") for name, each in whole.items()}


class Perturbed:
    """The perturbations of a run, what they keep, and the memory that they write to."""

    def __init__(self, kinds: Sequence[Perturbation], seed: int):
        self.kinds, self.seed = kinds, seed
        self.files = (STATE,) if any(kind.keeps for kind in kinds) else ()
        self._buffers: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}
        self.place: Place | None = None

    @classmethod
    def of(cls, args: PairConfig) -> "Perturbed":
        return cls(args.perturbations(), args.seed)

    @contextmanager
    def in_training(self, model: nn.Module) -> Iterator[None]:
        """Around a whole training, and so before the weights of a checkpoint are loaded, if they are."""
        for kind in self.kinds:
            kind.kept = {}
        if any(kind.wants_start for kind in self.kinds) and not self._start:
            named = unwrap(model).named_parameters()
            self._start = {name: each.detach().clone() for name, each in named if each.requires_grad}
        try:
            yield
        finally:
            self.place = None
            self._buffers.clear()

    def lifted(self) -> AbstractContextManager[None]:
        """As `Place.lifted`, wherever the weights stand."""
        return nullcontext() if self.place is None else self.place.lifted()

    def drawn(self, step: int) -> tuple[Perturbation, torch.Generator]:
        """The perturbation of an optimizer step (from 0), and what else it draws from."""
        number = np.random.SeedSequence((self.seed, step, 1)).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(number))
        return self.kinds[int(torch.randint(len(self.kinds), (), generator=generator))], generator

    def at(self, step: int, model: Any, tell: Callable[[], dict[str, Any]]) -> Place:
        """Where the gradient of a micro-batch is taken: the same place for all of an optimizer step.

        Args:
            tell: what else `Place` takes; asked if it is a new one.
        """
        kind, generator = self.drawn(step)
        if self.place is None or self.place.step != step or kind.each_micro_batch:
            devices_of = {name: each.device for name, each in model.named_parameters()}
            start = {name: tensor.to(devices_of[name]) for name, tensor in self._start.items()}
            self.place = Place(model, step, generator, buffers=self._buffers, start=start, **tell())
            with keep_random_state():  # dropout draws as it would in a plain step
                kind.move_(self.place)
        return self.place

    @property
    def described(self) -> str:
        """The perturbations with their values."""
        kinds: Sequence[Any] = self.kinds
        return ", ".join(
            f"{type(kind).__name__} {'/'.join(str(getattr(kind, one.name)) for one in fields(kind) if one.init)}"
            for kind in kinds
        )

    def save(self, file: Path) -> None:
        """What the perturbations keep, as safetensors."""
        kept = {f"{i}/{name}": each for i, kind in enumerate(self.kinds) for name, each in kind.kept.items()}
        # save_file would make it readable for its owner alone.
        file.write_bytes(save({name: kept[name].contiguous() for name in kept}, {KINDS: self.described}))

    def load(self, file: Path, device: torch.device) -> None:
        """Go on from a file that `save` wrote.

        Raises:
            UserError: if there is none, or it is of other perturbations.
        """
        if not file.exists():
            raise UserError(
                f"{file.parent} holds no {STATE}: it is of a run without such a withstand, or was saved with "
                "save_only_model. Resume with the settings of the run, or train its model into a new directory."
            )
        with safe_open(file, "pt") as opened:
            theirs = (opened.metadata() or {}).get(KINDS)
        if theirs != self.described:
            raise UserError(
                f"{file} is of a run that was to withstand {theirs}, and this one {self.described}. Resume with the "
                "settings of the run, or train its model into a new directory."
            )
        tensors = load_file(file)
        for i, kind in enumerate(self.kinds):
            mine = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{i}/")}
            kind.kept = {name.partition("/")[2]: tensor.to(device) for name, tensor in mine.items()}


class TakesPerturbedSteps(Trainer):
    """What a `PairTrainer` does where it is to withstand something; a class, since it overrides `Trainer`."""

    args: PairConfig
    perturbed: Perturbed
    _micro_batches: Sequence[PairBatch] = ()
    _looking = False
    """The loss is computed to find P(w): nothing of it counts."""

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        if not self.perturbed.kinds:
            return super().training_step(model, inputs, num_items_in_batch)
        inner = unwrap(model).train()
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "train", None)):  # it may move the weights, and so not while they are away
            optimizer.train()

        def loss() -> Tensor:  # around DDP: every process looks by itself
            self._looking = True
            try:
                batch: Any = self._prepare_inputs(inputs)
                found: Any = self.compute_loss(inner, batch, num_items_in_batch=num_items_in_batch)
                return found  # a tuple only on request
            finally:
                self._looking = False

        def tell() -> dict[str, Any]:
            given: Any = self._micro_batches
            batches = [self._prepare_inputs(batch) for batch in given]
            counts = Counts(*num_items_in_batch.to(self.args.device))
            return {"batches": batches, "counts": counts, "loss": loss, "trainer": self}

        with self.perturbed.at(self.state.global_step, inner, tell).standing():
            return super().training_step(model, inputs, num_items_in_batch)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.perturbed.files and self.args.should_save:
            self.perturbed.save(Path(output_dir) / STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.perturbed.files:
            self.perturbed.load(Path(checkpoint) / STATE, self.args.device)
