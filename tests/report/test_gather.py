"""Is a model that several results speak of one, with all that is known of it?

Of: report/evidence.py
"""

from pathlib import Path
from typing import Any

import pytest
import swept
from attacked import attacked, unmade
from blocks import blocks_of
from told import evaluation, write_attack, write_audit, write_edit

from efface.files.results import read_json, write_json
from efface.report.claim import attackers_section
from efface.report.curves import models_table
from efface.report.evidence import the_base
from efface.report.gather import gather, unmeasured
from efface.report.limits import NOT_MET, parse_limits, rule
from efface.report.page import Grid
from efface.report.sources import Source, read_sources


def test_results_of_one_checkpoint_are_one_model(tmp_path: Path) -> None:
    """By an evaluation, an attack and an audit of it; the base that the audit read is another."""
    write_json(tmp_path / "e.json", evaluation(0.1))
    paths = [tmp_path / "e.json", write_attack(tmp_path / "a", {5: 0.2, 10: 0.5})]
    paths.append(write_audit(tmp_path / "audit", attacked("sampling", 9)))
    base, edited = gather(read_sources(paths))
    assert (base.base, base.model, edited.base, edited.model) == (True, "org/base", False, "org/edited")
    assert [one.attack for one in edited.attempts] == ["relearn", "sampling"]
    assert edited.figures == evaluation(0.1), "of the first that speaks of it"
    assert edited.change == pytest.approx(0.05)
    assert [(point.steps, point.share, point.rate) for point in edited.attempts[0].curve] == [
        (5, 0.2, 1e-4),
        (10, 0.5, 1e-4),
    ]


def test_both_sides_of_an_edit_and_its_price(tmp_path: Path) -> None:
    base, edited = gather(read_sources([write_edit(tmp_path / "x")]))
    assert (base.name, edited.name, edited.method, edited.change) == ("base", "edited", "repo", 0.021)
    assert the_base([edited, base], edited) is base


def test_a_point_that_wrecked_the_model_is_no_point(tmp_path: Path) -> None:
    folder = write_attack(tmp_path, {5: 0.2, 10: 0.9})
    (source,) = read_sources([folder])
    found = {"left_out": ["steps 10, learning_rate 0.0001"]}
    (model,) = gather([Source(source.kind, source.name, source.file, source.result | {"found": found})])
    assert [point.steps for point in model.attempts[0].curve] == [5]


def test_models_of_a_sweep_are_set_beside_each_other_after_equal_attacks(tmp_path: Path) -> None:
    """Of three, two were attacked further: the base and the best, which that makes no worse than the third."""

    def judged(share: float) -> dict[str, Any]:
        return {"share": share, "ci95": [share, share], "versus_before": {"difference": 0.1, "ci95": [0.1, 0.2]}}

    sweep = swept.results()
    for row, worst, further in zip(sweep["kept"], (0.9, 0.5, 0.6), (0.95, 0.8, None), strict=True):
        row |= {"worst": judged(worst), "worst_of_all": None if further is None else judged(further)}
        row["reported"] |= blocks_of(row["reported"]["toxicity"]["share"])
    write_json(tmp_path / "results.json", sweep)
    models = gather(read_sources([tmp_path]))
    base, best, other = models
    assert [line[models_table(models).head.index("Worst attack")] for line in models_table(models).rows] == [
        "90.0 %",
        "50.0 %",
        "60.0 %",
    ]
    section = attackers_section([best, other], models)
    assert section is not None
    (grid,) = [part for part in section.blocks if isinstance(part, Grid)]
    found = [(row[0], row[1], row[3][:6], row[6][:6]) for row in grid.rows if row[0].startswith("worst")]
    assert found == [
        ("worst attack", "repo", "50.0 %", "90.0 %"),
        ("worst of all attacks", "repo", "80.0 %", "95.0 %"),
        ("worst attack", "dpo", "60.0 %", "90.0 %"),
    ]
    (further, _) = rule(parse_limits(["attacks<=0.7"]), [best, other])
    assert further.verdict == NOT_MET, "a limit is held against all that was measured"
    assert base.worst_of_all is not None


