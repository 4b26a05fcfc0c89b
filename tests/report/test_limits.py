"""Is a limit held against what was measured, and is what nobody measured not met?"""

from pathlib import Path
from typing import Any

import pytest
from attacked import N, attacked, too_dear, unmade
from told import evaluation, write_attack, write_audit

from efface.errors import UserError
from efface.files.jsonl import Row
from efface.files.results import read_json, write_json
from efface.report.evidence import Known
from efface.report.gather import gather
from efface.report.limits import MET, METRICS, NOT_MEASURED, NOT_MET, parse_limits, rule
from efface.report.sources import read_sources

ATTACKED = ["attacks<=0.5", "weights<=0.5", "relearn<=0.5", "weights.upper<=0.5"]


def known(*paths: Path) -> list[Known]:
    return [one for one in gather(read_sources(paths)) if not one.base]


def verdict(limit: str, *paths: Path) -> str:
    (model,) = known(*paths)
    (ruling,) = rule(parse_limits([limit]), [model])
    assert ruling.met == (ruling.verdict == MET)
    return ruling.verdict


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    share = evaluation(0.1)
    second = {"second": share["toxicity"] | {"scorer": "second", "share": 0.2}}
    versus = {"model": "org/base", "judges": {}, "perplexity_ratio": 1.04, "utility": [], "not_compared": []}
    write_json(tmp_path / "e.json", share | {"judges": share["judges"] | second, "versus_baseline": versus})
    return tmp_path / "e.json"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("share<=0.2", MET),
        ("share <= 20 %", MET),
        ("share<=0.15", NOT_MET),  # by the second judge
        ("share.upper<=0.19", NOT_MET),
        ("share.upper<=1", MET),
        ("perplexity<=+5%", MET),
        ("perplexity<=+3%", NOT_MET),
        ("perplexity<=20", MET),
        ("perplexity<=19.5", NOT_MET),
        ("kl<=1", NOT_MEASURED),
        ("relearn<=1", NOT_MEASURED),
        ("attacks<=1", NOT_MEASURED),
        ("weights<=1", NOT_MEASURED),
    ],
)
def test_a_limit_on_an_evaluation(limit: str, expected: str, evaluated: Path) -> None:
    assert verdict(limit, evaluated) == expected


def test_gibberish_meets_no_limit_on_toxicity(tmp_path: Path) -> None:
    block = evaluation(0.0)
    write_json(tmp_path / "e.json", block | {"degeneration": block["degeneration"] | {"verdict": "degenerate"}})
    assert verdict("share<=0.5", tmp_path / "e.json") == NOT_MET
    assert verdict("perplexity<=50", tmp_path / "e.json") == MET
    folder = write_audit(tmp_path / "a", attacked("relearn", 0, 0), share=0.0)
    assert {verdict(limit, folder) for limit in ATTACKED} == {MET}
    result = read_json(folder / "results.json")
    result["models"][0]["evaluation"]["degeneration"]["verdict"] = "degenerate"
    write_json(folder / "results.json", result)
    assert {verdict(limit, folder) for limit in ATTACKED} == {NOT_MET}


def test_attacks_are_held_against_the_worst_of_them(tmp_path: Path) -> None:
    folder = write_audit(
        tmp_path / "a", attacked("relearn", 20), attacked("relearn-lora", 30), attacked("sampling", 8)
    )
    assert verdict(f"attacks<={31 / N}", folder) == MET and verdict(f"attacks<={29 / N}", folder) == NOT_MET
    assert verdict("relearn<=0.7", folder) == NOT_MET  # its variants are it too
    assert verdict("relearn-lora<=0.76", folder) == MET
    assert verdict("black box<=0.3", folder) == MET and verdict("weights<=0.3", folder) == NOT_MET
    assert verdict("gradients<=1", folder) == NOT_MEASURED


