"""Will a training run fit into memory? An estimate before the first step, in GiB, from what the run is made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from efface.data.batch import PairBatch
from efface.data.dataset import PassageStream
from efface.model.blocks import decoder_blocks
from efface.model.chunked import PIECE
from efface.model.copies import eval_mode
from efface.model.devices import free_memory
from efface.model.forward import Head
from efface.training.config import PairConfig
from efface.training.neurons import Neurons
from efface.training.passes import of_pairs, policy_forward
from efface.training.perturbations import block_maps
from efface.training.perturbed import Perturbed
from efface.training.reference import Reference

GIB = 2**30
# States that an optimizer keeps for each trained parameter, by the beginning of its name; others are taken for Adam's.
STATES = {"sgd": 0, "normalized_sgd": 0, "adafactor": 0, "rmsprop": 1, "adagrad": 1, "lion": 1}
PIECES = 5  # tensors of the size of a piece of logits that live at once, see chunked.py


class Run(Protocol):
    """What of a trainer says how much memory it needs."""

    model: Any
    args: PairConfig
    train_dataset: Any
    head: Head
    reference: Reference
    layers: list[int]
    layout: str
    passage_stream: PassageStream
    perturbed: Perturbed
    neurons: Neurons | None
    parts: int
    """Over how many processes the weights are cut; 1: each has all of them."""

    def example(self, n: int) -> PairBatch:
        """The first `n` pairs as a batch."""

    def project(self, batch: PairBatch) -> Tensor:
        """(rows, T) bool: the positions whose logits the loss asks for."""


@dataclass(frozen=True)
class Estimate:
    """Bytes, by what they are for."""

    parameters: int
    gradients: int
    optimizer: int
    reference: int
    """A frozen copy of the model, or of its output head, if there is one."""
    activations: int
    """Of the micro-batch with the most tokens, and the pieces of its logits."""
    cache: int
    """The reference's states, on disk."""
    available: int
    """Of the device's memory, with the model loaded, as far as a process keeps it."""
    perturbed: int = 0
    """Where gradients are taken, and what leads there (`withstand`)."""

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.reference + self.activations + self.perturbed

    @property
    def fits(self) -> bool:
        loaded = self.parameters + self.reference
        return self.total - loaded <= self.available

    def __str__(self) -> str:
        parts = (
            "parameters",
            "gradients",
            "optimizer",
            "reference",
            "activations",
            *["perturbed"] * bool(self.perturbed),
        )
        sizes = ", ".join(f"{name} {getattr(self, name) / GIB:.2f}" for name in parts)
        verdict = "fits" if self.fits else "does not fit: lower per_device_train_batch_size or set lora_r"
        return (
            f"memory, GiB: {sizes}; in all {self.total / GIB:.2f}, {self.available / GIB:.2f} free with the model "
            f"loaded: {verdict}. Cache on disk: {self.cache / GIB:.3f}"
        )


def estimate(run: Run, kept: float | None = None) -> Estimate:
    """Estimate the memory of a run.

    Args:
        kept: bytes that autograd keeps of the blocks for each token (of a model that is not in memory, say); None
            counts them in one forward of a small batch.
    """
    dataset = run.train_dataset
    loaded, held = _weights(run, trained=False)
    gradients, kept_gradients = _weights(run, trained=True)
    optimizer = str(getattr(run.args.optim, "value", run.args.optim))
    states = next((n for name, n in STATES.items() if optimizer.startswith(name)), 2)
    return Estimate(
        parameters=held + (0 if run.neurons is None else run.neurons.nbytes),
        gradients=kept_gradients,
        optimizer=states * gradients // run.parts,
        reference=run.reference.nbytes,
        activations=_activations(run, kept_per_token(run) if kept is None else kept),
        cache=dataset.states.nbytes if dataset.states is not None else 0,
        available=free_memory(run.args.device) + loaded - held,
        perturbed=_perturbed(run),
    )


def _weights(run: Run, *, trained: bool) -> tuple[int, int]:
    """Bytes of the (trained) weights: of all, and of what a process holds of them at once.

    Where they are cut, that is its part, and whole what stands outside the blocks and two of the blocks: one at work,
    the next on its way.
    """
    model: Any = run.model
    sizes = {name: each.nbytes for name, each in model.named_parameters() if each.requires_grad or not trained}
    whole = sum(sizes.values())
    if run.parts == 1:
        return whole, whole
    blocks = decoder_blocks(model)
    within = sum(each.nbytes for each in blocks.parameters() if each.requires_grad or not trained)
    return whole, whole // run.parts + (whole - within) + 2 * within // len(blocks)


def _perturbed(run: Run) -> int:
    """Of all kinds together: the largest P(w), which they share, and what each keeps beside it."""
    if not run.perturbed.kinds:
        return 0
    trained = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    sizes = [
        kind.nbytes(trained, lambda: [module.weight for _, module in block_maps(run.model)])
        for kind in run.perturbed.kinds
    ]
    return max(shared for shared, _ in sizes) + sum(beside for _, beside in sizes)


def _activations(run: Run, kept: float) -> int:
    tokens = largest_batch(run)
    pieces = PIECES * 4 * min(PIECE, tokens * len(run.head.weight))
    return int(tokens * kept) + pieces


def largest_batch(run: Run) -> int:
    """Tokens, padding included, of the largest micro-batch that can come: the longest pairs, all as wide."""
    args, dataset = run.args, run.train_dataset
    prompt, *sides = dataset.pairs.lengths.T.astype(np.int64)
    tokens = int(2 * (prompt + np.maximum(*sides)).max() * args.train_batch_size)
    if args.max_batch_tokens is not None:
        tokens = min(tokens, args.max_batch_tokens)
    return tokens + run.passage_stream.per_batch * args.retain_text_tokens


def kept_per_token(run: Run) -> float:
    """Bytes that autograd keeps of the blocks for each token (of the plain layout), counted on two pairs."""
    model, batch = run.model, run.example(2)
    with eval_mode(model), saved_for_backward(model) as sizes:
        policy_forward(model, batch, run.project(batch), run.layers, of_pairs(batch), run.layout)
    kept = sum(sizes.values()) / batch["input_ids"].numel()
    return checkpointed(kept, model) if run.args.gradient_checkpointing else kept


def checkpointed(kept: float, model: Any) -> float:
    """What is left of the bytes a token with gradient checkpointing: the inputs of all blocks, the inside of one."""
    config = model.config.get_text_config(decoder=True)
    return kept / config.num_hidden_layers + config.num_hidden_layers * config.hidden_size * model.dtype.itemsize


@contextmanager
def saved_for_backward(model: nn.Module) -> Iterator[dict[int, int]]:
    """Storage -> bytes of what autograd keeps for the backward pass, without the model's own tensors."""
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:  # the storage itself: tensors of the meta device have no address
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