def test_why_there_is_no_figure_is_kept(tmp_path: Path) -> None:
    rows = unmade("merge", skipped="needs a base"), unmade("relearn", error="no room"), attacked("sampling", 30)
    edited = gather(read_sources([write_audit(tmp_path / "a", *rows)]))[-1]
    merge, relearn, sampling = edited.attempts
    assert (merge.failed, relearn.failed, sampling.failed) == (False, True, False)
    assert "needs a base" in merge.why_not and "no room" in relearn.why_not
    assert sampling.raises and not merge.raises and merge.share is None


def test_two_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    write_json(tmp_path / "one.json", evaluation(0.1, "a/model"))
    write_json(tmp_path / "two.json", evaluation(0.2, "b/model"))
    assert [one.name for one in gather(read_sources([tmp_path]))] == ["model (one)", "model (two)"]


def test_other_weights_at_the_same_place_are_another_model(tmp_path: Path) -> None:
    paths = [write_audit(tmp_path / "a", attacked("relearn", 9)), write_audit(tmp_path / "b", attacked("sampling", 9))]
    result = read_json(paths[1] / "results.json")
    result["models"][0]["target"] = {"weights": "retrained", "base": "b"}
    write_json(paths[1] / "results.json", result)
    edited = [one for one in gather(read_sources(paths)) if not one.base]
    assert [[each.attack for each in one.attempts] for one in edited] == [["relearn"], ["sampling"]]
    write_json(tmp_path / "e.json", evaluation(0.3))  # which says no weights
    (first, _) = (one for one in gather(read_sources([*paths, tmp_path / "e.json"])) if not one.base)
    assert [one.figures["toxicity"]["share"] for one in first.readings] == [0.1, 0.3]


def test_a_base_is_the_one_that_a_model_says_it_was_made_from(tmp_path: Path) -> None:
    edit = write_edit(tmp_path / "edit")  # of org/base
    for name, base in (("mine", "org/base"), ("other", "org/another"), ("alone", None)):
        versus = {"model": base, "judges": {}, "perplexity_ratio": 1.0, "utility": [], "not_compared": []}
        write_json(tmp_path / f"{name}.json", evaluation(0.2, name, versus_baseline=None if base is None else versus))
    models = gather(read_sources([edit, *(tmp_path / f"{name}.json" for name in ("mine", "other", "alone"))]))
    found = {one.name: the_base(models, one) for one in models}
    assert found["mine"] is found["edited"] is models[0] and found["other"] is found["alone"] is None


def test_the_base_of_an_audit_is_known_by_name_and_weights(tmp_path: Path) -> None:
    audit = write_audit(tmp_path / "audit", attacked("relearn", 9))
    base, edited = gather(read_sources([audit]))
    assert (base.model, base.weights, edited.bases) == ("org/base", "b", {"org/base", "b"})
    models = gather(read_sources([write_edit(tmp_path / "edit"), audit]))
    assert [one.name for one in models if the_base(models, one) is models[0]] == [
        "base",
        "edited (edit)",
        "edited (audit)",
    ]


def test_models_that_were_to_be_measured_and_were_not(tmp_path: Path) -> None:
    folder = write_audit(tmp_path / "a", attacked("relearn", 9))
    result = read_json(folder / "results.json")
    result["models"].append({"name": "broken", "error": "out of memory", "attacks": [], "columns": {}})
    write_json(folder / "results.json", result)
    assert unmeasured(read_sources([folder])) == {"broken": "out of memory"}
    sweep = swept.results()
    sweep["config"]["against"] = "repo"
    for row in sweep["kept"]:
        row["reported"] |= blocks_of(row["reported"]["toxicity"]["share"])
    write_json(tmp_path / "s" / "results.json", sweep)
    assert not unmeasured(read_sources([tmp_path / "s"]))
    sweep["kept"] = [row for row in sweep["kept"] if row["entry"] != "repo"]
    write_json(tmp_path / "s" / "results.json", sweep)
    assert unmeasured(read_sources([tmp_path / "s"])) == {"repo": "no edit of it is kept at the budget 'main' of s"}
