"""What is seen of a run while it trains? The terms of its loss, and whether all of it is finite."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from efface.errors import RunError


class Metrics:
    """The terms of the loss, summed over micro-batches since they were last said."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.steps = 0

    def add(self, terms: dict[str, float], *, ends_step: bool = False) -> None:
        for name, value in terms.items():
            self.sums[name] += value
        self.steps += ends_step

    def totals(self, accelerator: Any, steps: int = 1) -> dict[str, float]:
        """The sums over all processes, for each of the `steps`; asked in every process at once."""
        names = sorted(self.sums)
        sums = torch.tensor([self.sums[name] for name in names], device=accelerator.device)
        sums = accelerator.reduce(sums, "sum") / steps
        return dict(zip(names, sums.tolist(), strict=True))


def raise_if_loss_not_finite(loss: Tensor, terms: dict[str, float], step: int, accelerator: Any) -> None:
    """Raise a `RunError` if the loss is NaN or infinite on any process: one that stopped alone would leave the others
    waiting for it."""
    finite = torch.isfinite(loss.detach())
    if not accelerator.gather(finite.view(1)).all():
        said = ", ".join(f"{name} {value:.3g}" for name, value in terms.items())
        said += "; on another process it is not finite" if finite else ""
        raise RunError(
            f"the loss is {loss.item()} at step {step} ({said}); stopped before the optimizer step. Earlier "
            "checkpoints are untouched. Lower learning_rate or the weights, or check the model's precision."
        )


def raise_if_not_finite(model: nn.Module, step: int) -> None:
    """Raise a `RunError` if a trained weight is NaN or infinite: no later loss would show what the last step did."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        finite: Any = torch.isfinite(parameter).all()
        if not getattr(finite, "full_tensor", lambda finite=finite: finite)():  # of all processes, where it is cut
            raise RunError(
                f"the weights are not finite after step {step} ({name}); nothing was saved of it. Earlier checkpoints "
                "are untouched. Lower learning_rate."
            )
