"""Does what efface takes from a model's forward, and makes of it, agree with what the model itself says?

Everything here stands on final hidden states, a head that turns them into logits, and residual streams (`forward.py`).
That this fits a model is not read from a list of families: it is tried once, on three short rows.
"""

import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from efface.errors import RunError, UserError, reason_of
from efface.model.blocks import accepted, capture_residuals, unwrap
from efface.model.copies import eval_mode
from efface.model.forward import Head, forward
from efface.model.layout import plain_layout

TOKENS = 6
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-6}  # relative; half precision gets HALF
HALF = 5e-2

_checked: "WeakSet[nn.Module]" = WeakSet()


def check_head_once(model: nn.Module) -> None:
    """As `check_head`, but a model that has passed is not asked again."""
    if model not in _checked:
        check_head(model)
        _checked.add(model)


@torch.no_grad()
def check_head(model: nn.Module, head: Head | None = None, layers: Sequence[int] = ()) -> None:
    """Compare `head` after `forward` with `model(...).logits`, in the precision that the caller has set (autocast).

    Args:
        head: of `model`; by default it is made.
        layers: the blocks whose residual stream will be asked for.

    Raises:
        UserError: if they differ, if the model cannot be run this way, if it looks at later tokens, or if its residual
            stream is not one vector a token.
    """
    inner = unwrap(model)
    name = type(inner.get_base_model() if hasattr(inner, "get_base_model") else inner).__name__
    if getattr(inner.config, "is_encoder_decoder", False):
        raise UserError(
            f"{name} is an encoder with a decoder; efface works on causal language models, which are a decoder alone."
        )
    ids, mask = _rows(inner)
    try:
        with eval_mode(inner):
            ours, own, residuals = _both_ways(inner, head, layers, ids, mask)
    except (UserError, RunError):
        raise
    except Exception as error:
        raise UserError(
            f"{name} cannot be run the way efface runs models ({reason_of(error, named=True)}). See docs/models.md."
        ) from error
    for layer, states in residuals.items():
        wanted = (*ids.shape, inner.config.get_text_config(decoder=True).hidden_size)
        if states.shape != wanted:
            given = " x ".join(map(str, states.shape))
            raise UserError(
                f"{name}: the residual stream after block {layer} is {given} for {len(ids)} rows of {TOKENS} tokens, "
                f"not a vector of {wanted[-1]} a token. Methods that look at hidden states do not fit it."
            )
    if own.isfinite().all():  # a broken model is told of where its figures are used
        tolerance = TOLERANCES.get(_precision(own), HALF)
        same_shape = own.shape[:-1] == mask.shape and own.shape[-1] == ours.shape[-1]
        difference = _relative(ours, own[mask.bool()]) if same_shape else math.inf
        if difference > tolerance:
            raise UserError(
                f"{name}: its final hidden states and its output embedding do not give its logits ({difference:.1e} "
                "apart), so what efface computes from them would be wrong. See docs/models.md."
            )
        if _relative(own[0, :-1], own[1, :-1]) > tolerance:
            raise UserError(
                f"{name} looks at later tokens: it is no causal language model as it is configured (is_decoder, say)."
            )


def _rows(inner: Any) -> tuple[Tensor, Tensor]:
    """Ids and mask, (3, TOKENS): the second row differs from the first in its last token, the third is short."""
    weight = inner.get_input_embeddings().weight
    ids = torch.arange(3, 3 + TOKENS).repeat(3, 1)
    ids[1, -1] += 1
    mask = torch.ones_like(ids)
    mask[2, -2:] = 0
    return (ids % len(weight)).to(weight.device), mask.to(weight.device)


def _both_ways(
    inner: Any, head: Head | None, layers: Sequence[int], ids: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """(N, V) logits of the head at the N real tokens, (3, T, V) those of the model itself, and its residuals."""
    head = Head.of(inner) if head is None else head
    layout = plain_layout(ids, mask)
    hidden = forward(inner, layout, mask.bool()).hidden  # (N, d)
    with capture_residuals(inner, layers) as residuals:
        places = {"input_ids": ids, "attention_mask": mask, "position_ids": layout.position_ids}
        own = inner(**accepted(inner, **places, use_cache=False)).logits
    for layer in layers:
        if not isinstance(residuals.get(layer), Tensor):
            raise UserError(f"{type(inner).__name__}: block {layer} gives no hidden states when the model runs.")
    return head(hidden), own, residuals


def _precision(own: Tensor) -> torch.dtype:
    """In which the logits were computed, whatever they were turned into afterwards."""
    device = own.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else own.dtype


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-12)).item()
