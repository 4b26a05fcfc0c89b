"""How far have the hidden states moved, where, and on which text? Layer by layer, of two models that read the same.

    shift        ||h' - h|| / ||h|| of each token, the mean over toxic and over benign tokens
    direction    cosine of the mean shift of toxic tokens with a direction, such as that of toxicity
    components   the part of the squared shift in its first principal components, about zero: few, if it is one motion
    CKA          linear centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414) of toxic and of benign
                 tokens: 1 if the states are alike but for a rotation and a scale

CKA is the mean of unbiased HSIC over minibatches (Nguyen et al. 2021, arXiv 2010.15327), components are of (d, d)
sums: beside the states that it is given nothing grows with the number of texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from efface.analysis.states import TokenStates
from efface.files.jsonl import Row
from efface.model.blocks import accepted, capture_residuals
from efface.model.copies import eval_mode
from efface.model.devices import doubled

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPONENTS = (1, 2, 4, 8)
LEAST = 4
"""Tokens of a class in a minibatch, for an unbiased HSIC."""
TINY = 1e-12
CLASSES = ("benign", "toxic")


@dataclass
class _Sums:
    """Of one layer and one class of tokens."""

    n: int = 0
    relative: float = 0.0
    hsic: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])


def drift(
    edited: Mapping[int, TokenStates],
    base: Mapping[int, TokenStates],
    *,
    direction: np.ndarray | None = None,
    at_once: int = 16,
) -> Row:
    """How far the states of an edited model are from those of its base, at the same tokens of the same pairs.

    Args:
        edited, base: layer -> states, of `token_states`.
        direction: (d,) of length 1, of the residual stream after the last of the layers, or any.
        at_once: pairs in a minibatch of the CKA.

    Returns:
        layer (a string) -> for `toxic` and `benign` tokens `shift` and `cka` (null if too few), and for toxic ones
        `components` (rank -> part) and, with a direction, `along`.
    """
    found = {}
    for layer, before in base.items():
        after, width = edited[layer], before.hidden.shape[1]
        sums, scatter = (_Sums(), _Sums()), torch.zeros(width, width, dtype=torch.float64)
        mean = torch.zeros(width, dtype=torch.float64)
        for first in range(0, int(before.pairs.max()) + 1, at_once):
            chunk = (before.pairs >= first) & (before.pairs < first + at_once)
            h, g = (doubled(torch.from_numpy(states.hidden[chunk])) for states in (before, after))
            toxic = torch.from_numpy(before.labels[chunk] == 1)
            for one, which in zip(sums, (~toxic, toxic), strict=True):
                _add(one, h[which], g[which])
            shift = (g - h)[toxic]
            scatter += shift.T @ shift
            mean += shift.sum(0)
        block: Row = {name: _told(one) for name, one in zip(CLASSES, sums, strict=True)}
        block["toxic"]["components"] = _components(scatter)
        if direction is not None:
            length = mean.norm().item()
            along = (mean @ torch.as_tensor(direction, dtype=torch.float64)).item()
            block["toxic"]["along"] = along / length if length > TINY else None
        found[str(layer)] = block
    return found


@torch.no_grad()
def token_shifts(
    edited: "PreTrainedModel",
    base: "PreTrainedModel",
    ids: Sequence[int],
    layers: Sequence[int],
) -> np.ndarray:
    """(layers, tokens) ||h' - h|| / ||h|| of one text, for a picture."""
    with eval_mode(base), eval_mode(edited):
        before, after = (_states(model, ids, layers) for model in (base, edited))
    rows = [(after[layer] - before[layer]).norm(dim=1) / before[layer].norm(dim=1).clamp_min(TINY) for layer in layers]
    return torch.stack(rows).numpy()


def cka(one: Tensor, other: Tensor) -> float:
    """Linear CKA of two tables of states (n, d), (n, d'), by the unbiased HSIC; n of at least LEAST."""
    parts = hsic(one, other), hsic(one, one), hsic(other, other)
    return _ratio(parts)


def hsic(one: Tensor, other: Tensor) -> float:
    """The unbiased estimate of HSIC with linear kernels (Song et al. 2012, eq. 5) of (n, d) and (n, d')."""
    n = len(one)
    k, m = (doubled(table) @ doubled(table).T for table in (one, other))
    k, m = (kernel - kernel.diag().diag() for kernel in (k, m))
    row_k, row_m = k.sum(0), m.sum(0)
    total = (k * m).sum() + row_k.sum() * row_m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (row_k @ row_m)
    return (total / (n * (n - 3))).item()


def _ratio(parts: Sequence[float]) -> float:
    together, one, other = parts
    return together / (one * other) ** 0.5 if one > 0 and other > 0 else float("nan")


def _add(sums: _Sums, h: Tensor, g: Tensor) -> None:
    if not len(h):
        return
    sums.n += len(h)
    sums.relative += ((g - h).norm(dim=1) / h.norm(dim=1).clamp_min(TINY)).sum().item()
    if len(h) >= LEAST:
        for i, (one, other) in enumerate(((h, g), (h, h), (g, g))):
            sums.hsic[i] += hsic(one, other)


def _told(sums: _Sums) -> Row:
    ratio = _ratio(sums.hsic)
    return {
        "n": sums.n,
        "shift": sums.relative / sums.n if sums.n else None,
        "cka": ratio if np.isfinite(ratio) else None,
    }


def _components(scatter: Tensor) -> Row:
    values = torch.linalg.eigvalsh(scatter).flip(0).clamp_min(0)
    total = values.sum().item()
    return {str(k): (values[:k].sum() / total).item() if total > TINY else 0.0 for k in COMPONENTS}


def _states(model: "PreTrainedModel", ids: Sequence[int], layers: Sequence[int]) -> dict[int, Tensor]:
    """layer -> (tokens, d) float64 on the CPU."""
    row, body = torch.tensor([list(ids)], device=model.device), model.base_model
    with capture_residuals(model, layers) as residuals:
        body(**accepted(body, input_ids=row, attention_mask=torch.ones_like(row), use_cache=False))
    return {layer: doubled(residuals[layer][0].cpu()) for layer in layers}
