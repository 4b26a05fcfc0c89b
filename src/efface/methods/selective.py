"""Which part of a gradient is selective? What is left of it once the top principal components are damped.

The gradient of a matrix is G = sum over tokens of g_t x_t^T, x_t the activation that goes in and g_t the gradient of
what comes out. Its right singular vectors V are the principal directions of the activations, its left ones U those of
the output gradients, each weighted by the other (RepSelect, Sondej et al. 2026, arXiv 2606.17168, and the authors'
code). With the k largest singular values s_1 >= ... >= s_k of such a G, another gradient F (or G itself) becomes

    P(F) = (I - U diag(1 - c) U^T) F (I - V diag(1 - c) V^T)         c_j = s_k / s_j        soft
                                                                     c_j = (s_k / s_j)^2    quadratic
                                                                     c_j = 0                hard

`Components` is this map. `SelectiveErasure` is its use inside REPO: of the adversary's gradient the directions that
benign text uses most are damped, those of the retain terms stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efface.errors import UserError
from efface.model.blocks import decoder_blocks
from efface.model.devices import doubled
from efface.model.projections import mlp_maps
from efface.training.likelihood_gradient import first_batches, from_first_process, likelihood_gradient

DAMPINGS = ("soft", "quadratic", "hard")
LOOKED_AT = 64  # pairs, and as many passages: the first


def share_of(name: str, value: float) -> None:
    """Raise a `UserError` unless `value` is a share of a matrix's side, above 0 and at most 1."""
    if not 0 < value <= 1:
        raise UserError(f"{name}={value}: it must be above 0 and at most 1, a share of a matrix's smaller side.")


@dataclass(frozen=True)
class Components:
    """The top principal components of a matrix's gradient; what `damp` does is linear in what it is given."""

    left: Tensor
    """(rows, k) U."""
    right: Tensor
    """(columns, k) V."""
    sizes: Tensor
    """(k,) s, descending, all above 0."""

    @classmethod
    def of(cls, gradient: Tensor, share: float) -> "Components":
        """Those of `gradient` (rows, columns): k is `share` of its smaller side, fewer where its rank is lower.

        By the eigenvectors of the smaller of G G^T and G^T G in float64.
        """
        wide = gradient.shape[0] <= gradient.shape[1]
        tall = doubled(gradient).T if wide else doubled(gradient)  # (more, fewer)
        k = max(round(share * tall.shape[1]), 1)
        values, vectors = torch.linalg.eigh(tall.T @ tall)  # ascending
        sizes = values.flip(0)[:k].clamp(min=0).sqrt()  # (k,)
        kept = sizes > 1e-6 * sizes[0]  # squared, that is what float64 tells from 0
        sizes, few = sizes[kept], vectors.flip(1)[:, :k][:, kept]  # (fewer, k)
        many = tall @ few / sizes  # (more, k)
        left, right = (few, many) if wide else (many, few)
        wider = torch.promote_types(gradient.dtype, torch.float32)
        return cls(*(each.to(wider).to(gradient.device) for each in (left, right, sizes)))

    def damp(self, gradient: Tensor, damping: str) -> Tensor:
        """P(F) of `gradient` (rows, columns), in its own precision."""
        away = self._away(damping)
        found = gradient - (self.left * away) @ (self.left.T @ gradient)
        return found - (found @ self.right) @ (self.right * away).T

    def _away(self, damping: str) -> Tensor:
        """(k,) 1 - c: how much of each component goes."""
        if damping == "hard" or not len(self.sizes):
            return torch.ones_like(self.sizes)
        ratio = self.sizes[-1] / self.sizes
        return 1 - (ratio if damping == "soft" else ratio.square())


class SelectiveErasure:
    """The gradient of the erase loss without what benign text uses most, for MLP matrices; REPO's `erase_gradient`.

    A step's gradient is (retain + erase); `note` finds the erase part g of each micro-batch by a backward of its own,
    and `correct_` adds P(g) - g, which is linear: over micro-batches and processes it adds up.

    Args:
        weights: the matrices.
        components: of each, on benign text.
    """

    def __init__(self, weights: Sequence[Tensor], components: Sequence[Components], damping: str):
        self.weights, self.components, self.damping = list(weights), list(components), damping
        self.kept: float | None = None
        """The length of the last step's P(g) over that of g, over all matrices."""
        self._gathered: list[Tensor | None] = [None] * len(self.weights)

    def note(self, loss: Tensor) -> None:
        """Keep the gradient of a micro-batch's erase loss, weighted as in the whole loss; its graph stays."""
        if not loss.requires_grad:
            return
        found = torch.autograd.grad(loss, self.weights, retain_graph=True, allow_unused=True)
        for i, part in enumerate(found):
            if part is not None:
                held = self._gathered[i]
                self._gathered[i] = part if held is None else held + part

    def correct_(self, accelerator: Any) -> None:
        """End an optimizer step: the erase part of the weights' gradients becomes P of it."""
        before = after = 0.0
        for i, (weight, components) in enumerate(zip(self.weights, self.components, strict=True)):
            own = self._gathered[i]
            whole = torch.zeros_like(weight) if own is None else own
            if accelerator.num_processes > 1:  # each divided its own by the counts of all
                whole = accelerator.reduce(whole, "sum")
            whole = whole.float()
            damped = components.damp(whole, self.damping)
            before, after = before + float(whole.norm()) ** 2, after + float(damped.norm()) ** 2
            change = damped - whole
            weight.grad = change.to(weight.dtype) if weight.grad is None else weight.grad.add_(change)
            self._gathered[i] = None
        self.kept = (after / before) ** 0.5 if before else None


def selective_erasure(trainer: Any, share: float, damping: str) -> SelectiveErasure:
    """For the MLP matrices that `trainer` trains, by the gradient of log f on its first y+ and passages, as the model
    is now.

    Raises:
        UserError: if it trains none: an adapter instead, or other weights.
    """
    adapted = hasattr(trainer.model, "peft_config")
    weights = [] if adapted else [each for each in mlp_matrices(trainer.model) if each.requires_grad]
    if not weights:
        raise UserError(
            "erase_gradient='selective' damps the gradient of MLP matrices, and none is trained here (an adapter is, "
            "or other weights). Train them in full, or leave erase_gradient at full."
        )
    batches = first_batches(trainer, LOOKED_AT, LOOKED_AT)
    parts = {"chosen": 1.0} | ({"passages": 1.0} if len(trainer.train_dataset.passages) else {})
    gradients = likelihood_gradient(trainer.model, batches, parts, weights)
    found = [Components.of(each, share) for each in gradients]
    parts = from_first_process(trainer, [[one.left, one.right, one.sizes] for one in found])
    return SelectiveErasure(weights, [Components(*one) for one in parts], damping)


def mlp_matrices(model: nn.Module) -> list[Tensor]:
    """The weights of the linear maps of all MLPs, block by block."""
    return [module.weight for block in decoder_blocks(model) for module in mlp_maps(block)]
