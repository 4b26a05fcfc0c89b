"""How is a direction taken out of a model's hidden states? By hooks while it runs, or from the weights for good.

With r of length 1, at every position (Arditi et al. 2024, arXiv 2406.11717, section 2.4):

    h <- h - r r^T h            `ablated`: what enters the first block and what leaves each block
    W <- (I - r r^T) W          `ablate_`: every W that writes there: embeddings, attention and MLP outputs

With one direction everywhere the second leaves nothing along r for the first to take; with each block's own, it takes
r out of what that block adds, not out of what earlier blocks have added.

Both also take out what all text has in common along r, which can wreck a model. So (Marshall et al. 2024, arXiv
2411.09003), with m a mean state of ordinary text and the huge states of attention sinks left as they are:

    h <- h - r r^T (h - m)      `ablated` with centres: what leaves each block
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from efface.model.blocks import decoder_blocks
from efface.model.interventions import Intervention, attach_, attached, detach_
from efface.model.projections import attention_output_projection, mlp_output_projection, project_out_, through_norm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EMBEDDED = -1
"""The place before block 0, where the embeddings write."""


def everywhere(direction: np.ndarray, model: nn.Module) -> dict[int, np.ndarray]:
    """The same direction (d,) at every place: before block 0 and after each block."""
    return dict.fromkeys(range(EMBEDDED, len(decoder_blocks(model))), direction)


@dataclass(frozen=True, eq=False)
class Centre:
    """Where the component of a place's states along a direction is left, instead of at zero."""

    mean: np.ndarray
    """(d,) m"""
    longest: float
    """States of a greater norm stay as they are."""


@contextlib.contextmanager
def ablated(
    model: "PreTrainedModel", directions: Mapping[int, np.ndarray], centres: Mapping[int, Centre] | None = None
) -> Iterator[None]:
    """Within, hidden states have no component along the direction of their place; the weights stay as they are.

    Acts after the interventions of the model (`efface.model.interventions`), so on what they write too.

    Args:
        directions: block, or EMBEDDED, -> (d,) of length 1.
        centres: of the same places: there the component is that of the mean, not zero.
    """
    blocks = decoder_blocks(model)
    handles: list[RemovableHandle] = []
    try:
        for place, direction in directions.items():
            without = _Without(direction, model.device, None if centres is None else centres[place])
            if place == EMBEDDED:
                handles.append(blocks[0].register_forward_pre_hook(without.before, with_kwargs=True))
            else:
                handles.append(blocks[place].register_forward_hook(without.after))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Without:
    """h -> h - r r^T (h - m), as an intervention: in float32 or better, whatever the model's dtype."""

    def __init__(self, direction: np.ndarray, device: torch.device, centre: Centre | None = None):
        column = torch.from_numpy(direction)[:, None].float().to(device)  # (d, 1)
        kept = 0.0 if centre is None else float(direction @ centre.mean)  # r^T m
        self.take_out = Intervention(0, -column, column.T, kept * column[:, 0])
        self.longest = math.inf if centre is None else centre.longest

    def take(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., d)"""
        taken = self.take_out(hidden)
        if self.longest == math.inf:
            return taken
        stays = hidden.float().norm(dim=-1, keepdim=True) > self.longest  # (..., 1)
        return torch.where(stays, hidden, taken)

    def before(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (self.take(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": self.take(kwargs["hidden_states"])}

    def after(self, block: nn.Module, args: Any, output: Any) -> Any:
        return (self.take(output[0]), *output[1:]) if isinstance(output, tuple) else self.take(output)


@torch.no_grad()
def ablate_(model: "PreTrainedModel", directions: Mapping[int, np.ndarray]) -> None:
    """Edit the weights of `model`, so that what is written at each place has no component along its direction.

    What an RMS norm stands after is edited so that nothing passes it (`through_norm`); LayerNorms on the residual
    stream itself (post-norm OPT, the embeddings of BLOOM) can bring something back. An output head that is tied to
    the embedding is untied first: it reads and must stay as it is. Interventions of the model are edited too.

    Args:
        directions: as for `ablated`.

    Raises:
        UserError: if a block has not exactly one MLP and one attention output projection under a known name.
    """
    blocks = decoder_blocks(model)
    for place, direction in directions.items():
        basis = direction[:, None].astype(np.float64)  # (d, 1)
        if place == EMBEDDED:
            embeddings = _embeddings(model)
            if model.get_input_embeddings() in embeddings:
                untie_(model)
            for module in embeddings:
                project_out_(module, torch.from_numpy(basis))
        else:
            block = blocks[place]
            project_out_(mlp_output_projection(block), through_norm(basis, block))
            project_out_(attention_output_projection(block), through_norm(basis, block, "attention"))
    changed = [
        _what_it_writes(intervention, directions[intervention.layer])
        if intervention.layer in directions
        else intervention
        for intervention in attached(model)
    ]
    detach_(model)
    attach_(model, changed)


def untie_(model: Any) -> None:
    """Give the output head a weight of its own, if it shares the embedding's."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        model.config.get_text_config(decoder=True).tie_word_embeddings = model.config.tie_word_embeddings = False


def _embeddings(model: Any) -> list[Any]:
    """What writes before block 0: embeddings of tokens and positions as wide as the residual stream, or the map that
    makes narrower ones so wide (OPT)."""
    width = model.config.get_text_config(decoder=True).hidden_size
    narrow = model.get_input_embeddings().weight.shape[1]
    others = set(model.modules()) - set(decoder_blocks(model).modules()) - {model.get_output_embeddings()}
    wide = [module for module in others if isinstance(module, nn.Embedding) and module.embedding_dim == width]
    if narrow == width:
        return wide
    maps = [module for module in others if isinstance(module, nn.Linear)]
    return [*wide, *(module for module in maps if (module.in_features, module.out_features) == (narrow, width))]


def _what_it_writes(intervention: Intervention, direction: np.ndarray) -> Intervention:
    """The intervention with its output projected, as W is."""

    def without(tensor: Tensor) -> Tensor:  # (d,) or (d, r)
        r = torch.from_numpy(direction).to(tensor.dtype).to(tensor.device)
        return tensor - torch.tensordot(r, r @ tensor, dims=0)

    return Intervention(intervention.layer, without(intervention.left), intervention.right, without(intervention.bias))
