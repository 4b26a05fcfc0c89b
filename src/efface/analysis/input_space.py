"""Which directions of its input does a linear map hardly ever see? The null space of ordinary text, map by map.

With C = E[x x^T] over the tokens of ordinary text, x the input of a map: the eigenvectors of C with the smallest
eigenvalues that hold 1 % of its trace together (AlphaEdit, arXiv 2410.02355, edits only there). What a change of the
weights does there changes ordinary text by as little; what it does elsewhere is paid for.

Blocks are read a few at a time, so that their covariances stay within a budget of memory, whatever the number of
texts.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface.data.tokens import bos_prefix
from efface.model.blocks import accepted
from efface.model.copies import eval_mode
from efface.model.padding import batches_by_length, max_positions, pad_batch, position_ids
from efface.model.projections import linear_maps, output_weight
from efface.model.vocabulary import pad_id
from efface.terminal.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REST = 0.01
"""The part of the trace that the null space holds."""
AT_ONCE = 2**28
"""Bytes of covariances that are held at once."""


@torch.no_grad()
def null_spaces(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    rest: float = REST,
    max_tokens: int = 128,
    batch_size: int = 16,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Path of each linear map of the blocks -> (d_in, k) float32, orthonormal: what `texts` hardly use of its input.

    Maps that read the same (q, k and v, gate and up) share one tensor. k is 0 where every direction is used.

    Args:
        rest: the part of the trace of the covariance that the null space may hold.
    """
    limit = max_positions(model)
    most = max_tokens if limit is None else min(max_tokens, limit)
    start = bos_prefix(processing_class)
    ids = [[*start, *processing_class(text, add_special_tokens=False)["input_ids"]][:most] for text in texts]
    ids = [one for one in ids if len(one) > len(start)]
    batches = batches_by_length(range(len(ids)), lambda number: len(ids[number]), batch_size)
    found: dict[str, Tensor] = {}
    with eval_mode(model):
        for paths in _groups(model):
            covariances: dict[str, Tensor] = {}
            same: dict[str, str] = {}
            for chunk in track(batches, "inputs of the maps", show=progress):
                rows = [ids[number] for number in chunk]
                inputs, mask = pad_batch(rows, pad_id(processing_class, model), model.device, left=False)
                _add(model, inputs, mask, paths, covariances, same)
            spaces = {path: _rest_of(covariance, rest) for path, covariance in covariances.items()}
            found |= {path: spaces[same.get(path, path)] for path in paths}
    return found


def null_part(change: Tensor, null_space: Tensor) -> float:
    """||dW N||_F^2 / ||dW||_F^2 for dW (d_out, d_in) and N (d_in, k), orthonormal; 0 of no change."""
    squares = change.square().sum().item()
    return (change @ null_space.to(change)).square().sum().item() / squares if squares else 0.0


def _rest_of(covariance: Tensor, rest: float) -> Tensor:
    values, axes = torch.linalg.eigh(covariance.cpu().double())  # ascending
    held = values.clamp_min(0).cumsum(0) / values.clamp_min(0).sum()
    return axes[:, held <= rest].float().cpu()


def _groups(model: Any) -> Iterator[list[str]]:
    """Paths of the maps, so many at once that their covariances fit."""
    group: list[str] = []
    size = 0
    for path, module in linear_maps(model).items():
        needed = 4 * output_weight(module).shape[1] ** 2
        if group and size + needed > AT_ONCE:
            yield group
            group, size = [], 0
        group.append(path)
        size += needed
    yield group


def _add(
    model: Any, ids: Tensor, mask: Tensor, paths: list[str], covariances: dict[str, Tensor], same: dict[str, str]
) -> None:
    """Add x x^T of a batch to the covariances; maps that were given the very same tensor are known as the first."""
    maps, counted = linear_maps(model), mask.bool()
    seen: list[tuple[Tensor, str]] = []

    def hook_for(path: str) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            first = next((other for given, other in seen if given is args[0]), None)
            if first is not None:
                same[path] = first
                return
            seen.append((args[0], path))
            states = args[0].reshape(*counted.shape, -1)[counted].float()  # (N, d_in)
            product = states.T @ states
            covariances[path] = covariances[path] + product if path in covariances else product

        return hook

    handles = [maps[path].register_forward_pre_hook(hook_for(path)) for path in paths]
    try:
        body = model.base_model
        body(**accepted(body, input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False))
    finally:
        for handle in handles:
            handle.remove()
