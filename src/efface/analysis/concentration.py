"""How concentrated is a change of the weights: in which modules, in how many neurons, in how many directions?

With dW = W' - W of each linear map of the blocks:

    where            the part of ||dW||^2 that lies in each block's attention and MLP
    neurons          neuron i of an MLP is row i of its input projections and column i of its output projection; of the
                     squared change of each the Gini coefficient over all neurons, and the part of the top 1 %
    stable rank      ||dW||_F^2 / ||dW||_2^2, 1 for a single direction; of the map it changes too
    spectrum         the part of ||dW||_F^2 in its k largest singular values
    null space       the part that acts on directions which ordinary text hardly uses (`input_space.py`)

"Localised" is a comparison. The control is an edit of Gaussian noise that has the same length in every map: its
figures stand beside. Identical models give zero everywhere.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from efface.analysis.input_space import null_part
from efface.files.jsonl import Row
from efface.model.blocks import decoder_blocks
from efface.model.copies import without_adapter
from efface.model.edit import check_same_parameters, edit_squares
from efface.model.projections import linear_maps, mlp_maps, output_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOP = 0.01
"""Of the neurons."""
RANKS = (1, 2, 4, 8, 16, 32)
ATTENTION, MLP = "attention", "mlp"


@dataclass(frozen=True)
class MapChange:
    """How one linear map has changed."""

    layer: int
    part: str
    """`attention` or `mlp`."""
    path: str
    squares: float
    """||dW||_F^2"""
    relative: float
    """||dW||_F / ||W||_F"""
    stable_rank: float
    base_stable_rank: float
    spectrum: list[float]
    """The part of `squares` in the largest 1, 2, 4, 8, 16, 32 singular values."""
    null_part: float | None
    null_dimensions: float | None
    """The part of all directions that the null space is: what an edit without preference has there."""


def gini(values: np.ndarray) -> float:
    """(n,) not negative -> 0 if all are alike, (n - 1) / n if one has everything; 0 if all are zero."""
    total, n = values.sum(), len(values)
    if not total > 0:
        return 0.0
    ranks = np.arange(1, n + 1)
    return float(2 * (ranks * np.sort(values)).sum() / (n * total) - (n + 1) / n)


def top_part(values: np.ndarray, share: float = TOP) -> float:
    """What part of the sum of `values` (n,), not negative, the largest `share` of them have, at least one of them."""
    total = values.sum()
    return float(np.sort(values)[-max(round(share * len(values)), 1) :].sum() / total) if total > 0 else 0.0


def stable_rank(matrix: Tensor) -> float:
    """||A||_F^2 / ||A||_2^2 of (m, n); 0 of a zero matrix."""
    return _rank_of(torch.linalg.svdvals(matrix.float()))


def _rank_of(singular: Tensor) -> float:
    largest = singular[0].square().item()
    return singular.square().sum().item() / largest if largest > 0 else 0.0


@torch.no_grad()
def concentration(
    edited: "PreTrainedModel",
    base: "PreTrainedModel",
    *,
    null_spaces: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Row:
    """How concentrated the change from `base` to `edited` is, as it is written to JSON.

    Args:
        null_spaces: path of a map -> (d_in, k), orthonormal, see `input_space.null_spaces`.
        seed: of the control.

    Returns:
        `squares` and `relative` of the whole change; `outside`, the part of it that is in no linear map of the blocks
        (embeddings, norms, biases); `parts`: "layer.attention" and "layer.mlp" -> part of the change; `maps`, of
        `MapChange`; `neurons`: `gini`, `top` (1 %) and `n` over all MLPs, with the same of the control as `random`;
        `null_part` of all maps together, and `null_dimensions`.

    Raises:
        UserError: if their parameters are not the same ones.
    """
    check_same_parameters(edited, base, "compared")
    edited, base = without_adapter(edited), without_adapter(base)
    whole, norm = edit_squares(edited, base)
    generator = torch.Generator().manual_seed(seed)
    maps, parts, neurons, noise = [], dict[str, float](), [], []
    before, by_layer = linear_maps(base), dict[int, dict[str, Any]]()
    for path, module in linear_maps(edited).items():
        by_layer.setdefault(int(path.partition(".")[0]), {})[path] = module
    for layer, block in enumerate(decoder_blocks(edited)):
        of_mlp = {id(module) for module in mlp_maps(block)}
        for path, module in by_layer[layer].items():
            part = MLP if id(module) in of_mlp else ATTENTION
            change = MapChange(layer, part, path, *_measured(module, before[path], (null_spaces or {}).get(path)))
            maps.append(change)
            parts[f"{layer}.{part}"] = parts.get(f"{layer}.{part}", 0.0) + change.squares
        found, drawn = _neurons(mlp_maps(block), mlp_maps(decoder_blocks(base)[layer]), generator)
        neurons.append(found)
        noise.append(drawn)
    inside = sum(change.squares for change in maps)
    return {
        "squares": whole,
        "relative": (whole / norm) ** 0.5 if norm else 0.0,
        "outside": max(whole - inside, 0.0) / whole if whole else 0.0,
        "parts": {name: squares / whole if whole else 0.0 for name, squares in parts.items()},
        "maps": [asdict(change) for change in maps],
        "neurons": _spread(np.concatenate(neurons)) | {"random": _spread(np.concatenate(noise))},
        **_null(maps),
    }


def neuron_squares(edited: "PreTrainedModel", base: "PreTrainedModel") -> np.ndarray:
    """(n,) the squared change of every MLP neuron, block after block."""
    pairs = zip(decoder_blocks(edited), decoder_blocks(base), strict=True)
    return np.concatenate([_squares(mlp_maps(one), mlp_maps(other)) for one, other in pairs])


def _measured(module: Any, before: Any, null_space: Tensor | None) -> tuple[Any, ...]:
    """What `MapChange` says after the path."""
    start = output_weight(before).float()
    change = output_weight(module).float() - start
    singular = torch.linalg.svdvals(change)
    energy = singular.square().cumsum(0)
    squares = change.square().sum().item()
    spectrum = [(energy[min(k, len(energy)) - 1] / energy[-1]).item() if squares else 0.0 for k in RANKS]
    null: tuple[float | None, float | None] = (None, None)
    if null_space is not None:
        null = (null_part(change, null_space), null_space.shape[1] / null_space.shape[0])
    relative = (squares / start.square().sum().item()) ** 0.5
    return squares, relative, _rank_of(singular), stable_rank(start), spectrum, *null


def _squares(maps: list[Any], before: list[Any]) -> np.ndarray:
    """(d_ff,) of one MLP: rows of its input projections, columns of its output projection."""
    *inputs, last = [
        output_weight(one).detach().float() - output_weight(other).detach().float()
        for one, other in zip(maps, before, strict=True)
    ]
    return _of_neurons(inputs, last)


def _of_neurons(inputs: list[Tensor], last: Tensor) -> np.ndarray:
    squares = last.square().sum(0)  # (d_ff,)
    for change in inputs:
        rows = change.square().sum(1)
        squares = squares + rows.reshape(-1, len(squares)).sum(0)  # a fused gate stands before the rest
    return squares.cpu().numpy().astype(np.float64)


def _neurons(maps: list[Any], before: list[Any], generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The squared change of each neuron, and that of noise of the same length in every map."""
    noise = []
    for one, other in zip(maps, before, strict=True):
        change = output_weight(one).float() - output_weight(other).float()
        drawn = torch.randn(change.shape, generator=generator).to(change.device)
        noise.append(drawn * (change.norm() / drawn.norm()))
    return _squares(maps, before), _of_neurons(noise[:-1], noise[-1])


def _spread(squares: np.ndarray) -> Row:
    return {"gini": gini(squares), "top": top_part(squares), "n": len(squares)}


def _null(maps: list[MapChange]) -> Row:
    known = [change for change in maps if change.null_part is not None and change.null_dimensions is not None]
    total = sum(change.squares for change in known)
    if not known:
        return {"null_part": None, "null_dimensions": None}
    weights = [change.squares / total if total else 1 / len(known) for change in known]
    return {
        name: sum(weight * getattr(change, name) for weight, change in zip(weights, known, strict=True))
        for name in ("null_part", "null_dimensions")
    }
