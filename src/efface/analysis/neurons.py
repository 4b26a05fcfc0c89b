"""Which MLP neurons write along the toxicity direction, and what has an edit made of each of them?

A block adds W a + b to the residual stream, a (d_ff,) the *input* of the MLP's output projection: the activations, of
a gated MLP with the gate. So with v_i column i of W and w a direction of the residual stream, neuron i adds

    c_i = m_i <v_i, w>          m_i = mean of a_i over the tokens that are looked at

to the mean <h, w> after the last block (Lee et al. 2024, arXiv 2401.01967; Geva et al. 2021, arXiv 2012.14913). Where
an RMS norm with gain g follows the MLP (Gemma 2 and 3), v_i counts as g * v_i and a_i as a_i / rms, token by token:
the sum stays exact. A model that does anything else to it is refused (`mlp_check.py`). By how much an edit lowers
<h, w> is a sum over neurons of c_i - c'_i, and what attention, biases and the embedding do besides. Of what a neuron
does

    (m_i - m'_i) <v_i, w>       is what it fires less          ("stops firing")
    m'_i <v_i - v'_i, w>        is what its value has moved    ("moves")

Yang et al. 2025 (arXiv 2411.06424) divide the neurons by the signs of <v_i, w> and m_i, before the edit: most of what
DPO does is spread over all four groups, and toxic neurons in the narrow sense have 2.5 to 24 % of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from efface.analysis.mlp_check import check_writing, norm_factors
from efface.model.blocks import accepted, capture_residuals, decoder_blocks
from efface.model.copies import eval_mode
from efface.model.devices import doubled
from efface.model.families import NORMS_AFTER_MLP
from efface.model.padding import batches_by_length, pad_batch, position_ids
from efface.model.projections import gain_after, mlp_output_projection, output_weight
from efface.model.vocabulary import pad_id
from efface.terminal.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GROUPS = ("toxic, firing", "toxic, negative", "opposed, firing", "opposed, negative")
"""By the sign of <v_i, w>, and of m_i."""


@dataclass(frozen=True)
class Spoken:
    """A sequence of token ids, of which those from `start` on are looked at."""

    ids: list[int]
    start: int


@dataclass(frozen=True, eq=False)
class Activity:
    """What a model did, on average over the tokens that were looked at."""

    means: np.ndarray
    """(layers, d_ff) m_i."""
    state: np.ndarray
    """(d,) h after the last block."""
    n_tokens: int


@dataclass(frozen=True, eq=False)
class Writing:
    """What the neurons of a model write along a direction."""

    means: np.ndarray
    """(layers, d_ff) m_i."""
    along: np.ndarray
    """(layers, d_ff) <v_i, w>, w of length 1."""
    height: float
    """The mean of <h, w> after the last block."""

    @property
    def contributions(self) -> np.ndarray:
        """(layers, d_ff) c_i."""
        return self.means * self.along


@torch.no_grad()
def activity(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    spoken: Sequence[Spoken],
    *,
    batch_size: int = 16,
    exact: bool = True,
    progress: bool = False,
) -> Activity:
    """How strongly the neurons of all blocks fire at the tokens of `spoken`; memory does not grow with their number.

    Args:
        exact: refuse a model where c_i is not what neuron i adds (`check_writing`); False: neurons are only ranked.

    Raises:
        UserError: if a block has no MLP with one known output projection (a mixture of experts), or see `exact`.
    """
    if exact:
        check_writing(model)
    blocks = decoder_blocks(model)
    last = len(blocks) - 1
    widths = [output_weight(mlp_output_projection(block)).shape for block in blocks]
    sums = [torch.zeros(d_ff, dtype=torch.float64) for _, d_ff in widths]
    state, n_tokens = torch.zeros(widths[last][0], dtype=torch.float64), 0
    batches = batches_by_length(range(len(spoken)), lambda number: len(spoken[number].ids), batch_size)
    body = model.base_model
    with eval_mode(model):
        for chunk in track(batches, "neurons", show=progress):
            rows = [spoken[number] for number in chunk]
            ids, mask = pad_batch([row.ids for row in rows], pad_id(processing_class, model), model.device, left=False)
            starts = torch.tensor([row.start for row in rows], device=ids.device)[:, None]
            counted = mask.bool() & (torch.arange(ids.shape[1], device=ids.device) >= starts)  # (B, T)
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids(mask), "use_cache": False}
            handles = [
                hook for block, total in zip(blocks, sums, strict=True) for hook in _hooks(block, counted, total)
            ]
            try:
                with capture_residuals(model, [last]) as residuals:
                    body(**accepted(body, **inputs))
            finally:
                for handle in handles:
                    handle.remove()
            state += doubled(residuals[last][counted]).sum(0).cpu()
            n_tokens += int(counted.sum())
    return Activity(np.stack([total.numpy() for total in sums]) / n_tokens, (state / n_tokens).numpy(), n_tokens)


def writing(model: "PreTrainedModel", active: Activity, direction: np.ndarray) -> Writing:
    """What the neurons of `model` write along a direction (d,) of length 1, as strongly as they fire."""
    w = torch.as_tensor(direction, dtype=torch.float64)
    along = np.stack([(w @ values_of(block)).numpy() for block in decoder_blocks(model)])
    return Writing(active.means, along, float(active.state @ direction))


def values_of(block: Any) -> Tensor:
    """(d, d_ff) float64: what each neuron of the MLP of a block writes, as it comes out of a norm after it."""
    values = output_weight(mlp_output_projection(block)).detach().cpu().double()
    gain = gain_after(block)
    return values if gain is None else values * gain[:, None]


def _hooks(block: Any, counted: Tensor, total: Tensor) -> list[Any]:
    """Add the inputs of the output projection at the counted tokens to `total`, each as a norm after it scales it."""
    projection, given = mlp_output_projection(block), list[Tensor]()
    gain = gain_after(block)  # before there are hooks: it asks the norm itself
    names = [name for name in NORMS_AFTER_MLP if hasattr(block, name)]

    def keep(module: Any, args: tuple[Tensor, ...]) -> None:
        states = doubled(args[0].reshape(*counted.shape, -1)[counted])  # (N, d_ff)
        if names:
            given.append(states)
        else:
            total.add_(states.sum(0).cpu())

    def scale(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert gain is not None
        factor = norm_factors(args[0][counted], output[counted], gain)
        total.add_((factor * given.pop()).sum(0).cpu())

    handles = [projection.register_forward_pre_hook(keep)]
    return [*handles, *(getattr(block, name).register_forward_hook(scale) for name in names)]


@dataclass(frozen=True, eq=False)
class Change:
    """What an edit has made of the neurons, each number how much it lowers the mean of <h, w>."""

    fall: np.ndarray
    """(layers, d_ff) c_i - c'_i."""
    fires_less: np.ndarray
    """(layers, d_ff) the part of `fall` that is due to its activation."""
    moved: np.ndarray
    """(layers, d_ff) the part that is due to its value vector."""
    groups: np.ndarray
    """(layers, d_ff) which of GROUPS it was in before the edit."""
    drop: float
    """By how much <h, w> falls in all, whatever makes it fall."""

    @property
    def by_neurons(self) -> float:
        """The part of the drop that is due to MLP neurons; 0 if nothing falls."""
        return _part(self.fall.sum(), self.drop)


