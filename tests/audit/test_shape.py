"""Is the result of an audit read back whole, and one that was changed refused by name?"""

import copy
from pathlib import Path
from typing import Any

import pytest
from attacked import attacked, unmade
from told import write_audit

from efface.audit.shape import check_audit
from efface.audit.table import audit_page
from efface.errors import UserError
from efface.files.results import read_json


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Any]:
    rows = attacked("relearn", 30), unmade("merge", skipped="needs a base"), unmade("prune")
    return read_json(write_audit(tmp_path, *rows) / "results.json")


def test_what_an_audit_writes_is_taken_as_it_is(results: dict[str, Any]) -> None:
    found = check_audit(copy.deepcopy(results), "here")
    assert found["models"][0]["attacks"][0] == results["models"][0]["attacks"][0]
    assert str(audit_page(found))


def test_what_an_interruption_has_left_out_is_nothing(results: dict[str, Any]) -> None:
    for name in ("base_share", "p_holm", "published"):
        del results["models"][0]["attacks"][2][name]
    del results["seeds"], results["cannot_show"]
    found = check_audit(results, "here")
    assert found["models"][0]["attacks"][2]["p_holm"] is None and found["seeds"]["generations"] is None
    assert str(audit_page(found))


def test_a_model_that_was_only_begun_says_so(results: dict[str, Any]) -> None:
    results["models"].append({"name": "begun", "error": None, "attacks": [], "columns": {}})
    assert "begun, not audited: interrupted." in str(audit_page(check_audit(results, "here")))


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("judged", {"share": 1.0}, "'models\\[0\\].attacks\\[0\\].judged' has no"),
        ("found", None, "attack 'relearn': 'found' must be an object"),
        ("before", None, "attack 'relearn': 'before' must be an object"),
        ("access", 3, "access' must be a text"),
    ],
)
def test_what_was_changed_is_refused(name: str, value: Any, why: str, results: dict[str, Any]) -> None:
    results["models"][0]["attacks"][0][name] = value
    with pytest.raises(UserError, match=why):
        check_audit(results, "here")
