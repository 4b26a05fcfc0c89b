"""Along which direction of the hidden states did an edit hide toxicity, and which tells toxic text from benign?

Of states at the continuation tokens of preference pairs, without outliers, after one block:

    base       mean over toxic tokens of (edited model - original)      Lucki et al. 2024, arXiv 2409.18025
    contrast   mean over toxic tokens - mean over benign ones           Arditi et al. 2024, arXiv 2406.11717
    pca        first right singular vector of the pairs' differences    Zou et al. 2023, arXiv 2310.01405
               (mean of the toxic side - mean of the benign side)

Only the first needs the original model. `centre` says where ordinary text lies along them.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from efface.analysis.directions import difference_of_means, unit
from efface.analysis.states import TokenStates, token_states
from efface.attacks.ablation import Centre
from efface.attacks.draw import as_measured, draw_at_most
from efface.attacks.target import Target
from efface.files.jsonl import Row
from efface.model.copies import eval_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
KINDS = ("base", "contrast", "pca")
NEGLIGIBLE = 1e-6
"""A direction shorter than this part of the median state is rounding: the models, or the classes, do not differ."""


def rows_of(target: Target, max_pairs: int) -> list[Row]:
    """The rows whose states are looked at: all, or `max_pairs` of them drawn under the seed if there are more."""
    return draw_at_most(target.rows, max_pairs, target.seed)


def states_of(
    model: "PreTrainedModel", target: Target, layers: Sequence[int], max_pairs: int, batch_size: int
) -> dict[int, TokenStates]:
    """Layer -> what `model` holds at the continuation tokens of the target's rows: the same for the same seed.

    The rows are in the template, if the target is measured there. A layer where a state is not finite has none: what
    can be tried elsewhere must not be lost over it.

    Args:
        max_pairs: if there are more, so many are drawn.
        batch_size: pairs at once.
    """
    rows = as_measured(target, rows_of(target, max_pairs))
    with eval_mode(model):
        found = token_states(
            model, target.processing_class, rows, layers, batch_size=batch_size, progress=target.progress
        )
    broken = [layer for layer, states in found.items() if not np.isfinite(states.hidden).all()]
    if broken:
        logger.warning(
            "blocks %s: a state is not finite, so nothing is tried there. The model is broken, or its dtype too "
            "small.",
            ", ".join(map(str, broken)),
        )
    return {layer: states for layer, states in found.items() if layer not in broken}


def direction(
    kind: str, edited: TokenStates, base: TokenStates | None = None, *, outlier_limit: float = 3.0
) -> np.ndarray | None:
    """(d,) float64 of length 1, or None if there is none: what is compared is the same.

    Args:
        kind: one of KINDS.
        edited: the states of the model under attack after one block.
        base: those of the original at the same tokens; only for "base".
        outlier_limit: see `inliers`.
    """
    if kind == "base":
        assert base is not None
        toxic = edited.labels == 1
        tables = edited.hidden[toxic], base.hidden[toxic], edited.hidden[toxic] - base.hidden[toxic]
        kept = inliers(*tables, limit=outlier_limit)
        found = tables[-1][kept].mean(0, dtype=np.float64)
    else:
        kept = usual(edited, outlier_limit)
        hidden, labels = edited.hidden[kept], edited.labels[kept]
        if kind == "contrast":
            found = difference_of_means(hidden, labels)
        else:
            differences = _pair_differences(hidden, labels, edited.pairs[kept])  # (pairs, d)
            _, singular, axes = np.linalg.svd(differences, full_matrices=False)
            found = singular[0] / np.sqrt(len(differences)) * axes[0]
    scale = np.median(np.linalg.norm(edited.hidden, axis=1))
    return unit(found) if np.linalg.norm(found) > NEGLIGIBLE * scale else None


def centre(edited: TokenStates, source: TokenStates, *, outlier_limit: float = 3.0) -> Centre:
    """The mean over the benign tokens of `source`, the edited model's states or the original's, without outliers.

    What counts as huge is the edited model's own: longer than `outlier_limit` times the median of the toxic or of the
    benign tokens, whichever is longer.
    """
    benign = source.hidden[source.labels == 0]
    norms = np.linalg.norm(edited.hidden, axis=1)
    return Centre(
        benign[inliers(benign, limit=outlier_limit)].mean(0, dtype=np.float64),
        outlier_limit * float(max(np.median(norms[edited.labels == label]) for label in (0, 1))),
    )


def usual(states: TokenStates, outlier_limit: float) -> np.ndarray:
    """(N,) bool: the toxic tokens that are no outliers among the toxic ones, and the benign among the benign."""
    kept = np.zeros(len(states.labels), dtype=bool)
    for side in (states.labels == 0, states.labels == 1):  # an edit may have made all toxic states large
        kept[side] = inliers(states.hidden[side], limit=outlier_limit)
    return kept


def inliers(*tables: np.ndarray, limit: float) -> np.ndarray:
    """(N,) bool: the rows whose norm in none of `tables`, each (N, d), is above `limit` times the table's median.

    What is left out are the few tokens with huge states that attention sinks and separators have in most models: one
    of them can outweigh all others in a mean. A table most of whose rows are zero leaves nothing out.
    """
    kept = np.ones(len(tables[0]), dtype=bool)
    for table in tables:
        norms = np.linalg.norm(table, axis=1)
        median = np.median(norms)
        kept &= (norms <= limit * median) | (median == 0)
    return kept


def _pair_differences(hidden: np.ndarray, labels: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(pairs, d) float64: the mean state of a pair's toxic tokens minus that of its benign ones, where it has both."""
    both = np.intersect1d(pairs[labels == 1], pairs[labels == 0])
    if not len(both):  # outliers, all of them
        return np.zeros((1, hidden.shape[1]))
    return np.stack([difference_of_means(hidden[pairs == pair], labels[pairs == pair]) for pair in both])
