"""How is a step made aware of sharpness? Two passes: climb to the worst weights nearby, take the gradient there.

Sharpness-aware minimisation (Foret et al. 2021, arXiv 2010.01412, eq. 2 and 4; as a defence of unlearning against
relearning: Fan et al. 2025, arXiv 2502.05374): with g the gradient at w, the step at w uses the gradient at

    w + rho * g / ||g||.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def ascended(model: nn.Module, loss: Callable[[], Tensor], rho: float) -> Iterator[None]:
    """Within the context the trained weights of `model` stand at w + rho * g / ||g||; then at w again, to the bit.

    Args:
        loss: computes the loss at w, whose gradient is g. Gradients that the parameters hold already are kept.
        rho: the radius, in the Euclidean norm over all trained weights. Where g is zero nothing moves.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    held = [parameter.grad for parameter in trained]
    for parameter in trained:
        parameter.grad = None
    loss().backward()
    found = [parameter.grad for parameter in trained]
    for parameter, gradient in zip(trained, held, strict=True):
        parameter.grad = gradient
    weights = [parameter.detach().clone() for parameter in trained]
    with torch.no_grad():
        length = torch.stack([gradient.float().norm() for gradient in found if gradient is not None]).norm()
        if length > 0:
            for parameter, gradient in zip(trained, found, strict=True):
                if gradient is not None:
                    parameter.add_(gradient * (rho / length))
    del found
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, weight in zip(trained, weights, strict=True):
                parameter.copy_(weight)
