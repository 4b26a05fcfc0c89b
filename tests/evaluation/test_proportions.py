"""Do the intervals of shares hold what they say, also at small shares and for several continuations of a prompt?"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.evaluation.comparison import compare, ratio_ci
from efface.evaluation.proportions import paired_interval, ratio_interval, share_interval, unpaired_interval, wilson
from efface.evaluation.toxicity import summarize

LEAST = 0.93
"""Of 95 % promised. Wilson's own interval goes down to .925 at single shares, as every interval of counts does."""
TIMES = 300
CELL = LEAST - 3 * math.sqrt(0.95 * 0.05 / TIMES)
"""What a single simulated setting may show by chance."""
SHARES = (0.01, 0.03, 0.1, 0.3)


def of(scores: np.ndarray, figure: str = "share") -> list[float]:
    return summarize(scores, scorer="s", decoding="d", resamples=200).ci95[figure]


def draw(generator: np.random.Generator, n: int, p: float, samples: int, within: float) -> np.ndarray:
    """(TIMES, n): shares of prompts whose own tendencies are beta with mean p; `within` is the correlation of two
    continuations of a prompt."""
    size = (1 - within) / within
    return generator.binomial(samples, generator.beta(p * size, (1 - p) * size, size=(TIMES, n))) / samples


def covers(intervals: list[tuple[float, float]], truth: float) -> float:
    return float(np.mean([low - 1e-12 <= truth <= high + 1e-12 for low, high in intervals]))


def test_nothing_seen_is_not_nothing_there() -> None:
    zeros = np.zeros((64, 1))
    assert of(zeros) == pytest.approx([0, 0.0566], abs=1e-4)  # Wilson; the bootstrap says [0, 0]
    assert of(1 - zeros) == pytest.approx([1 - 0.0566, 1], abs=1e-4)
    one = zeros.copy()
    one[0] = 1
    assert of(one) == pytest.approx([0.0028, 0.0833], abs=1e-4)
    # Continuations of a prompt may be all alike: four of each are no more than one.
    assert of(np.zeros((64, 4))) == of(zeros) == of(np.zeros((64, 4)), "mean")
    for figure in ("mean", "expected_maximum", "probability"):
        assert of(zeros, figure) == of(zeros)
    found = compare(zeros, zeros, "share")
    assert found.difference == 0 and found.ci95[0] < -0.03 and found.ci95[1] > 0.03
    some = (np.arange(64) < 16)[:, None].astype(float)
    assert compare(some, some, "probability").ci95 == found.ci95  # no prompt differs there either
    assert compare(some, some, "mean").ci95 == found.ci95
    assert ratio_ci(zeros, some).upper == pytest.approx(0.25, abs=0.05)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4).flatmap(lambda k: st.tuples(st.just(k), st.lists(st.integers(0, k), min_size=1, max_size=30)))
)
def test_an_interval_holds_its_estimate(drawn: tuple[int, list[int]]) -> None:
    samples, counts = drawn
    shares = np.array(counts) / samples
    low, high = share_interval(shares, samples)
    assert 0 <= low <= shares.mean() <= high <= 1 and low < high
    mirrored = share_interval(1 - shares, samples)
    if shares.mean() != 0.5:  # where neither kind is the rarer one
        assert mirrored == pytest.approx((1 - high, 1 - low))
    # Never narrower than of independent continuations, never wider than of one for each prompt.
    narrow, wide = wilson(shares.mean(), len(shares) * samples), wilson(shares.mean(), len(shares))
    assert wide[0] - 1e-9 <= low <= narrow[0] + 1e-9 and narrow[1] - 1e-9 <= high <= wide[1] + 1e-9
    differences = shares - shares[::-1]
    low, high = paired_interval(differences)
    assert -1 <= low < differences.mean() < high <= 1
    low, high = ratio_interval(np.stack([shares, np.ones(len(shares))], axis=1), (samples, 1))
    assert 0 <= low <= shares.mean() <= high


def test_differences_and_ratios_by_hand() -> None:
    # Newcombe 1998, table II: 56/70 - 48/80.
    assert unpaired_interval(0.8, wilson(0.8, 70), 0.6, wilson(0.6, 80)) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    # One prompt more by 1, three less, of 20: (2 - 4) / 22, and 22 more of no difference.
    differences = np.array([1.0] + [-1.0] * 3 + [0.0] * 16)
    half = 1.959964 * math.sqrt((6 / 22 - (2 / 22) ** 2) / 22)
    assert paired_interval(differences) == pytest.approx((-2 / 22 - half, -2 / 22 + half))
    assert ratio_interval(np.array([[1.0, 0.0], [0.0, 0.0]])) == (math.inf, math.inf)


@pytest.mark.parametrize("n", [64, 96, 128])
def test_one_continuation_is_covered(n: int) -> None:
    """Not simulated: summed over all counts."""
    for p in SHARES:
        covered = 0.0
        for k in range(n + 1):
            low, high = share_interval((np.arange(n) < k).astype(float))
            covered += math.comb(n, k) * p**k * (1 - p) ** (n - k) * (low <= p <= high)
        assert covered > 0.92, (p, covered)


def test_several_continuations_are_covered() -> None:
    generator, found = np.random.default_rng(0), {}
    for n in (64, 128):
        for p in SHARES:
            for samples in (2, 4):
                for within in (0.1, 0.6):
                    drawn = draw(generator, n, p, samples, within)
                    found[n, p, samples, within] = covers([share_interval(row, samples) for row in drawn], p)
    assert min(found.values()) > CELL, found
    for p in SHARES:
        assert np.mean([covered for key, covered in found.items() if key[1] == p]) > LEAST


def test_differences_and_ratios_are_covered() -> None:
    generator = np.random.default_rng(1)
    for samples in (1, 4):
        for p, q in ((0.01, 0.03), (0.03, 0.03), (0.03, 0.3), (0.1, 0.25)):
            tendency = draw(generator, 96, q, 1000, 0.4)  # of each prompt under the base; less of it when edited
            base, edited = (generator.binomial(samples, part) / samples for part in (tendency, tendency * p / q))
            found = covers([paired_interval(row) for row in edited - base], p - q)
            assert found > CELL, (samples, p, q, found)
            tables = np.stack([edited, base], axis=2)  # (TIMES, n, 2)
            found = covers([ratio_interval(table, (samples, samples)) for table in tables if table[:, 1].any()], p / q)
            assert found > CELL, (samples, p, q, found)
