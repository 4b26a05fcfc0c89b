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


@torch.no_grad()
def change_of(model: "PreTrainedModel", base: "PreTrainedModel") -> dict[str, Tensor]:
    """Path -> (d_out, d_in) float32: how far each linear map of the blocks is from that of `base`."""
    others = linear_maps(base)
    return {
        path: output_weight(module).float() - output_weight(others[path]).to(module.weight.device).float()
        for path, module in linear_maps(model).items()
    }


@torch.no_grad()
def overlap(change: Mapping[str, Tensor], gradient: Mapping[str, Tensor], ranks: Sequence[int] = RANKS) -> Row:
    """How much of a change lies in the principal directions of a gradient, over all matrices together.

    Returns:
        `left` and `right`: rank -> part of the squared change; `chance`: the same two of a change without preference;
        `cosine` of the change and the gradient. All null if nothing has changed.

    Raises:
        UserError: if they are of other matrices.
    """
    if change.keys() != gradient.keys():
        raise UserError("the change and the gradient are of different matrices: take both of models of one kind.")
    inside = {side: dict.fromkeys(ranks, 0.0) for side in ("left", "right")}
    chance = {side: dict.fromkeys(ranks, 0.0) for side in ("left", "right")}
    squares = sum(matrix.square().sum().item() for matrix in change.values())
    if not squares:
        nothing = dict.fromkeys(map(str, ranks))
        return {"left": nothing, "right": nothing, "chance": {"left": nothing, "right": nothing}, "cosine": None}
    for path, matrix in change.items():
        left, _, right = torch.linalg.svd(gradient[path].float(), full_matrices=False)
        energy = matrix.square().sum().item()
        written = (left.T @ matrix).square().sum(1).cumsum(0)  # (min(d_out, d_in),)
        read = (matrix @ right.T).square().sum(0).cumsum(0)
        for rank in ranks:
            k = min(rank, len(written))
            inside["left"][rank] += written[k - 1].item()
            inside["right"][rank] += read[k - 1].item()
            chance["left"][rank] += energy * k / matrix.shape[0]
            chance["right"][rank] += energy * k / matrix.shape[1]

    def parts(table: dict[str, dict[int, float]]) -> Row:
        return {side: {str(rank): value / squares for rank, value in found.items()} for side, found in table.items()}

    return {**parts(inside), "chance": parts(chance), "cosine": cosine(change, gradient)}


def cosine(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float | None:
    """Of two changes of the same matrices, as one long vector each; None if one of them is zero."""
    inner = sum((one[path] * other[path]).sum().item() for path in one)
    norms = [sum(matrix.square().sum().item() for matrix in each.values()) ** 0.5 for each in (one, other)]
    return inner / (norms[0] * norms[1]) if all(norms) else None
