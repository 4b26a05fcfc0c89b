"""From which depth on do the hidden states carry an edit? One model goes on from what the other has computed so far.

    enough    the base goes on from the states of the edited model after block l      is the effect there already?
    needed    the edited model goes on from the states of the base after block l      does what is above bring it back?

Both read the same text, and the states of all its tokens are put in. An edit that is only in the last blocks shows
nothing below them; one that is deep is whole at half of the depth, and what is above it cannot bring it back.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from efface.analysis.toxic_mass import Reading
from efface.files.jsonl import Row
from efface.model.blocks import accepted, capture_residuals, decoder_blocks
from efface.model.copies import eval_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextlib.contextmanager
def going_on_from(model: "PreTrainedModel", source: "PreTrainedModel", layer: int) -> Iterator[None]:
    """Within, every forward of `model` goes on, after block `layer`, from the states that `source` has there."""
    found: dict[int, Tensor] = {}

    def read(module: nn.Module, args: Any, given: dict[str, Any]) -> None:
        if given.get("input_ids") is None:
            return  # not a text: `Head` asks the model's own code what it does after the output embedding
        body = source.base_model
        with torch.no_grad(), capture_residuals(source, [layer]) as residuals:
            body(**accepted(body, **given))
            found.update(residuals)

    def put(module: nn.Module, args: Any, output: Any) -> Any:
        states = found.pop(layer)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handles = [
        model.register_forward_pre_hook(read, with_kwargs=True),
        decoder_blocks(model)[layer].register_forward_hook(put),
    ]
    try:
        with eval_mode(source):
            yield
    finally:
        for handle in handles:
            handle.remove()


def patch_states(
    edited: "PreTrainedModel",
    base: "PreTrainedModel",
    layers: Sequence[int],
    read: Callable[["PreTrainedModel"], Reading],
) -> Row:
    """What part of the fall of the toxic mass the states carry, after each of `layers`, as it is written to JSON.

    Args:
        read: a model -> what it thinks of the pairs.

    Returns:
        layer (a string) -> the readings `base_goes_on` and `edited_goes_on`, and `enough` and `needed`, the parts of
        the fall that are there in the first and gone in the second; null if the toxic mass does not fall.
    """
    start, end = read(base).toxic_mass, read(edited).toxic_mass
    fall = start - end
    found: Row = {}
    for layer in layers:
        with going_on_from(base, edited, layer):
            forward = read(base)
        with going_on_from(edited, base, layer):
            back = read(edited)
        found[str(layer)] = {
            "base_goes_on": forward.to_dict(),
            "edited_goes_on": back.to_dict(),
            "enough": (start - forward.toxic_mass) / fall if fall > 0 else None,
            "needed": (back.toxic_mass - end) / fall if fall > 0 else None,
        }
    return found
