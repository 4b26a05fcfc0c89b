"""How sure is a figure? Bootstraps over the units that are independent of each other: prompts, texts, pairs."""

from collections.abc import Iterator

import numpy as np

BLOCK = 2_000_000  # numbers held at once


def draw_resamples(n_units: int, resamples: int, seed: int, *, width: int | None = None) -> Iterator[np.ndarray]:
    """Blocks of (r, n_units): how often each unit is drawn, with replacement, in each of `resamples` resamples.

    The draws depend on `n_units` and `seed` alone, so figures of the same units can be subtracted.

    Args:
        width: numbers that the caller needs for each resample; None means `n_units`. Blocks bound the memory by it.
    """
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK // (width or n_units))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        yield generator.multinomial(n_units, np.full(n_units, 1 / n_units), size=size)


def interval(table: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """(2, columns): lower and upper end of the 95 % bootstrap interval of each column's mean over its rows."""
    return np.percentile(resample_means(table, resamples, seed), [2.5, 97.5], axis=0)


def resample_means(table: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples, columns): means over rows drawn with replacement."""
    return np.concatenate([times @ table / len(table) for times in draw_resamples(len(table), resamples, seed)])


class Ranking:
    """Scores of positive and negative cases in groups, sorted once for the AUCs of many resamples.

    Args:
        scores: (n,)
        positive: (n,) bool
        groups: (n,) the number of each case's group.
    """

    def __init__(self, scores: np.ndarray, positive: np.ndarray, groups: np.ndarray):
        order = np.argsort(scores, kind="stable")
        scores, self.positive, self.groups = scores[order], positive[order].astype(bool), groups[order]
        self.ties = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])  # where each run of equal scores begins

    def auc(self, times: np.ndarray) -> np.ndarray:
        """(r, groups) how often each group counts -> (r,) the chance that a positive case scores above a negative one.

        A tie counts half. NaN where a class is not there at all.
        """
        weights = times[:, self.groups]  # (r, n)
        positive, negative = (
            np.add.reduceat(weights * kind, self.ties, axis=1) for kind in (self.positive, ~self.positive)
        )  # (r, runs)
        below = negative.cumsum(1) - negative / 2
        pairs = positive.sum(1) * negative.sum(1)
        return np.divide((positive * below).sum(1), pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
