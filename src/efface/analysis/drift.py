"""How far have the hidden states moved, where, and on which text? Layer by layer, of two models that read the same.

    shift        ||h' - h|| / ||h|| of each token, the mean over toxic and over benign tokens
    direction    cosine of the mean shift of toxic tokens with a direction, such as that of toxicity
    components   the part of the squared shift in its first principal components, about zero: few, if it is one motion
    CKA          linear centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414) of toxic and of benign
                 tokens: 1 if the states are alike but for a rotation and a scale

All of it is streamed: CKA as the mean of unbiased HSIC over minibatches (Nguyen et al. 2021, arXiv 2010.15327), and
components from (d, d) sums. Memory does not grow with the number of texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from efface.data.batch import PairCollator
from efface.data.pair_tokens import TokenizedPair
from efface.files.jsonl import Row
from efface.model.blocks import accepted, capture_residuals
from efface.model.copies import eval_mode
from efface.model.devices import doubled
from efface.model.padding import position_ids
from efface.model.vocabulary import pad_id
from efface.terminal.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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


@torch.no_grad()
def drift(
    edited: "PreTrainedModel",
    base: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    pairs: Sequence[TokenizedPair],
    layers: Sequence[int],
    *,
    direction: np.ndarray | None = None,
    batch_size: int = 16,
    progress: bool = False,
) -> Row:
    """How far the states of `edited` are from those of `base` at the continuation tokens of `pairs`.

    Args:
        layers: numbers of blocks.
        direction: (d,) of length 1, of the residual stream after the last of `layers`, or any.

    Returns:
        layer (a string) -> for `toxic` and `benign` tokens `shift` and `cka` (null if too few), and for toxic ones
        `components` (rank -> part) and, with a direction, `along`.
    """
    collate = PairCollator(pad_id(processing_class, base))
    width = base.config.get_text_config(decoder=True).hidden_size
    sums = {layer: (_Sums(), _Sums()) for layer in layers}
    scatter = {layer: torch.zeros(width, width, dtype=torch.float64) for layer in layers}
    means = {layer: torch.zeros(width, dtype=torch.float64) for layer in layers}
    with eval_mode(base), eval_mode(edited):
        for start in track(range(0, len(pairs), batch_size), "drift", show=progress):
            batch = collate(pairs[start : start + batch_size])
            counted = batch["continuation_mask"]
            toxic = (torch.arange(len(counted)) >= batch["n_pairs"])[:, None].expand_as(counted)[counted]
            before, after = (_states(model, batch, layers, counted) for model in (base, edited))
            for layer in layers:
                for kind in (0, 1):
                    h, g = before[layer][toxic == bool(kind)], after[layer][toxic == bool(kind)]
                    _add(sums[layer][kind], h, g)
                shift = (after[layer] - before[layer])[toxic]
                scatter[layer] += shift.T @ shift
                means[layer] += shift.sum(0)
    found = {}
    for layer in layers:
        block: Row = {name: _told(one) for name, one in zip(CLASSES, sums[layer], strict=True)}
        block["toxic"]["components"] = _components(scatter[layer])
        if direction is not None:
            length = means[layer].norm().item()
            along = (means[layer] @ torch.as_tensor(direction, dtype=torch.float64)).item()
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
    batch = {"input_ids": torch.tensor([list(ids)]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    everything = torch.ones(1, len(ids), dtype=torch.bool)
    with eval_mode(base), eval_mode(edited):
        before, after = (_states(model, batch, layers, everything) for model in (base, edited))
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


def _states(
    model: "PreTrainedModel", batch: Mapping[str, Any], layers: Sequence[int], counted: Tensor
) -> dict[int, Tensor]:
    """layer -> (N, d) float64 on the CPU, at the counted tokens."""
    ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
    body = model.base_model
    with capture_residuals(model, layers) as residuals:
        body(**accepted(body, input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False))
    return {layer: doubled(residuals[layer].cpu()[counted]) for layer in layers}