def test_an_attack_is_held_to_a_limit_by_the_end_of_its_interval_if_that_is_asked(tmp_path: Path) -> None:
    folder = write_audit(tmp_path / "a", attacked("relearn", 20), attacked("sampling", 8))
    (model,) = known(folder)
    ends = {one.attack: one.judged["ci95"][1] for one in model.attempts if one.judged is not None}
    assert 20 / N < ends["relearn"] - 0.01 < 1
    for name in ("attacks", "weights", "relearn"):
        assert verdict(f"{name}<={21 / N}", folder) == MET
        assert verdict(f"{name}.upper<={21 / N}", folder) == NOT_MET
        assert verdict(f"{name}.upper<={ends['relearn'] + 1e-6:.9f}", folder) == MET
    assert verdict(f"black box.upper<={ends['sampling'] + 1e-6:.9f}", folder) == MET
    assert verdict("gradients.upper<=1", folder) == NOT_MEASURED


def test_an_attack_that_failed_lets_no_limit_on_its_kind_be_met(tmp_path: Path) -> None:
    rows = attacked("relearn", 8), unmade("activation_addition", error="no room"), attacked("sampling", 8)
    folder = write_audit(tmp_path / "a", *rows)
    assert verdict("attacks<=0.9", folder) == NOT_MEASURED and verdict("attacks<=0.1", folder) == NOT_MET
    assert verdict("black box<=0.9", folder) == MET
    variant = write_audit(tmp_path / "c", attacked("relearn", 6), unmade("relearn-lora", error="no room"))
    assert verdict("relearn<=0.3", variant) == NOT_MEASURED and verdict("relearn<=0.1", variant) == NOT_MET
    skipped = write_audit(
        tmp_path / "b", attacked("relearn", 8), unmade("activation_addition", skipped="needs a base")
    )
    assert verdict("attacks<=0.9", skipped) == MET


def test_an_attack_that_goes_beyond_a_limit_where_nothing_counts_lets_no_worst_case_be_met(tmp_path: Path) -> None:
    folder = write_audit(tmp_path / "a", attacked("activation_addition", 5), too_dear("relearn", 38))
    assert verdict("weights<=0.3", folder) == verdict("attacks<=0.3", folder) == NOT_MEASURED
    assert verdict("relearn<=0.3", folder) == NOT_MEASURED and verdict("weights<=0.05", folder) == NOT_MET
    harmless = write_audit(tmp_path / "b", attacked("activation_addition", 5), too_dear("relearn", 6))
    assert verdict("weights<=0.3", harmless) == MET, "not even they go beyond it"
    variant = write_audit(tmp_path / "c", attacked("relearn", 6), too_dear("relearn-lora", 38))
    assert verdict("relearn<=0.3", variant) == NOT_MEASURED


def with_column(folder: Path, row: Row) -> Path:
    """An audit of one attack, and of it the worst case of its access."""
    write_audit(folder, row)
    result = read_json(folder / "results.json")
    column = {"judged": row["judged"], "apart": {}, "any_cost": None, "p_holm": 1.0}
    result["models"][0]["columns"] = {"weights": column}
    write_json(folder / "results.json", result)
    return folder


def test_what_several_results_say_of_a_model_counts_whichever_comes_first(tmp_path: Path) -> None:
    quick = with_column(tmp_path / "quick", attacked("relearn", 6))
    full = with_column(tmp_path / "full", attacked("relearn-lora", 36))
    assert verdict("weights<=0.3", quick) == MET and verdict("weights<=0.3", full) == NOT_MET
    assert verdict("weights<=0.3", quick, full) == verdict("weights<=0.3", full, quick) == NOT_MET
    alone = write_attack(tmp_path / "attack", {5: 0.5, 10: 0.75})
    assert verdict("weights<=0.3", quick, alone) == NOT_MET, "no audit made that one"
    assert verdict("weights<=0.9", quick, full, alone) == MET


def test_so_many_steps_are_withstood_only_by_a_curve_that_goes_so_far(tmp_path: Path) -> None:
    folder = write_attack(tmp_path, {5: 0.2, 10: 0.15, 20: 0.6})
    assert verdict("relearn:10<=0.2", folder) == MET, "the highest up to there"
    assert verdict("relearn:10<=0.15", folder) == NOT_MET and verdict("relearn:20<=0.5", folder) == NOT_MET
    assert verdict("relearn:40<=1", folder) == NOT_MEASURED


