"""Is a model that several results speak of one, with all that is known of it?

Of: report/evidence.py
"""

from pathlib import Path

import pytest
from attacked import attacked, unmade
from told import evaluation, write_attack, write_audit, write_edit

from efface.files.results import write_json
from efface.report.evidence import the_base
from efface.report.gather import gather
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
    assert the_base([edited, base], edited.source) is base


def test_a_point_that_wrecked_the_model_is_no_point(tmp_path: Path) -> None:
    folder = write_attack(tmp_path, {5: 0.2, 10: 0.9})
    (source,) = read_sources([folder])
    found = {"left_out": ["steps 10, learning_rate 0.0001"]}
    (model,) = gather([Source(source.kind, source.name, source.file, source.result | {"found": found})])
    assert [point.steps for point in model.attempts[0].curve] == [5]


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
