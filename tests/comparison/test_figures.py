"""Do the figures of a comparison mean what they are called?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.comparison.figures import (
    as_curve,
    barrier,
    crossing,
    ratio_of_drops,
    steps_to_base,
    steps_to_half,
    surviving_part,
    trainability,
)

shares = st.lists(st.floats(0, 1), min_size=4, max_size=4)
STEPS = [0, 5, 10, 20]


def test_ratio_of_drops_is_against_the_best_other() -> None:
    assert ratio_of_drops(0.4, [0.1, 0.2]) == 2 and ratio_of_drops(0.2, [0.4]) == 0.5
    assert ratio_of_drops(0.4, []) is None and ratio_of_drops(0.4, [0.0, -0.1]) is None


@given(shares, st.floats(0, 1))
def test_a_crossing_lies_on_the_line_between_the_points(found: list[float], level: float) -> None:
    at = steps_to_base(dict(zip(STEPS, found, strict=True)), level)
    if at is None:
        assert max(found) < level
        return
    right = next(i for i, share in enumerate(found) if share >= level)
    assert STEPS[max(right - 1, 0)] <= at <= STEPS[right] + 1e-9
    if right:
        part = (at - STEPS[right - 1]) / (STEPS[right] - STEPS[right - 1])
        assert found[right - 1] + part * (found[right] - found[right - 1]) == pytest.approx(level)


@given(shares, shares, st.floats(0, 0.5))
def test_a_stronger_defence_takes_no_fewer_steps(found: list[float], base: list[float], less: float) -> None:
    weak, base_curve = dict(zip(STEPS, found, strict=True)), dict(zip(STEPS, base, strict=True))
    strong = {step: share - less for step, share in weak.items()}
    for figure in (lambda one: steps_to_base(one, base[0]), lambda one: steps_to_half(one, base_curve)):
        weaker, stronger = figure(weak), figure(strong)
        assert stronger is None or (weaker is not None and weaker <= stronger + 1e-9)


def test_the_half_way_level_rises_with_the_attack() -> None:
    base = {0: 0.04, 10: 0.84, 20: 0.84}
    assert steps_to_half({0: 0.0, 10: 0.22, 20: 0.66}, base) == pytest.approx(15)  # at .44
    assert steps_to_half({0: 0.0, 10: 0.1, 20: 0.2}, base) is None
    assert steps_to_half(base, base) == 0  # the base itself stands at the level before the attack
    assert steps_to_half({0: 0.0, 10: 0.5}, {0: 0.04, 10: 0.03}) is None  # an attack that does not move the base
    assert steps_to_half({0: 0.0, 7: 0.9, 10: 0.22, 20: 0.66}, base) == pytest.approx(15)  # 7 was not measured
    assert crossing([0], [0.1], [0.2]) is None


def test_surviving_parts_and_trainability() -> None:
    assert surviving_part(0.2, 0.14) == pytest.approx(0.7) and surviving_part(0.0, 0.1) is None
    assert trainability([3.0, 2.8, 2.5], [2.9, 2.4]) == pytest.approx(1.0)
    assert trainability([3.0, 3.1], [2.9, 2.4]) == pytest.approx(-0.2) and trainability([3.0], [2.0, 2.1]) is None


@given(shares, st.floats(-3, 3), st.floats(-3, 3))
def test_a_barrier_is_what_stands_above_the_straight_line(found: list[float], slope: float, height: float) -> None:
    places = [0.0, 0.3, 0.6, 1.0]
    tilted = [loss + height + slope * place for loss, place in zip(found, places, strict=True)]
    assert barrier(places, tilted) == pytest.approx(barrier(places, found), abs=1e-9) and barrier(places, found) >= 0
    assert barrier([0.0, 0.5, 1.0], [1.0, 2.5, 2.0]) == 1.0 and barrier([0.0, 0.5, 1.0], [1.0, 0.0, 2.0]) == 0


def test_as_curve() -> None:
    assert as_curve([{"steps": 0, "share": 0.1}, {"steps": 5, "share": 0.2}]) == {0: 0.1, 5: 0.2}