@pytest.mark.parametrize(
    ("limit", "why"),
    [
        ("share", "is none. Write METRIC<=NUMBER"),
        ("share<0.1", "is none"),
        ("share>=0.1", "is none"),
        ("share<=much", "is none"),
        ("harm<=0.1", "nothing measured is called 'harm'. There are: share, .*relearn"),
        ("share:20<=0.1", "share has no steps"),
        ("base<=0.1", "nothing measured is called 'base'"),
        ("kl.upper<=0.1", "kl has no interval here. Leave out .upper"),
        ("relearn.upper:20<=0.1", "a point of a curve has no interval here"),
    ],
)
def test_what_is_no_limit_is_refused(limit: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        parse_limits([limit])


def test_limits_may_be_given_together() -> None:
    given: list[Any] = ["share<=0.1, perplexity<=+3%", "kl<=5e-2"]
    assert [(one.metric, one.most, one.relative) for one in parse_limits(given)] == [
        ("share", 0.1, False),
        ("perplexity", 0.03, True),
        ("kl", 0.05, False),
    ]
    assert all(parse_limits([f"{metric}<=1"])[0].metric == metric for metric in METRICS)


def test_an_attack_that_was_interrupted_lets_no_limit_on_its_kind_be_met(tmp_path: Path) -> None:
    folder = write_audit(tmp_path / "a", attacked("relearn", 6), unmade("relearn-lora"), attacked("sampling", 8))
    assert verdict("relearn<=0.9", folder) == verdict("attacks<=0.9", folder) == NOT_MEASURED
    assert verdict("relearn<=0.1", folder) == NOT_MET and verdict("black box<=0.9", folder) == MET


def test_attacks_that_raise_no_control_either_let_no_limit_be_met(tmp_path: Path) -> None:
    rows, mute = [attacked("relearn", 4), attacked("sampling", 4)], [attacked("relearn", 4), attacked("sampling", 4)]
    folder = write_audit(tmp_path / "a", *rows, controls=mute)
    assert {verdict(limit, folder) for limit in ("attacks<=0.5", "weights<=0.5", "relearn<=0.5")} == {NOT_MEASURED}
    (model,) = known(folder)
    (ruling,) = rule(parse_limits(["attacks<=0.5"]), [model])
    assert "but relearn, sampling raised no control either" in ruling.found
    assert verdict("attacks<=0.05", folder) == NOT_MET
    diagnosed = write_audit(tmp_path / "c", *rows, attacked("merge", 4), controls=mute)
    assert verdict("attacks<=0.5", diagnosed) == NOT_MEASURED, "a diagnostic speaks for no worst case"
    proper = write_audit(tmp_path / "b", *rows, controls=[attacked("relearn", 40), mute[1]])
    assert verdict("attacks<=0.5", proper) == MET


@pytest.mark.parametrize("turned", [False, True])
def test_all_that_was_measured_of_a_checkpoint_counts(turned: bool, tmp_path: Path) -> None:
    for name, share in zip("ab", (0.6, 0.05) if turned else (0.05, 0.6), strict=True):
        write_json(tmp_path / f"{name}.json", evaluation(share))
    assert verdict("share<=0.1", tmp_path) == NOT_MET
    worse = evaluation(0.0)
    write_json(tmp_path / "c.json", worse | {"degeneration": worse["degeneration"] | {"verdict": "degenerate"}})
    assert verdict("share<=0.9", tmp_path) == NOT_MET


def test_where_there_is_no_model_no_limit_is_met() -> None:
    (ruling,) = rule(parse_limits(["share<=0.9"]), [])
    assert ruling.verdict == NOT_MEASURED and ruling.model == "no edited model"
    (ruling,) = rule(parse_limits(["share<=0.9"]), [], {"mine": "out of memory"})
    assert (ruling.verdict, ruling.model, ruling.found) == (NOT_MEASURED, "mine", "out of memory")
