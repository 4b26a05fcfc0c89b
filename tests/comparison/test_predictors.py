"""Is a predictor that predicts found, and one that does not not?"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from efface.comparison.predictors import LEAST, NEVER, correlate, predictors_table, rank_correlation, spearman

ATTACK = "pairs 2e-05"


def results(distances: list[float], steps: list[float | None], *, moves: bool = True) -> dict[str, Any]:
    """A sweep of so many methods, with only what is read."""
    kept, figures = [], {}
    for number, (distance, step) in enumerate(zip(distances, steps, strict=True)):
        place = f"main/m{number}"
        reading = {"kl": 0.05, "increase": 0.01}
        kept.append({"entry": f"m{number}", "place": place, "budget": "main", "reading": reading})
        curve = {
            "steps_to_half": step,
            "moves_base": moves,
            "last": 20,
            "points": [{"steps": 20, "drop": float(number % 3)}],
        }
        figures[place] = {"distance": distance, "barrier": None, "drop": 0.1, "curves": {ATTACK: curve}}
    return {"main": "main", "kept": kept, "figures": figures}


def test_a_distance_that_says_how_long_it_lasts_is_found() -> None:
    """Who is never half-way back lasts longest of all."""
    distances = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    rows = correlate(results(distances, [2.0, 3.5, 4.0, 9.0, 12.0, None, None]))
    (found,) = [row for row in rows if row["predictor"] == "distance to the base" and row["outcome"].endswith("half")]
    assert found["rho"] > 0.95 and found["ci95"][0] > 0.5 and found["p"] < 0.01 and found["n"] == 7
    assert {row["predictor"] for row in rows} == {"distance to the base"}, "of the others all methods have the same"
    assert "+0.99" in str(predictors_table([found])) and "7 methods" in str(predictors_table([found]))


def test_what_says_nothing_has_zero_in_its_interval() -> None:
    draw = np.random.default_rng(0)
    found = rank_correlation(draw.random(12).tolist(), draw.random(12).tolist())
    assert found is not None and found["ci95"][0] < 0 < found["ci95"][1] and found["p"] > 0.05


def test_an_analysis_may_add_predictors() -> None:
    more = {f"m{number}": {"energy along the gradient": -float(number)} for number in range(6)}
    rows = correlate(results([1.0] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), more)
    (found,) = [row for row in rows if row["outcome"].endswith("half")]
    assert found["predictor"] == "energy along the gradient" and found["rho"] == pytest.approx(-1)


def test_of_few_methods_or_an_attack_that_moves_nothing_nothing_is_said() -> None:
    n = LEAST - 1
    assert correlate(results([float(i) for i in range(n)], [float(i) for i in range(n)])) == []
    assert correlate(results([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], moves=False)) == []
    assert rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None


def test_who_was_attacked_for_longer_has_not_lasted_less_for_that() -> None:
    """Of one the attack went on, and at 35 it was half-way back; of another the last points do not count."""
    sweep = results([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2.0, 4.0, 6.0, 8.0, None, 35.0])
    longer, shorter = (sweep["figures"][f"main/m{number}"]["curves"][ATTACK] for number in (5, 4))
    longer |= {"last": 80, "points": [{"steps": 20, "drop": 0.5}, {"steps": 80, "drop": 0.0}]}
    rows = {row["outcome"]: row for row in correlate(sweep) if row["predictor"] == "distance to the base"}
    assert rows[f"{ATTACK}: steps to half"]["rho"] == pytest.approx(spearman([1, 2, 3, 4, 5, 6], [2, 4, 6, 8, 99, 99]))
    assert rows[f"{ATTACK}: drop at 20 steps"]["n"] == 6 and f"{ATTACK}: drop at 80 steps" not in rows
    shorter["last"] = 7
    (half,) = [row for row in correlate(sweep) if row["outcome"].endswith("half")]
    assert half["rho"] == pytest.approx(spearman([1, 2, 3, 4, 5, 6], [2, 4, 6, 99, 99, 99]))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=9))
def test_it_is_spearmans(pairs: list[tuple[int, int]]) -> None:
    x, y = ([float(one) for one in side] for side in zip(*pairs, strict=True))
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    else:
        assert np.isnan(spearman(x, y))
    assert spearman([1.0, 2.0, 3.0], [1.0, NEVER, NEVER]) > 0.8
