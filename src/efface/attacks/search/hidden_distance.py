"""How far apart are the states of an edited model and of its base at forced tokens, and after which blocks most?"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface.attacks.search.slot import Slot
from efface.model.blocks import decoder_blocks
from efface.model.forward import forward
from efface.model.layout import plain_layout
from efface.model.padding import pad_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

States = Mapping[int, Tensor]
"""layer -> (T, d)"""
MOST_LAYERS = 4  # in which hidden states are compared
NEGLIGIBLE = 1e-6  # of a squared norm: rounding


def hidden_distance(edited: States, base: States) -> Tensor:
    """Squared distance of the states as a part of the base's squared norm, a mean over layers; a scalar.

    Args:
        edited, base: layer -> (T, d) at the same tokens.
    """
    parts = [
        (edited[layer].float() - base[layer].float()).square().sum() / base[layer].float().square().sum()
        for layer in base
    ]
    return torch.stack(parts).mean()


@torch.no_grad()
def states_at_targets(
    model: "PreTrainedModel", starts: Sequence[list[int]], slots: Sequence[Slot], layers: Sequence[int], pad: int
) -> list[dict[int, Tensor]]:
    """For each slot layer -> (T, d): what `model` holds at the slot's target after a start of its own."""
    found = []
    for start, slot in zip(starts, slots, strict=True):
        input_ids, mask = pad_batch([[*start, *slot.target]], pad, model.device, left=False)  # (1, T)
        at = torch.zeros_like(mask, dtype=torch.bool)
        at[0, len(start) :] = True
        states = forward(model, plain_layout(input_ids, mask), torch.zeros_like(at), layers, at).residuals
        found.append(dict(states))
    return found


def edited_layers(
    model: "PreTrainedModel", base: "PreTrainedModel", starts: Sequence[list[int]], slots: Sequence[Slot], pad: int
) -> list[int]:
    """The blocks after which the edit shows most: where the states of the two models at the targets lie further apart
    than half of the farthest, at most MOST_LAYERS; none if they are the same everywhere."""
    layers = range(len(decoder_blocks(model)))
    pairs = zip(*(states_at_targets(one, starts, slots, layers, pad) for one in (model, base)), strict=True)
    parts = [
        [hidden_distance({i: own[i]}, {i: other[i].to(own[i].device)}).item() for i in layers] for own, other in pairs
    ]
    far = [sum(values) / len(parts) for values in zip(*parts, strict=True)]
    order = sorted(layers, key=lambda layer: -far[layer])[:MOST_LAYERS]
    return sorted(layer for layer in order if far[layer] > max(NEGLIGIBLE, max(far) / 2))
