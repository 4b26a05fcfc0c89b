"""Are the results of every command told apart, and is what is none refused by name?"""

from pathlib import Path

import pytest
from attacked import attacked
from told import evaluation, write_attack, write_audit, write_edit

from efface.errors import UserError
from efface.files.results import write_json
from efface.report.sources import ATTACKED, AUDITED, EDIT, EVALUATED, MADE_BY, SHAPES, TRAINING, read_sources


def test_each_kind_is_known_by_its_form(tmp_path: Path) -> None:
    write_json(tmp_path / "e.json", evaluation(0.1))
    paths = [write_edit(tmp_path / "edit"), write_audit(tmp_path / "audit", attacked("relearn", 9))]
    paths += [tmp_path / "e.json", write_attack(tmp_path / "attack", {5: 0.2})]
    found = read_sources(paths)
    assert [(one.kind, one.name, one.inside) for one in found] == [
        (EDIT, "edit", False),
        (TRAINING, "model", True),
        (AUDITED, "audit", False),
        (EVALUATED, "e", False),
        (ATTACKED, "relearn", False),
    ]
    assert MADE_BY.keys() == SHAPES.keys()


def test_what_is_named_twice_is_read_once(tmp_path: Path) -> None:
    folder = write_edit(tmp_path / "edit")
    assert len(read_sources([folder, folder / "model", folder / "results.json"])) == 2


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "is not there. Pass the directory"),
        ({}, "has no form of results of efface. Pass what `efface demo`"),
        ({"toxicity": {}, "degeneration": {}}, "has no 'scorer'"),
        (
            {"budget": "quick", "models": 3, "controls": {}, "comparisons": [], "seeds": {"generations": 0}},
            "'models' must be a list",
        ),
        ({"what": "sweep"}, "has no 'config'"),
    ],
)
def test_what_holds_no_results_is_refused(content: object, why: str, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    if content is not None:
        folder.mkdir()
        write_json(folder / "results.json", content)
    with pytest.raises(UserError, match=why):
        read_sources([folder])


def test_nothing_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one directory"):
        read_sources([])
    with pytest.raises(UserError, match=r"holds no results\.json and no other results of efface"):
        read_sources([tmp_path])
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(UserError, match="holds no results of efface"):
        read_sources([tmp_path / "notes.json"])
