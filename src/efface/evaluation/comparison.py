"""How does an edited model differ from its base? On the same prompts and seeds, prompt by prompt.

For each figure of toxicity: the difference edited - base, its 95 % interval, paired by prompt (of shares by
`proportions`, of mean scores by a bootstrap), and p by a sign-flip permutation test. If neither model were the more
toxic one, a prompt's difference could as well have had the other sign: p is the share of all assignments of signs
whose mean difference is at least as far from zero. Up to EXACT prompts that differ, all assignments are counted; for
more, m are drawn, and p = (k + 1) / (m + 1) with the k that are as far from zero (Phipson and Smyth 2010).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from efface.evaluation.proportions import paired_interval, ratio_interval
from efface.evaluation.toxicity import SHARES, pair_by_prompt
from efface.evaluation.utility.comparison import UtilityDifference
from efface.files.shapes import INTERVAL, Each, Maybe, check_shape, fill
from efface.resampling import interval, resample_means

COMPARISON = {"edited": float, "base": float, "difference": float, "ci95": INTERVAL, "p": float}
VERSUS = {
    "model": Maybe(str),
    "judges": Each(Each(COMPARISON)),
    "perplexity_ratio": Maybe(float),
    "utility": [{"task": str, "metric": str, "base": float, "edited": float, "difference": float, "n": int}],
    "not_compared": [str],
}
"""The shape of the block `versus_baseline`."""
EXACT = 13  # 2^13 = 8,192 assignments of signs


@dataclass(frozen=True)
class Comparison:
    """One figure of two models on the same prompts."""

    edited: float
    base: float
    difference: float
    """edited - base: negative where the edit made the model less toxic."""
    ci95: list[float]
    """Of the difference, [lower, upper]."""
    p: float
    """Two-sided, of the sign-flip test."""

    def to_dict(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, block: dict[str, Any]) -> "Comparison":
        """As it was written to JSON."""
        return fill(cls, block)


Comparisons = dict[str, dict[str, Comparison]]
"""Judge -> figure -> how two models compare by it."""


@dataclass
class Versus:
    """The block `versus_baseline` of a result: an edited model against its baseline."""

    model: str | None
    """Of the baseline."""
    judges: Comparisons
    """Of the judges of both."""
    perplexity_ratio: float | None
    """Edited over base; None where one lacks it or it was not measured alike."""
    utility: list[UtilityDifference]
    """Of each figure of each task."""
    not_compared: list[str]
    """What was not compared, and why, in words."""

    def to_dict(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, block: dict[str, Any]) -> "Versus":
        """As it was written to JSON. Raises UserError if it is no such block."""
        check_shape(block, VERSUS, "the block 'versus_baseline'")
        return cls(
            model=block.get("model"),
            judges=read_comparisons(block["judges"]),
            perplexity_ratio=block.get("perplexity_ratio"),
            utility=[UtilityDifference.from_dict(item) for item in block["utility"]],
            not_compared=block["not_compared"],
        )


def read_comparisons(block: dict[str, Any]) -> Comparisons:
    """Comparisons by judge and figure, from JSON: `judges` of a `versus_baseline`, or a whole `versus_before`.

    Raises:
        UserError: if they are none.
    """
    check_shape(block, Each(Each(COMPARISON)), "the comparisons")
    return {
        judge: {figure: Comparison.from_dict(found) for figure, found in figures.items()}
        for judge, figures in block.items()
    }


def compare(
    edited: np.ndarray,
    base: np.ndarray,
    figure: str = "mean",
    *,
    resamples: int = 2000,
    permutations: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare `figure` of two models, prompt by prompt.

    Args:
        edited, base: (n_prompts, K) scores on the same prompts in the same order; K may differ.
        figure: one of `toxicity.FIGURES`.
        resamples: of the bootstrap, which mean scores have.
        permutations: drawn where there are too many to count.

    Raises:
        UserError: if the two do not have the same prompts, or there is no such figure.
    """
    table = pair_by_prompt(edited, base, figure)  # (n, 2)
    differences = table[:, 0] - table[:, 1]  # (n,)
    ends = None
    if figure not in SHARES and differences.any():  # of none a bootstrap would say [0, 0]
        ends = interval(differences[:, None], resamples=resamples, seed=seed)[:, 0].tolist()
    return compare_shares(table[:, 0], table[:, 1], ci95=ends, permutations=permutations, seed=seed)


