"""Does what efface takes from a model's forward, and makes of it, agree with what the model itself says?

Everything here stands on final hidden states, a head that turns them into logits, and residual streams (`forward.py`).
That this fits a model is not read from a list of families: it is tried once, on two short rows.
"""

from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from efface.errors import RunError, UserError
from efface.evaluation.batching import eval_mode
from efface.forward import Head, forward, unwrap
from efface.layout import plain_layout
from efface.models import accepted, capture_residuals

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
    try:
        with eval_mode(inner):
            ours, own, residuals = _both_ways(inner, head, layers)
    except (UserError, RunError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} cannot be run the way efface runs models ({type(error).__name__}: {reason}). "
            "See the model families in README."
        ) from error
    width = inner.config.get_text_config(decoder=True).hidden_size if layers else 0
    for layer, shape in residuals.items():
        if shape != (2, TOKENS, width):
            raise UserError(
                f"{name}: the residual stream after block {layer} is {' x '.join(map(str, shape))} for 2 rows of "
                f"{TOKENS} tokens, not a vector of {width} a token. Methods that look at hidden states do not fit it."
            )
    if not torch.isfinite(own).all():  # a broken model, which is told where its figures are used
        return
    tolerance = TOLERANCES.get(_precision(own), HALF)
    if ours.shape != own.shape or (difference := _relative(ours, own)) > tolerance:
        what = f"{difference:.1e} apart" if ours.shape == own.shape else "of another shape"
        raise UserError(
            f"{name}: its final hidden states and its output embedding do not give its logits ({what}), so what "
            "efface computes from them would be wrong. See the model families in README."
        )
    # The rows differ in their last token alone.
    if _relative(own[0, :-1], own[1, :-1]) > tolerance:
        raise UserError(
            f"{name} looks at later tokens: it is no causal language model as it is configured (is_decoder, say)."
        )


def _both_ways(
    inner: Any, head: Head | None, layers: Sequence[int]
) -> tuple[Tensor, Tensor, dict[int, tuple[int, ...]]]:
    """(2, T, V) logits of the head and of the model itself, and the shapes of the residuals."""
    vocabulary = inner.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(3, 3 + TOKENS) % vocabulary).repeat(2, 1)
    ids[1, -1] = (int(ids[1, -1]) + 1) % vocabulary
    ids = ids.to(inner.get_input_embeddings().weight.device)
    every = torch.ones_like(ids)
    layout = plain_layout(ids, every)
    head = Head.of(inner) if head is None else head
    hidden = forward(inner, layout, every.bool()).hidden  # (2 T, d)
    with capture_residuals(inner, layers) as residuals:
        inputs = accepted(
            inner, input_ids=ids, attention_mask=every, position_ids=layout.position_ids, use_cache=False
        )
        own = inner(**inputs).logits
    missing = [layer for layer in layers if not isinstance(residuals.get(layer), Tensor)]
    if missing:
        raise UserError(f"{type(inner).__name__}: block {missing[0]} gives no hidden states when the model runs.")
    shapes = {layer: tuple(residuals[layer].shape) for layer in layers}
    return head(hidden).view(2, TOKENS, -1), own, shapes


def _precision(own: Tensor) -> torch.dtype:
    """In which the logits were computed, whatever they were turned into afterwards."""
    device = own.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else own.dtype


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-12)).item()
