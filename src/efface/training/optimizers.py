"""Which optimizers are there beside transformers'? Normalised SGD, chosen as any other: `optim="normalized_sgd"`.

    w  <-  w - lr * g / ||g||         each tensor by itself, ||.|| the Euclidean norm over the tensor

Each tensor moves by `lr`, whatever the size of its gradient: only the direction counts, and the few entries whose
gradient is large get most of the move, where AdamW moves all of them alike. (A matrix of n entries moves by lr /
sqrt(n) an entry, so that rates are some hundred times those of AdamW.) Normalised gradients: Nesterov 1984; by layer
and for large batches You et al. 2017 (arXiv 1708.03888), who also multiply by the norm of the weights.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from transformers import Trainer, TrainingArguments

from efface.errors import UserError


class NormalizedSGD(Optimizer):
    """SGD whose gradient is normalised, tensor by tensor; it keeps no state.

    Args:
        lr: by how much a tensor moves in a step.
        weight_decay: a step takes lr * weight_decay * w away, beside the move (decoupled, as AdamW's).
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; where the gradient is zero nothing moves but by the decay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if group["weight_decay"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                gradient = parameter.grad.float()
                largest = gradient.abs().max()
                if largest != 0:  # one that is not finite must show, by weights that are none
                    gradient = gradient / largest  # whose squares stay within the range of floats
                    parameter.add_((gradient / gradient.norm()).to(parameter.dtype), alpha=-group["lr"])
        return loss


OPTIMIZERS: dict[str, type[Optimizer]] = {"normalized_sgd": NormalizedSGD}
"""By the name that `optim` takes."""


class ChoosesOptimizer(Trainer):
    """A trainer that knows these names too; a class, since `Trainer` asks itself."""

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: Any = None) -> tuple[Any, Any]:
        own = OPTIMIZERS.get(str(args.optim))
        if own is None:
            return Trainer.get_optimizer_cls_and_kwargs(args, model)
        if args.optim_args:
            raise UserError(
                f"optim_args={args.optim_args!r}: {args.optim} takes none but learning_rate, weight_decay."
            )
        return own, {"lr": args.learning_rate}