def compare_shares(
    edited: np.ndarray,
    base: np.ndarray,
    *,
    ci95: list[float] | None = None,
    permutations: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare what each prompt contributes under two models, (n,) each, such as shares of its continuations.

    Args:
        ci95: of the difference; None takes that of shares.
        permutations: drawn where there are too many to count.
    """
    differences = edited - base
    lower, upper = ci95 or paired_interval(differences)
    return Comparison(
        edited=float(edited.mean()),
        base=float(base.mean()),
        difference=float(differences.mean()),
        ci95=[lower, upper],
        p=sign_flip_p(differences, permutations=permutations, seed=seed),
    )


def sign_flip_p(differences: np.ndarray, *, permutations: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of the null hypothesis that the signs of `differences`, (n,), are those of fair coins."""
    nonzero = differences[differences != 0]  # the sign of a zero changes nothing
    n = len(nonzero)
    observed = abs(nonzero.sum()) - 1e-9 * np.abs(nonzero).sum()  # equal sums may round differently
    if n <= EXACT:
        flipped = (np.arange(2**n)[:, None] >> np.arange(n)) & 1  # (2^n, n)
        return float((np.abs((1 - 2 * flipped) @ nonzero) >= observed).mean())
    generator = np.random.default_rng(seed)
    block = max(1, 4_000_000 // n)  # bounds the memory
    as_far = 0
    for start in range(0, permutations, block):
        flipped = generator.integers(0, 2, size=(min(block, permutations - start), n), dtype=np.int8)  # (r, n)
        as_far += int((np.abs((1 - 2 * flipped) @ nonzero) >= observed).sum())
    return (as_far + 1) / (permutations + 1)


def holm(ps: Sequence[float]) -> list[float]:
    """The p of several tests, corrected for their number, in their order."""
    found, least = [0.0] * len(ps), 0.0
    for rank, which in enumerate(sorted(range(len(ps)), key=lambda one: ps[one])):
        least = max(least, min(1.0, (len(ps) - rank) * ps[which]))
        found[which] = least
    return found


class Ratio(NamedTuple):
    """A ratio and its 95 % interval. Infinite where the denominator is zero."""

    ratio: float
    lower: float
    upper: float

    def to_list(self) -> list[float | None]:
        """For JSON, which has no infinity: None stands for it."""
        return [value if math.isfinite(value) else None for value in self]


def ratio_ci(
    edited: np.ndarray, base: np.ndarray, *, figure: str = "share", resamples: int = 2000, seed: int = 0
) -> Ratio:
    """`figure` of `edited` over that of `base`, on the prompts they share, row by row.

    The interval of a ratio of shares is that of `proportions.ratio_interval`, any other a paired bootstrap over
    prompts. Where the base is not toxic at all (a share of 0) no reduction can be shown: the ratio counts as infinite,
    also for 0/0. Dropping such resamples instead would make the upper bound too good.

    Args:
        edited, base: (n_prompts, K) scores on the same prompts in the same order; K may differ.
        figure: one of FIGURES.

    Raises:
        UserError: if the two do not have the same prompts, or there is no such figure.
    """
    table = pair_by_prompt(edited, base, figure)  # (n, 2)
    if figure in SHARES:
        samples = (np.shape(edited)[1], np.shape(base)[1]) if figure == "share" else (1, 1)
        ratio = float(_divide(table[:, 0].mean(), table[:, 1].mean()))
        return Ratio(ratio, *ratio_interval(table, samples))
    means = resample_means(table, resamples, seed)  # (resamples, 2)
    ratios = _divide(means[:, 0], means[:, 1])
    return Ratio(
        ratio=float(_divide(table[:, 0].mean(), table[:, 1].mean())),
        # Of two neighbouring resamples the outer one: interpolating with an infinite one gives NaN.
        lower=float(np.percentile(ratios, 2.5, method="lower")),
        upper=float(np.percentile(ratios, 97.5, method="higher")),
    )


def _divide(numerator: Any, denominator: Any) -> np.ndarray:
    numerator, denominator = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    result = np.full(denominator.shape, np.inf)
    return np.divide(numerator, denominator, out=result, where=denominator > 0)
