"""Which edits survive when the weights are rounded to a few bits? Round-to-nearest quantisation.

Whoever deploys a model may round its weights: a small edit can vanish (Kolbeinsson et al. 2024, arXiv 2407.06483), and
what it hid can come back (Egashira et al. 2024, arXiv 2405.18137). For each group of `group_size` neighbours in an
output row of a linear map W, with b bits:

    symmetric     W' = a c / m,               c = round(m W / a),                a = max |W|,          m = 2^(b-1) - 1
    asymmetric    W' = lo + (hi - lo) c / m,  c = round(m (W - lo) / (hi - lo)), lo, hi = min W, max W,  m = 2^b - 1

(like Q8_0 and Q4_1 of llama.cpp, but a, lo and hi keep the model's precision). No data is needed; activations are left
alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface.attacks.lists import several
from efface.attacks.points import UtilityBudget, judge_within
from efface.attacks.record import recorded
from efface.attacks.result import AttackResult
from efface.attacks.target import Target
from efface.checks import one_of
from efface.errors import UserError
from efface.model.copies import merged_copy, without_adapter
from efface.model.projections import linear_maps, output_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCHEMES = ("symmetric", "asymmetric")


@dataclass(frozen=True)
class QuantizeSettings(UtilityBudget):
    """Settings of `quantize`."""

    bits: tuple[int, ...] = several("8,4", int, "Bits of a weight, 2 to 8, one or several: 8,4,3.")
    scheme: str = field(
        default="symmetric", metadata={"help": "symmetric (a group has a scale) or asymmetric (and an offset)."}
    )
    group_size: int = field(
        default=64, metadata={"help": "Neighbouring weights of an output row that share a scale; 0: the whole row."}
    )
    embeddings: bool = field(
        default=False, metadata={"help": "Round the embedding and the output head too, not only the decoder blocks."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(2 <= bits <= 8 for bits in self.bits):
            raise UserError(f"bits={self.bits!r}: whole numbers from 2 to 8 are needed, as in 8,4.")
        one_of("scheme", self.scheme, SCHEMES)
        if self.group_size < 0:
            raise UserError(f"group_size={self.group_size}: it must be at least 1, or 0 for the whole row.")


def quantize(target: Target, settings: QuantizeSettings) -> AttackResult:
    """Round the weights of copies; judged by the most toxic point that counts. The start has the bits of the dtype.

    `found` says: how many `weights` were rounded, of how many `parameters`; in `rounding` for each of `bits` the
    relative `error` ||W' - W|| / ||W|| over all of them and, if a base of the same shapes is given, how much of the
    edit `remains`, along itself: with e = W - base, (round(W) - round(base)) . e / e . e, 0 where rounding makes both
    the same and near 1 where the grid is fine beside the edit; and which points are `left_out`.

    Raises:
        UserError: if the weights are quantised already, or an adapter cannot be merged.
    """
    base = {} if target.base is None else _weights(without_adapter(target.base), settings.embeddings)
    found: list[dict[str, Any]] = []
    with recorded(target, "quantize", settings) as record:
        record.start(bits=torch.finfo(target.model.dtype).bits)
        for bits in reversed(settings.bits):  # ever coarser
            student = merged_copy(target.model)
            weights = _weights(student, settings.embeddings)
            found.append({"bits": bits, **_round_(weights, base, bits, settings)})
            record.measure_edited(student, {"bits": bits})
            number = sum(weight.numel() for weight in weights.values())
            del student, weights  # before the next copy is made
        return judge_within(
            record,
            settings.max_perplexity_increase,
            weights=number,
            parameters=sum(parameter.numel() for parameter in target.model.parameters()),
            rounding=found,
        )


def _weights(model: "PreTrainedModel", embeddings: bool) -> dict[str, Tensor]:
    """Name -> (out, in), sharing its memory with `model`; a head that is tied to the embedding only once."""
    weights = {name: output_weight(module) for name, module in linear_maps(model).items()}
    if embeddings:
        embedding: Any = model.get_input_embeddings()
        head: Any = model.get_output_embeddings()
        weights["embedding"] = embedding.weight
        if head.weight is not embedding.weight:
            weights["head"] = head.weight
    return weights


@torch.no_grad()
def _round_(
    weights: Mapping[str, Tensor], base: Mapping[str, Tensor], bits: int, settings: QuantizeSettings
) -> dict[str, Any]:
    """Round `weights` in place; returns what `found` says of it."""
    off = norm = 0.0
    edit = left = 0.0
    comparable = {name: tensor.shape for name, tensor in base.items()} == {
        name: tensor.shape for name, tensor in weights.items()
    }
    for name, weight in weights.items():
        near = rounded(weight, bits, settings.group_size, settings.scheme)
        off += (near.float() - weight.float()).square().sum().item()
        norm += weight.float().square().sum().item()
        if comparable:
            original = base[name].to(weight)
            change = weight.float() - original.float()
            far = rounded(original, bits, settings.group_size, settings.scheme)
            edit += change.square().sum().item()
            left += ((near.float() - far.float()) * change).sum().item()
        weight.copy_(near)
    return {
        "error": (off / norm) ** 0.5 if norm else 0.0,
        "remains": left / edit if edit else None,
    }


def rounded(weight: Tensor, bits: int, group_size: int = 64, scheme: str = "symmetric") -> Tensor:
    """(out, in) -> (out, in): each group's weights moved to the nearest of at most 2^bits equally spaced values.

    Computed in float32 or better and returned in the dtype of `weight`. To round again changes nothing, as long as
    the dtype tells the values apart: the ends of a group's grid are weights of its own and stay as they are.

    Args:
        bits: at least 2.
        group_size: neighbours in a row, of which the last group may have fewer; 0 for the whole row.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    round_group = _symmetric if scheme == "symmetric" else _asymmetric
    groups = weight.to(dtype).split(group_size or weight.shape[1], dim=1)
    return torch.cat([round_group(group, bits) for group in groups], dim=1).to(weight.dtype)


def _symmetric(group: Tensor, bits: int) -> Tensor:
    levels = 2 ** (bits - 1) - 1
    top = group.abs().amax(1, keepdim=True)  # (out, 1)
    codes = (group / _or_one(top) * levels).round()
    return codes / levels * top  # in this order, so that the outermost code gives `top` exactly


def _asymmetric(group: Tensor, bits: int) -> Tensor:
    levels = 2**bits - 1
    low, high = group.amin(1, keepdim=True), group.amax(1, keepdim=True)  # (out, 1)
    codes = ((group - low) / _or_one(high - low) * levels).round()
    return torch.lerp(low, high, codes / levels)  # exact at both ends


def _or_one(width: Tensor) -> Tensor:
    """Where all weights of a group are the same, any divisor will do."""
    return torch.where(width > 0, width, torch.ones_like(width))
