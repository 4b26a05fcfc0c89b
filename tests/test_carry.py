"""Does what is packed of a sweep come back as it was, and nothing else with it?"""

from pathlib import Path
from typing import Any

import pytest
from unpackaged import script

from efface.errors import UserError


@pytest.fixture
def carry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    found = script("benchmarks/carry")
    monkeypatch.setattr(found, "KEPT", tmp_path / "packed")
    return found


def test_a_run_goes_on_from_what_was_packed(carry: Any, tmp_path: Path) -> None:
    run, other = tmp_path / "first" / "run", tmp_path / "second" / "run"
    files = {"arms/a/arm.json": "1", "kept/base/pairs/result.json": "2", "untouched/k.json": "3"}
    left = {"arms/a/model/config.json": "4", ".claims/a": "", "results.json.tmp": "5"}
    for path, text in (files | left).items():
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_text(text)
    assert "3 files" in carry.pack(run) and "nothing that is not packed" in carry.pack(run)
    (run / "arms/a/arm.json").write_text("6")
    assert "run-2.tar.xz: 1 files" in carry.pack(run)
    carry.unpack(other)
    there = {path.relative_to(other).as_posix(): path.read_text() for path in other.rglob("*") if path.is_file()}
    assert there == files | {"arms/a/arm.json": "6"}


def test_nothing_is_overwritten(carry: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match="holds no archive of 'run'"):
        carry.unpack(run)
    run.mkdir()
    (run / "a.json").write_text("1")
    carry.pack(run)
    (run / "a.json").write_text("2")
    with pytest.raises(UserError, match=r"holds other files than were packed, a\.json among them"):
        carry.unpack(run)
    assert (run / "a.json").read_text() == "2"


def test_a_run_whose_name_begins_alike_is_another(carry: Any, tmp_path: Path) -> None:
    for name in ("run", "run-hh"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.json").write_text(name)
        carry.pack(tmp_path / name)
    assert "nothing that is not packed" in carry.pack(tmp_path / "run")
    assert [file.name for file in carry.archives("run")] == ["run-1.tar.xz"]
    carry.unpack(tmp_path / "elsewhere" / "run")
    assert (tmp_path / "elsewhere" / "run" / "a.json").read_text() == "run"
