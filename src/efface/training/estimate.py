"""Will a training run fit into memory? An estimate before the first step, in GiB, from what the run is made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from efface.model.chunked import PIECE
from efface.model.copies import eval_mode
from efface.training.passes import policy_forward

if TYPE_CHECKING:
    from efface.training.trainer import PairTrainer

GIB = 2**30
# States that an optimizer keeps for each trained parameter, by the beginning of its name; others are taken for Adam's.
STATES = {"sgd": 0, "adafactor": 0, "rmsprop": 1, "adagrad": 1, "lion": 1}
PIECES = 5  # tensors of the size of a piece of logits that live at once, see chunked.py


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
    """Of the device's memory now, with the model loaded."""

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.reference + self.activations

    @property
    def fits(self) -> bool:
        loaded = self.parameters + self.reference
        return self.total - loaded <= self.available

    def __str__(self) -> str:
        parts = ("parameters", "gradients", "optimizer", "reference", "activations")
        sizes = ", ".join(f"{name} {getattr(self, name) / GIB:.2f}" for name in parts)
        verdict = "fits" if self.fits else "does not fit: lower --per_device_train_batch_size or use --lora_r"
        return (
            f"memory, GiB: {sizes}; in all {self.total / GIB:.2f}, {self.available / GIB:.2f} free with the model "
            f"loaded: {verdict}. Cache on disk: {self.cache / GIB:.3f}"
        )


def estimate(trainer: "PairTrainer") -> Estimate:
    """Estimate the memory of `trainer`'s run. Activations are counted in one forward of a small batch, and scaled."""
    model: Any = trainer.model
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    optimizer = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    states = next((n for name, n in STATES.items() if optimizer.startswith(name)), 2)
    frozen = 0
    if trainer.reference is not None:
        frozen = 0 if trainer.reference.adapter_off else _bytes(trainer.reference.model)
    elif trainer.reference_head is not None:  # its states come from the cache
        copied = trainer.reference_head.weight.data_ptr() != trainer.head.weight.data_ptr()
        frozen = trainer.reference_head.weight.nbytes if copied else 0
    dataset: Any = trainer.train_dataset
    return Estimate(
        parameters=_bytes(model),
        gradients=trained,
        optimizer=states * trained,
        reference=frozen,
        activations=_activations(trainer),
        cache=dataset.states.nbytes if dataset.states is not None else 0,
        available=_available(trainer.args.device),
    )


def _activations(trainer: "PairTrainer") -> int:
    tokens = largest_batch(trainer)
    pieces = PIECES * 4 * min(PIECE, tokens * len(trainer.head.weight))
    return int(tokens * kept_per_token(trainer)) + pieces


def largest_batch(trainer: "PairTrainer") -> int:
    """Tokens, padding included, of the largest micro-batch that can come: the longest pairs, all as wide."""
    args, dataset = trainer.args, trainer.train_dataset
    prompt, *sides = dataset.pairs.lengths.T.astype(np.int64)  # type: ignore[union-attr]
    tokens = int(2 * (prompt + np.maximum(*sides)).max() * args.train_batch_size)
    if args.max_batch_tokens is not None:
        tokens = min(tokens, args.max_batch_tokens)
    return tokens + trainer.passage_stream.per_batch * args.retain_text_tokens


def kept_per_token(trainer: "PairTrainer") -> float:
    """Bytes that autograd keeps of the blocks for each token (of the plain layout), counted on two pairs."""
    model: Any = trainer.model
    dataset: Any = trainer.train_dataset
    batch: Any = trainer._prepare_inputs(trainer.data_collator([dataset[i] for i in range(min(len(dataset), 2))]))
    capture = batch["continuation_mask"].clone()
    capture[2 * batch["n_pairs"] :] = False
    with eval_mode(model), _saved(model) as sizes:
        policy_forward(model, batch, trainer.project(batch), trainer.layers, capture, trainer.layout)
    kept = sum(sizes.values()) / batch["input_ids"].numel()
    if trainer.args.gradient_checkpointing:  # the inputs of all blocks, and the inside of one
        config = model.config.get_text_config(decoder=True)
        kept = kept / config.num_hidden_layers + config.num_hidden_layers * config.hidden_size * model.dtype.itemsize
    return kept


@contextmanager
def _saved(model: nn.Module) -> Iterator[dict[int, int]]:
    """Storage -> bytes of what autograd keeps for the backward pass, without the model's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def _bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def _available(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return int(psutil.virtual_memory().available)
