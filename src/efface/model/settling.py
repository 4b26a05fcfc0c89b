"""How are weights moved onto a grid so that what they compute changes least? GPTQ (Frantar et al. 2022, arXiv
2210.17323), on the grid that the weights of a base lie on.

Round-to-nearest takes a small edit away: no weight leaves its cell. Here the columns of W (out, in) are rounded one
after the other, and what rounding a column has changed is made up for by the columns to come,

    w_k <- w_k - (w_j - q_j) U_jk / U_jj  for k > j,    U: upper Cholesky factor of (X^T X + damping)^-1

with the inputs X (tokens, in) of the map: few weights cross whole cells, and together they do what the edit did. The
grid is the base's own: for each group of neighbours the ends low, high are its smallest and its largest weight. Those
weights stay, so that the grid stays: to round the outcome to it again changes nothing.
"""

import torch
from torch import Tensor

from efface.checks import positive
from efface.model.devices import doubled
from efface.model.rounding import rounded

COLUMNS = 128
"""That are rounded before the rest is told."""
ON_GRID = 1e-3
"""A map lies on a grid if rounding to it moves it by less than this part of its norm: the precision of bfloat16."""


def lies_on_grid(weight: Tensor, bits: int, group_size: int) -> bool:
    """Whether (out, in) weights are those of an asymmetric grid already, up to how they are stored."""
    wide = weight.float()
    off = (rounded(wide, bits, group_size, "asymmetric") - wide).norm()
    return bool(off <= ON_GRID * wide.norm())


@torch.no_grad()
def settled(
    weight: Tensor, base: Tensor, gram: Tensor, bits: int, group_size: int = 32, damping: float = 0.01
) -> Tensor:
    """(out, in) -> (out, in): `weight` on the grid of `base`, so that X W^T changes least. In float32, returned as
    `weight`.

    Args:
        base: (out, in), on the grid.
        gram: (in, in), X^T X.
        group_size: neighbours in a row; 0 for the whole row.
        damping: added to the diagonal, in parts of its mean.
    """
    positive("damping", damping)
    moving, start = weight.float().clone(), base.to(weight.device).float()
    low, high = _ends(start, group_size)
    levels = 2**bits - 1
    fixed = (start == low) | (start == high)
    order = gram.diagonal().argsort(descending=True)  # what is heard most has most left to make up for it
    factor = _factor(gram.to(weight.device)[order][:, order], damping)  # (in, in)
    moving, low, high, start, fixed = (each[:, order] for each in (moving, low, high, start, fixed))
    found = torch.empty_like(moving)
    for first in range(0, moving.shape[1], COLUMNS):
        last = min(first + COLUMNS, moving.shape[1])
        errors = torch.zeros(moving.shape[0], last - first, device=weight.device)
        for j in range(first, last):
            near = _nearest(moving[:, j], low[:, j], high[:, j], levels)
            found[:, j] = torch.where(fixed[:, j], start[:, j], near)
            errors[:, j - first] = (moving[:, j] - found[:, j]) / factor[j, j]
            moving[:, j:last] -= errors[:, j - first, None] * factor[j, j:last]
        moving[:, last:] -= errors @ factor[first:last, last:]
    return found[:, order.argsort()].to(weight.dtype)


def _ends(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Of the group of each weight, the smallest and the largest, (out, in) each."""
    groups = weight.split(group_size or weight.shape[1], dim=1)
    low = [group.amin(1, keepdim=True).expand_as(group) for group in groups]
    high = [group.amax(1, keepdim=True).expand_as(group) for group in groups]
    return torch.cat(low, dim=1), torch.cat(high, dim=1)


def _nearest(weights: Tensor, low: Tensor, high: Tensor, levels: int) -> Tensor:
    width = torch.where(high > low, high - low, torch.ones_like(low))
    codes = ((weights - low) / width * levels).round().clamp(0, levels)
    return torch.lerp(low, high, codes / levels)  # as `rounded` has it


def _factor(gram: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the inverse; of inputs that are all zero any direction is as good."""
    size = len(gram)
    wide = doubled(gram)
    scale = wide.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    wide = wide / scale + damping * torch.eye(size, dtype=torch.float64, device=wide.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(wide))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper.float().to(gram.device)
