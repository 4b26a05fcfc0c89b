"""Is a training that was read twice one curve, and are two trainings two?"""

from typing import Any

import pytest
from swept import kept, results

from efface.comparison.config import BASE, AttackPlan
from efface.comparison.curves import curves_of, steps_of
from efface.comparison.results import benchmark_rows, figures_of
from efface.comparison.table import attack_table, kept_table, markdown

SHORT = AttackPlan("pairs", "--data toxic --learning_rates 2e-5,1e-4 --steps 5,10")
LONG = AttackPlan("long", "--steps=40 --learning_rates=2e-5 --data toxic")


def attacked(**attacks: dict[str, dict[int, float]]) -> dict[str, Any]:
    """A kept model: attack -> rate -> step -> share."""
    found = {
        attack: {
            "curves": {
                rate: [{"steps": step, "share": share, "counted": True} for step, share in points.items()]
                for rate, points in rates.items()
            },
            "error": None,
        }
        for attack, rates in attacks.items()
    }
    return {"attacks": {**found, "gone": {"error": "no room"}}}


def test_an_attack_that_goes_on_is_one_curve() -> None:
    one = attacked(long={"2e-05": {0: 0.1, 40: 0.4}}, pairs={"2e-05": {0: 0.1, 5: 0.2}, "0.0001": {0: 0.1, 5: 0.3}})
    found = curves_of(one, [SHORT, LONG])
    assert {name: [point["steps"] for point in points] for name, points in found.items()} == {
        ("pairs", "2e-05"): [0, 5, 40],
        ("pairs", "0.0001"): [0, 5],
    }
    assert curves_of(one, {"every": [vars(SHORT)], "best": [vars(LONG)]}) == found
    assert ("long", "2e-05") in curves_of(one, []), "where plans are not known each attack is one of its own"


@pytest.mark.parametrize(
    "flags",
    [
        "--data labelled --learning_rates 2e-5 --steps 40",
        "--data toxic --learning_rates 2e-5 --steps 40 --optimizer sgd",
        "--data toxic --learning_rates 2e-5 --steps 40 --lora_r 16",
        "--data toxic --learning_rates 2e-5 --steps 40 --schedule linear",
    ],
)
def test_another_training_is_another_curve(flags: str) -> None:
    one = attacked(pairs={"2e-05": {0: 0.1, 5: 0.2}}, long={"2e-05": {0: 0.1, 40: 0.4}})
    assert set(curves_of(one, [SHORT, AttackPlan("long", flags)])) == {("pairs", "2e-05"), ("long", "2e-05")}
    linear = [AttackPlan(plan.name, plan.flags + " --schedule linear") for plan in (SHORT, LONG)]
    assert len(curves_of(one, linear)) == 2, "the steps of a schedule shape its rates"


def test_steps_are_those_of_any_model() -> None:
    short, long = (
        curves_of(attacked(pairs={"2e-05": points}), []) for points in ({0: 0.1, 5: 0.2}, {0: 0.1, 40: 0.2})
    )
    assert steps_of([short, long]) == {("pairs", "2e-05"): [0, 5, 40]}


def further(row: dict[str, Any], at_40: float) -> dict[str, Any]:
    """The same, attacked for longer."""
    points = [{"steps": 0, "share": row["reported"]["toxicity"]["share"]}, {"steps": 40, "share": at_40}]
    curve = [{**point, "counted": True, "perplexity": 28.0, "judges": {}} for point in points]
    longer = {"pairs-long": {"curves": {"2e-05": curve}, "error": None}}
    return row | {"attacks": row["attacks"] | longer, "worst_of_all": {"share": 0.7654, "ci95": [0.7, 0.8]}}


def test_figures_and_page_are_of_whole_curves() -> None:
    """Half-way is reached after the short attack; a straight line from the start of the long one would say 26."""
    base, row = further(kept(BASE, 0.2, 0.8, 0.2), 0.8), further(kept("repo", 0.02, 0.05, 0.05), 0.6)
    weak = kept("dpo", 0.04, 0.5, 0.2)
    plans = {
        "every": [{"name": "pairs", "flags": "--steps 10,20"}],
        "best": [{"name": "pairs-long", "flags": "--steps 40"}],
    }
    plans["best"].append({"name": "sgd", "flags": "--steps 40 --optimizer sgd"})
    attacks = [AttackPlan(**plan) for part in plans.values() for plan in part]
    figures = figures_of(row, base, [weak], attacks)["curves"]
    assert set(figures) == {"pairs 2e-05"}
    curve = figures["pairs 2e-05"]
    assert curve["last"] == 40 and curve["steps_to_half"] == pytest.approx(10 + 30 * 0.45 / 0.55)
    assert [point["steps"] for point in curve["points"]] == [0, 10, 40]
    assert figures_of(weak, base, [row], attacks)["curves"]["pairs 2e-05"]["last"] == 10
    apart = figures_of(row, base, [weak])["curves"]["pairs-long 2e-05"]  # of which half-way lies .18 above the start
    assert apart["steps_to_half"] == pytest.approx(40 * 0.18 / 0.28)

    sweep = results()
    sweep["config"]["attacks"] = plans
    sweep["kept"] = [base, row, weak]
    sweep["figures"]["main/repo-s0"]["curves"] = figures
    page = markdown(attack_table(sweep))
    assert "pairs-long" not in page and "| 0 steps | 10 steps | 20 steps | 40 steps |" in page
    assert "| dpo | 0 | main | 0.040 | 0.500 | 0.900* |  |" in page
    shares = {(one["method"], one["metric"]): one["value"] for one in benchmark_rows(sweep)}
    assert shares["repo", "main/pairs 2e-05/share at 40"] == 0.6 and shares["base", "base/worst of all attacks/share"]
    assert "worst of all attacks" in markdown(kept_table(sweep)) and "0.765 [0.700, 0.800]" in markdown(
        kept_table(sweep)
    )
    assert "worst of all" not in markdown(kept_table(results()))
