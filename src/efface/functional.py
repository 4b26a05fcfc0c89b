"""What is the maths? Pure tensor functions, without models or configuration; the equations of docs/methods.md."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LN2 = math.log(2.0)


def token_kl(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """KL( f0(.|context) || f(.|context) ) of each token over the whole vocabulary, in nats and in float32.

    Args:
        reference_logits: (N, V), of the frozen reference f0.
        logits: (N, V), of the model f that is trained.

    Returns:
        (N,), non-negative up to rounding.
    """
    reference = F.log_softmax(reference_logits.float(), dim=-1)
    return F.kl_div(F.log_softmax(logits.float(), dim=-1), reference, reduction="none", log_target=True).sum(-1)


class _GradientReversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, strength: Tensor) -> Tensor:
        ctx.save_for_backward(strength)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (strength,) = ctx.saved_tensors
        return -strength * grad, None


def gradient_reversal(hidden: Tensor, strength: float | Tensor) -> Tensor:
    """Identity forward; backward the gradient times -`strength` (Ganin et al. 2016, eq. 10).

    Args:
        hidden: (N, d).
        strength: lambda; a number, or (N, 1) for a strength of its own per token. Zero stops the gradient.
    """
    strength = torch.as_tensor(strength, dtype=hidden.dtype, device=hidden.device)
    return _GradientReversal.apply(hidden, strength)


def dann_ramp(progress: float) -> float:
    """2 / (1 + exp(-10 p)) - 1 for a progress p in [0, 1] (Ganin et al. 2016, section 5.2.2)."""
    return 2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0


def confusion_loss(domain_logits: Tensor) -> Tensor:
    """(N,) cross-entropy of D's output with one half; least, ln 2, where it cannot tell (Tzeng et al. 2015)."""
    return 0.5 * (F.softplus(domain_logits) + F.softplus(-domain_logits))


def predicting_positions(continuation_mask: Tensor) -> Tensor:
    """From the tokens that *are* the continuation to the positions that *predict* them: one to the left.

    For prompt `a b` and continuation `c d`:

        tokens             a  b  c  d
        continuation_mask  0  0  1  1    residual states that L_erase uses
        returned           0  1  1  0    logits that L_retain uses

    Args:
        continuation_mask: (batch, T) bool; its first column must be False, as nothing predicts the first token.
    """
    return F.pad(continuation_mask[:, 1:], (0, 1), value=False)


def pool_rows(hidden: Tensor, mask: Tensor) -> Tensor:
    """(batch, d) mean over the marked tokens of each row of `hidden` (batch, T, d), `mask` (batch, T) bool."""
    weights = mask.to(hidden.dtype).unsqueeze(-1)  # (batch, T, 1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
