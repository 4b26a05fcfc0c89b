"""Which points of an attack count, which is the worst, and how soon is half of the toxicity back?"""

from typing import Any

import pytest
from blocks import blocks_of
from hypothesis import given
from hypothesis import strategies as st

from efface.attacks.lists import parse_numbers
from efface.attacks.measurement import Measurement
from efface.attacks.points import beyond_budget, half_of, recovery, within_budget, worst
from efface.errors import UserError


def point(steps: int, share: float, perplexity: float | None = None, mean: float | None = None) -> Measurement:
    return Measurement(blocks_of(share, mean, perplexity), [], {"steps": steps})


CURVE = [point(0, 0.1, 20.0), point(1, 0.2, 21.0), point(2, 0.9, 24.1), point(3, 0.3, 24.0)]


def test_a_point_counts_within_the_budget_alone() -> None:
    assert within_budget(CURVE, 0.2) == [CURVE[0], CURVE[1], CURVE[3]]
    assert beyond_budget(CURVE, 0.2) == ["steps 2"]
    assert within_budget(CURVE, 0.0) == CURVE[:1] and within_budget(CURVE, 1.0) == CURVE
    assert worst(within_budget(CURVE, 0.2)) is CURVE[3]


def test_points_without_perplexity_count() -> None:
    curve = [point(0, 0.1), point(1, 0.5)]
    assert within_budget(curve, 0.0) == curve
    assert within_budget([CURVE[0], point(1, 0.5)], 0.0)[1].share == 0.5


def test_the_worst_is_never_below_what_was_before() -> None:
    """It once was an attacked point wherever one counted: .2 here, though the attacker may do nothing and have .5."""
    lower = [point(0, 0.5), point(1, 0.2), point(2, 0.2, mean=0.3)]
    assert worst(lower) is lower[0]
    assert worst(lower[1:]) is lower[2]
    ties = [point(0, 0.0), point(1, 0.2), point(2, 0.2)]
    assert worst(ties) is ties[1]


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ("10,x", int, "steps='10,x': whole numbers are needed, separated by commas, as in 10,20"),
        ("1.5", int, "whole numbers are needed"),
        ("-1", int, "whole numbers are needed"),
        ("nan", float, "numbers are needed, separated by commas, as in 0.5,1"),
        ("inf,1", float, "numbers are needed"),
        ("", float, "numbers are needed"),
        ("0", int, "leaves nothing to do: name at least one above 0"),
    ],
)
def test_numbers_that_are_none(given: str, kind: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_numbers("steps", given, kind)


@given(st.sets(st.integers(1, 1000), min_size=1))
def test_numbers_come_back_ascending(values: set[int]) -> None:
    assert parse_numbers("steps", ",".join(map(str, [0, *values])), int) == sorted(values)


def test_recovery_by_hand() -> None:
    curve = [point(0, 0.0), point(10, 0.2), point(30, 0.6)]
    assert recovery(curve, "steps", 0.4) == {"half_at": 20.0, "area": pytest.approx((1.0 + 8.0) / 30)}
    assert recovery(curve, "steps", 0.0)["half_at"] == 0
    assert recovery(curve, "steps", 0.7)["half_at"] is None
    assert recovery(curve[:1], "steps", 0.1) == {"half_at": None, "area": None}


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0, 1))
def test_area_and_half_stay_within_the_curve(shares: list[float], level: float) -> None:
    curve = [point(10 * i, share) for i, share in enumerate(shares)]
    found = recovery(curve, "steps", level)
    assert min(shares) - 1e-9 <= found["area"] <= max(shares) + 1e-9
    assert (found["half_at"] is None) == (max(shares) < level)
    assert found["half_at"] is None or 0 <= found["half_at"] <= 10 * (len(shares) - 1)


def test_half_of_what() -> None:
    assert half_of(point(0, 0.5), CURVE) == {"share": 0.25, "of": "base"}
    assert half_of(None, CURVE) == {"share": 0.45, "of": "highest point"}
