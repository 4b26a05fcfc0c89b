"""Are the log-odds of a token those of the other groups alone?"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.analysis.token_odds import ALPHA, TokenOdds


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 9), st.integers(10, 60))
def test_log_odds_are_those_of_the_formula(seed: int, n_parts: int, tokens: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    labels, ids = generator.integers(0, 2, n), generator.integers(0, tokens, n) * 7
    parts = np.r_[np.arange(n_parts), generator.integers(0, n_parts, n - n_parts)]
    known = generator.permutation(n_parts)[: generator.integers(1, n_parts + 1)].tolist()
    found = TokenOdds(labels, ids, parts).log_odds(known)
    for state in range(n):
        rows = np.isin(parts, known) & (parts != parts[state])
        share = (labels[rows].sum() + 0.5) / (rows.sum() + 1)
        toxic, benign = ((ids[rows] == ids[state]) & (labels[rows] == label) for label in (1, 0))
        odds = (toxic.sum() + ALPHA * share) / (benign.sum() + ALPHA * (1 - share))
        assert found[state] == pytest.approx(np.log(odds) - np.log(share / (1 - share)), abs=1e-9)


def test_a_token_of_one_group_learns_nothing_from_itself() -> None:
    labels, ids, parts = np.array([0, 1, 0, 1, 1, 1]), np.array([5, 5, 5, 5, 9, 9]), np.array([0, 0, 1, 1, 2, 2])
    odds = TokenOdds(labels, ids, parts)
    assert (odds.log_odds([0, 1, 2])[4:] == 0).all()  # in training
    assert (odds.log_odds([0, 1])[4:] == 0).all()  # where it was never seen
    assert (odds.log_odds([2])[:4] == 0).all()
