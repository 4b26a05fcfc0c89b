"""Does an edit lie where relearning will go? What of it is in the principal directions of the forget gradient.

G = the gradient of log f(y-) with respect to a matrix W (d_out, d_in): where an attacker's first step goes. With U_k,
V_k its k leading singular vectors, a change D of W has there

    left      ||U_k^T D||^2 / ||D||^2          of what it writes
    right     ||D V_k||^2 / ||D||^2            of what it reads

A change without preference has k / d_out and k / d_in. RepSelect (arXiv 2606.17168) takes those directions out of its
edit, since an attacker comes back along them; whether they foretell relearning is to be measured. Beside them the
cosine of D and of an attacker's own change, over all matrices together: -1 if relearning only undoes the edit.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface.errors import UserError
from efface.files.jsonl import Row
from efface.model.projections import linear_maps, output_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANKS = (1, 4, 16)
SIDES = ("left", "right")


@torch.no_grad()
def change_of(model: "PreTrainedModel", base: "PreTrainedModel") -> dict[str, Tensor]:
    """Path -> (d_out, d_in) float32: how far each linear map of the blocks is from that of `base`."""
    others = linear_maps(base)
    return {
        path: output_weight(module).float() - output_weight(others[path]).to(module.weight.device).float()
        for path, module in linear_maps(model).items()
    }


@torch.no_grad()
def overlaps(
    changes: Mapping[str, Mapping[str, Tensor]], gradient: Mapping[str, Tensor], ranks: Sequence[int] = RANKS
) -> dict[str, Row]:
    """How much of each of several changes lies in the principal directions of a gradient, over all matrices together.

    Each matrix of the gradient is decomposed once, which is most of the work.

    Args:
        changes: name -> path -> (d_out, d_in).
        gradient: path -> (d_out, d_in), of the same matrices.

    Returns:
        Name -> `left` and `right`: rank -> part of the squared change; `chance`: the same two of a change without
        preference; `cosine` of the change and the gradient. All null if nothing has changed.

    Raises:
        UserError: if they are of other matrices.
    """
    if any(change.keys() != gradient.keys() for change in changes.values()):
        raise UserError("the change and the gradient are of different matrices: take both of models of one kind.")
    parts = {name: _Parts(ranks) for name in changes}
    for path, matrix in gradient.items():
        left, _, right = torch.linalg.svd(matrix.float(), full_matrices=False)
        for name, change in changes.items():
            parts[name].add(change[path], left, right)
    return {name: {**parts[name].told(), "cosine": cosine(change, gradient)} for name, change in changes.items()}


class _Parts:
    """Of one change, summed over matrices: what of it lies in the first k directions."""

    def __init__(self, ranks: Sequence[int]):
        self.squares = 0.0
        self.inside = {side: dict.fromkeys(ranks, 0.0) for side in SIDES}
        self.chance = {side: dict.fromkeys(ranks, 0.0) for side in SIDES}

    def add(self, matrix: Tensor, left: Tensor, right: Tensor) -> None:
        energy = matrix.square().sum().item()
        written = (left.T @ matrix).square().sum(1).cumsum(0)  # (min(d_out, d_in),)
        read = (matrix @ right.T).square().sum(0).cumsum(0)
        for side, held, size in zip(SIDES, (written, read), matrix.shape, strict=True):
            for rank in self.inside[side]:
                k = min(rank, len(held))
                self.inside[side][rank] += held[k - 1].item()
                self.chance[side][rank] += energy * k / size
        self.squares += energy

    def told(self) -> Row:
        return {**self._shares(self.inside), "chance": self._shares(self.chance)}

    def _shares(self, table: dict[str, dict[int, float]]) -> Row:
        return {
            side: {str(rank): value / self.squares if self.squares else None for rank, value in found.items()}
            for side, found in table.items()
        }


def cosine(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float | None:
    """Of two changes of the same matrices, as one long vector each; None if one of them is zero."""
    inner = sum((one[path] * other[path]).sum().item() for path in one)
    norms = [sum(matrix.square().sum().item() for matrix in each.values()) ** 0.5 for each in (one, other)]
    return inner / (norms[0] * norms[1]) if all(norms) else None