def compare_writing(base: Writing, edited: Writing) -> Change:
    """What of the fall of <h, w> from `base` to `edited` is due to which neuron; of the same tokens and direction."""
    groups = 2 * (base.along < 0) + (base.means < 0)
    return Change(
        fall=base.contributions - edited.contributions,
        fires_less=(base.means - edited.means) * base.along,
        moved=edited.means * (base.along - edited.along),
        groups=groups.astype(int),
        drop=base.height - edited.height,
    )


def cumulative(fall: np.ndarray, drop: float, ranks: Sequence[int]) -> list[float]:
    """What part of the drop the neurons have that lower <h, w> most, the first `rank` of them for each of `ranks`."""
    sums = np.cumsum(np.sort(fall.ravel())[::-1])
    return [_part(sums[min(rank, len(sums)) - 1], drop) for rank in ranks]


def random_fall(base: Writing, edited: Writing, lengths: np.ndarray, moved: np.ndarray, seed: int) -> np.ndarray:
    """(layers, d_ff) `Change.fall` if every neuron fired as it does and wrote a random direction: the control.

    A random direction of length l in d dimensions has about N(0, l^2 / d) along w; the value of the base and the
    change of the value are drawn apart.

    Args:
        lengths: (layers, d_ff) ||v_i|| / sqrt(d) of the base.
        moved: likewise of v'_i - v_i.
    """
    draw = np.random.default_rng(seed).standard_normal
    along = lengths * draw(lengths.shape)
    return base.means * along - edited.means * (along + moved * draw(moved.shape))


def lengths_of(model: "PreTrainedModel", base: "PreTrainedModel") -> tuple[np.ndarray, np.ndarray]:
    """What `random_fall` asks for: the lengths of the values of `base` and of how far those of `model` are from them,
    each (layers, d_ff), over sqrt(d)."""
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for block, start in zip(decoder_blocks(model), decoder_blocks(base), strict=True):
        values, before = values_of(block), values_of(start)
        for rows, vectors in zip(found, (before, values - before), strict=True):
            rows.append((vectors.norm(dim=0) / len(vectors) ** 0.5).numpy())
    return np.stack(found[0]), np.stack(found[1])


def _part(of: float, whole: float) -> float:
    return float(of / whole) if whole else 0.0
