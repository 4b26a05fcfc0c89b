"""Does it matter how some neurons fire? One model with the activations that they have in the other, and the other way.

    enough    the base, these neurons firing as in the edited model     how much of the effect is there?
    needed    the edited model, these firing as in the base             how much of it is gone?

An activation is what the output projection of the MLP reads, at every token, so that a group of neurons is patched in
all blocks at once; values, attention and all else stay the model's own. It is the test of `neurons.py`, whose shares
are sums that nobody intervened on (Yang et al. 2025, arXiv 2411.06424, patch groups of neurons in this way). Beside
each group stand as many neurons drawn at random from each block.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from efface.analysis.toxic_mass import Reading
from efface.files.jsonl import Row
from efface.model.blocks import accepted, decoder_blocks
from efface.model.copies import eval_mode
from efface.model.projections import mlp_output_projection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Read = Callable[["PreTrainedModel"], Reading]


@contextlib.contextmanager
def firing_as(model: "PreTrainedModel", source: "PreTrainedModel", chosen: np.ndarray) -> Iterator[None]:
    """Within, in every forward of `model` the chosen neurons fire as those of `source` do on the same text.

    Args:
        chosen: (layers, d_ff) bool.

    Raises:
        UserError: if a block has no MLP with one known output projection (a mixture of experts).
    """
    ours, theirs = ([mlp_output_projection(block) for block in decoder_blocks(one)] for one in (model, source))
    masks = [torch.as_tensor(row, device=model.device) for row in chosen]
    found: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])

    def read(module: nn.Module, args: Any, given: dict[str, Any]) -> None:
        if given.get("input_ids") is None:
            return  # not a text: `Head` asks the model's own code what it does after the output embedding
        found.clear()
        body = source.base_model
        reading = [projection.register_forward_pre_hook(keep) for projection in theirs]
        try:
            with torch.no_grad():
                body(**accepted(body, **given))
        finally:
            for handle in reading:
                handle.remove()

    def put(number: int) -> Callable[..., tuple[Tensor, ...]]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (torch.where(masks[number], found[number].to(args[0]), args[0]), *args[1:])

        return hook

    handles = [model.register_forward_pre_hook(read, with_kwargs=True)]
    handles += [projection.register_forward_pre_hook(put(number)) for number, projection in enumerate(ours)]
    try:
        with eval_mode(source):
            yield
    finally:
        for handle in handles:
            handle.remove()


def patch_neurons(
    edited: "PreTrainedModel",
    base: "PreTrainedModel",
    groups: Mapping[str, np.ndarray],
    read: Read,
    *,
    seed: int = 0,
) -> Row:
    """What part of the fall of the toxic mass each group of neurons carries, as it is written to JSON.

    Args:
        groups: name -> (layers, d_ff) bool.
        read: a model -> what it thinks of the pairs.
        seed: of the random neurons.

    Returns:
        name -> `neurons`, how many they are; `enough` and `needed`, parts of the fall; `random`, the same two of as
        many random neurons. Null if the toxic mass does not fall.
    """
    start, end = read(base).toxic_mass, read(edited).toxic_mass
    draw = np.random.default_rng(seed)

    def parts(chosen: np.ndarray) -> Row:
        with firing_as(base, edited, chosen):
            forward = read(base).toxic_mass
        with firing_as(edited, base, chosen):
            back = read(edited).toxic_mass
        fall = start - end
        return {
            "enough": (start - forward) / fall if fall > 0 else None,
            "needed": (back - end) / fall if fall > 0 else None,
        }

    return {
        name: {"neurons": int(chosen.sum()), **parts(chosen), "random": parts(_as_many(chosen, draw))}
        for name, chosen in groups.items()
    }


def _as_many(chosen: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """As many neurons of each block, whichever."""
    return np.stack([draw.permutation(row) for row in chosen])
