"""Is the largest multiple of an edit found that a budget allows, whatever the course of its costs?"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.errors import UserError
from efface.evaluation.budget import Cost, UtilityBounds, fit_as_it_is, fit_scale

BASE = 28.0
BOUNDS = UtilityBounds(kl=0.05, perplexity=0.03)


def smooth(kl_at_1: float, increase_at_1: float, power: float = 2.0):
    return lambda a: Cost(kl_at_1 * a**power, BASE * (1 + increase_at_1 * a**power))


@given(kl=st.floats(0.001, 2), increase=st.floats(-0.01, 1), power=st.floats(1, 3))
def test_the_largest_that_fits_is_found_in_a_few_readings(kl: float, increase: float, power: float) -> None:
    found = fit_scale(smooth(kl, increase, power), BASE, BOUNDS)
    loads = [kl / BOUNDS.kl, increase / BOUNDS.perplexity]
    right = min(2.0, max(max(loads), 1e-9) ** (-1 / power))
    if found.a is None:
        assert right < 0.05
        return
    assert found.a <= right * (1 + 1e-9)
    assert found.a == 2.0 == right or right - found.a <= 0.03 or max(loads) * found.a**power >= 0.98
    assert len(found.readings) <= 12
    binding = ["kl" if loads[0] > loads[1] else "perplexity"]
    assert found.binding == ["most"] if found.a == 2.0 else set(binding) <= set(found.binding)


@given(st.lists(st.floats(0, 0.2), min_size=21, max_size=21))
def test_whatever_the_course_what_is_returned_fits_and_so_does_all_that_was_read_below(course: list[float]) -> None:
    found = fit_scale(lambda a: Cost(course[min(int(a * 10), 20)], BASE), BASE, BOUNDS)
    fitting = [one.a for one in found.readings if one.fits]
    assert all(one.fits == (one.kl <= 0.05) for one in found.readings)
    if found.a is None:
        assert not fitting
    else:
        assert found.a == max(fitting)
        assert found.a == 2.0 or all(one.fits == (one.a <= found.a) for one in found.readings)


def test_an_edit_that_gets_cheaper_again_is_not_followed_beyond_what_failed() -> None:
    found = fit_scale(lambda a: Cost(0.1 if 0.5 < a < 1.8 else 0.01, BASE), BASE, BOUNDS)
    assert found.a is not None and 0.47 < found.a <= 0.5 and found.binding == ["kl"]


def test_broken_models_and_edits_that_cost_nothing() -> None:
    broken = fit_scale(lambda a: Cost(math.nan, math.inf) if a > 0.3 else Cost(0.01, BASE), BASE, BOUNDS)
    assert broken.a is not None and 0.25 < broken.a <= 0.3 and broken.binding == ["kl", "perplexity"]
    assert any(one.kl is None for one in broken.readings) and broken.to_dict()["readings"]
    free = fit_scale(lambda a: Cost(0.0, BASE * 0.99), BASE, BOUNDS, most=1.5)
    assert free.a == 1.5 and free.binding == ["most"]
    nothing = fit_scale(lambda a: Cost(9.0, 9 * BASE), BASE, BOUNDS)
    assert nothing.a is None and nothing.binding == ["kl", "perplexity"]


def test_the_guard_is_asked_last_and_seldom() -> None:
    asked: list[float] = []

    def guard(a: float) -> str:
        asked.append(a)
        return "ok" if a <= 0.4 else "degenerate"

    found = fit_scale(smooth(0.05, 0.0), BASE, BOUNDS, guard=guard)
    assert found.a is not None and 0.38 <= found.a <= 0.4 and found.binding == ["guard"] and len(asked) <= 8
    assert asked[0] == pytest.approx(1.0, abs=0.02) and {one.guard for one in found.readings} >= {"ok", "degenerate"}
    asked.clear()
    assert fit_scale(smooth(0.2, 0.0), BASE, BOUNDS, guard=lambda a: "ok").binding == ["kl"]
    never = fit_scale(smooth(0.05, 0.0), BASE, BOUNDS, guard=lambda a: "gibberish")
    assert never.a is None and never.binding == ["guard"]


@given(taken=st.floats(0.03, 2), kl=st.floats(0.001, 2), power=st.floats(1, 3))
def test_where_the_guard_binds_the_largest_it_takes_is_found_as_nearly(taken: float, kl: float, power: float) -> None:
    def guard(a: float) -> str:
        return "ok" if a <= taken else "gibberish"

    found = fit_scale(smooth(kl, 0.0, power), BASE, BOUNDS, guard=guard)
    fitting = fit_scale(smooth(kl, 0.0, power), BASE, BOUNDS)
    if fitting.a is None or fitting.a <= taken:
        assert found.a == fitting.a and found.binding == fitting.binding
        return
    assert found.a is not None and taken - 0.02 <= found.a <= taken and found.binding == ["guard"]
    larger = min((one for one in found.readings if one.a > found.a), key=lambda one: one.a)
    assert larger.a <= found.a + 0.02 and larger.exceeded == ["guard"]


def test_as_it_is_an_edit_fits_or_does_not() -> None:
    def cost(a: float) -> Cost:
        return Cost(0.04 * a, 10.2)

    taken = fit_as_it_is(cost, 10.0, UtilityBounds(0.05, 0.03))
    assert taken.a == 1.0 and taken.binding == ["most"] and len(taken.readings) == 1
    dear = fit_as_it_is(cost, 10.0, UtilityBounds(0.03, 0.01))
    assert dear.a is None and dear.binding == ["kl", "perplexity"]
    refused = fit_as_it_is(cost, 10.0, UtilityBounds(0.05, 0.03), guard=lambda a: "gibberish")
    assert refused.a is None and refused.binding == ["guard"]
    assert fit_as_it_is(cost, 10.0, UtilityBounds(0.05, 0.03), guard=lambda a: "ok").a == 1.0


def test_bad_bounds_are_refused() -> None:
    with pytest.raises(UserError, match="kl=-1"):
        UtilityBounds(kl=-1)
    with pytest.raises(UserError, match="most=0"):
        fit_scale(smooth(1, 1), BASE, most=0.0)
