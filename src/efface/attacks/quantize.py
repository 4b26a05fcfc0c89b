"""Which edits survive when the weights are rounded to a few bits? Round-to-nearest quantisation.

Whoever deploys a model may round its weights: a small edit can vanish (Kolbeinsson et al. 2024, arXiv 2407.06483), and
what it hid can come back (Egashira et al. 2024, arXiv 2405.18137). How a weight is rounded:
`efface.model.rounding`. No data is needed; activations are left alone.

A base that was stored in few bits lies on a grid. Rounding an edited model to that grid does not say whether the edit
survives rounding: it puts back the base. Such points are named, and not judged by.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface.attacks.lists import several
from efface.attacks.points import UtilityBudget, judge_within, within_budget
from efface.attacks.record import recorded
from efface.attacks.result import AttackResult, title
from efface.attacks.target import Target
from efface.checks import one_of
from efface.errors import UserError
from efface.model.copies import merged_copy, without_adapter
from efface.model.projections import expert_maps, linear_maps, output_weight, part_unreached
from efface.model.rounding import SCHEMES, rounded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OWN_GRID = "the base's own"
OUTSIDE = ("embedding", "head")
NEAR_ZERO = 0.3
"""A map lies on a grid if its rounding error is below this part of that of weights which lie anywhere. Storage in half
precision moves weights off a grid by less."""


@dataclass(frozen=True)
class Grid:
    """What weights are rounded to."""

    scheme: str
    group_size: int
    """0 for the whole row."""
    bits: int

    @property
    def at(self) -> dict[str, Any]:
        """What a point is called."""
        return {"bits": self.bits, "scheme": self.scheme, "group_size": self.group_size or ROW}


ROW = "row"


@dataclass(frozen=True)
class QuantizeSettings(UtilityBudget):
    """Settings of `quantize`."""

    bits: tuple[int, ...] = several("8,4", int, "Bits of a weight, 2 to 8, one or several: 8,4,3.")
    schemes: tuple[str, ...] = several(
        "symmetric",
        str,
        "symmetric (a group has a scale), asymmetric (and an offset), nf4 (16 levels for normal weights, at 4 bits "
        "only), one or several.",
    )
    group_sizes: tuple[str, ...] = several(
        "64", str, "Neighbouring weights of an output row that share a scale, or row; one or several: 32,64,row."
    )
    embeddings: bool = field(
        default=False, metadata={"help": "Round the embedding and the output head too, not only the decoder blocks."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(2 <= bits <= 8 for bits in self.bits):
            raise UserError(f"bits={self.bits!r}: whole numbers from 2 to 8 are needed, as in 8,4.")
        for scheme in self.schemes:
            one_of("schemes", scheme, SCHEMES)
        if not all(size == ROW or (size.isdecimal() and int(size) > 0) for size in self.group_sizes):
            raise UserError(f"group_sizes={self.group_sizes!r}: numbers from 1, or row, are needed, as in 32,row.")
        if not self.grids:
            raise UserError(f"schemes='nf4' has 4 bits, which bits={self.bits!r} do not name. Add 4, or a scheme.")

    @property
    def grids(self) -> list[Grid]:
        """Those that are tried, of each kind ever coarser."""
        return [
            Grid(scheme, 0 if size == ROW else int(size), bits)
            for scheme in self.schemes
            for size in self.group_sizes
            for bits in reversed(self.bits)
            if scheme != "nf4" or bits == 4
        ]


def quantize(target: Target, settings: QuantizeSettings) -> AttackResult:
    """Round the weights of copies; judged by the most toxic point that counts. The start has the bits of the dtype.

    A point on the base's own grid says so in its title and does not count. `found` says: how many `weights` were
    rounded, of how many `parameters`; which part of the weights of the blocks' matrices was `unreached`, since it is
    in no linear map (the routers of a mixture of experts, and experts that transformers does not run itself); in
    `rounding` for each grid the relative `error` ||W' - W|| / ||W|| over all of them and, if a base of the same shapes
    is given, `base_error`, the same of the base, of the map that has most; `on_grid`, the part of the base's weights
    whose map lies on the grid already (from a half on, it is the base's own); and how much of the edit `remains`,
    along itself: with e = W - base, (round(W) - round(base)) . e / e . e, 0 where rounding makes both the same and
    near 1 where the grid is fine beside the edit; the points of `own_grid`; and which points are `left_out`.

    Raises:
        UserError: if the weights are quantised already, or an adapter cannot be merged.
    """
    base = {} if target.base is None else _weights(without_adapter(target.base), settings.embeddings)
    found: list[dict[str, Any]] = []
    own: list[str] = []
    with recorded(target, "quantize", settings) as record:
        record.start(bits=torch.finfo(target.model.dtype).bits)
        for grid in settings.grids:
            student = merged_copy(target.model)
            weights = _weights(student, settings.embeddings)
            told = _round_(weights, base, grid)
            at = grid.at
            if told["on_grid"] is not None and told["on_grid"] >= 0.5:
                at |= {"grid": OWN_GRID}
                own.append(title(at))
            if not found:
                inside = sum(weight.numel() for name, weight in weights.items() if name not in OUTSIDE)
                unreached = part_unreached(student, inside, "quantize")
            found.append({**at, **told})
            record.measure_edited(student, at)
            number = sum(weight.numel() for weight in weights.values())
            del student, weights  # before the next copy is made
        counted = within_budget(record.curve, settings.max_perplexity_increase)
        return judge_within(
            record,
            settings.max_perplexity_increase,
            among=[point for point in counted if title(point.at) not in own],
            weights=number,
            unreached=unreached,
            parameters=sum(parameter.numel() for parameter in target.model.parameters()),
            rounding=found,
            own_grid=own,
        )


def _weights(model: "PreTrainedModel", embeddings: bool) -> dict[str, Tensor]:
    """Name -> (out, in), sharing its memory with `model`; a head that is tied to the embedding only once."""
    weights = {name: output_weight(module) for name, module in linear_maps(model).items()} | expert_maps(model)
    if embeddings:
        embedding: Any = model.get_input_embeddings()
        head: Any = model.get_output_embeddings()
        weights[OUTSIDE[0]] = embedding.weight
        if head.weight is not embedding.weight:
            weights[OUTSIDE[1]] = head.weight
    return weights


@torch.no_grad()
def _round_(weights: Mapping[str, Tensor], base: Mapping[str, Tensor], grid: Grid) -> dict[str, Any]:
    """Round `weights` in place; returns what `found` says of it."""
    off = norm = 0.0
    edit = left = 0.0
    lying = total = 0
    errors: list[float] = []
    comparable = {name: tensor.shape for name, tensor in base.items()} == {
        name: tensor.shape for name, tensor in weights.items()
    }
    for name, weight in weights.items():
        near = rounded(weight, grid.bits, grid.group_size, grid.scheme)
        off += (near.float() - weight.float()).square().sum().item()
        norm += weight.float().square().sum().item()
        if comparable:
            original = base[name].to(weight)
            change = weight.float() - original.float()
            far = rounded(original, grid.bits, grid.group_size, grid.scheme)
            edit += change.square().sum().item()
            left += ((near.float() - far.float()) * change).sum().item()
            if length := original.float().norm().item():  # nothing but zeros lies on every grid
                moved = (far.float() - original.float()).norm().item()
                errors.append(moved / length)
                total += original.numel()
                lying += original.numel() * (moved <= NEAR_ZERO * _error_anywhere(original, grid))
        weight.copy_(near)
    return {
        "error": (off / norm) ** 0.5 if norm else 0.0,
        "base_error": max(errors, default=None),
        "on_grid": lying / total if total else None,
        "remains": left / edit if edit else None,
    }


def _error_anywhere(weight: Tensor, grid: Grid) -> float:
    """||W' - W|| to be expected of weights like `weight`, (out, in), that lie anywhere: the whole weight is moved by
    noise of about a step, and rounded."""
    generator = torch.Generator(weight.device).manual_seed(0)
    steps = 2**grid.bits - 1
    width = weight.float().square().mean().sqrt() * 4 / steps  # of a step, if a group spans four deviations
    noise = torch.empty(weight.shape, device=weight.device).uniform_(-1, 1, generator=generator) * width
    moved = weight.float() + noise
    return (rounded(moved, grid.bits, grid.group_size, grid.scheme) - moved).norm().item()
