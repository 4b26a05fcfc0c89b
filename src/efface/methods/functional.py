"""What do adversary and model share of maths? Gradient reversal, its ramp, confusion: pure functions of tensors."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LN2 = math.log(2.0)


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
