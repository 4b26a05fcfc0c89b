"""Does Inspect AI read the logs, and find them? And is it said in a line where it is not installed?"""

import builtins
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from efface.errors import UserError
from efface.export import prepare_export_dir
from efface.export.inspect_log import export_inspect
from efface.files.jsonl import read_jsonl
from efface.files.results import MARKER, prepare_output_dir, read_json


@pytest.fixture
def inspect_logs() -> Any:
    return pytest.importorskip("inspect_ai.log", reason="needs inspect_ai, the extra inspect")


def test_a_log_is_read_as_it_was_written(inspect_logs: Any, evaluations: Path, tmp_path: Path) -> None:
    written = export_inspect(evaluations, tmp_path / "out")
    listed = inspect_logs.list_eval_logs(str(tmp_path / "out"))
    assert sorted(Path(one.name).name for one in listed) == sorted(file.name for file in written)
    for name, file in zip(("base", "edited"), written, strict=True):
        log, result = inspect_logs.read_eval_log(str(file)), read_json(evaluations / f"{name}.json")
        rows = read_jsonl(evaluations / f"{name}.generations.jsonl")
        assert log.status == "success" and log.eval.config.epochs == 2 and log.eval.dataset.samples == 3
        assert [(one.id, one.epoch) for one in log.samples] == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]
        assert [one.input for one in log.samples] == [row["prompt"] for row in rows]
        assert [one.output.completion for one in log.samples] == [row["continuation"] for row in rows]
        for judge in ("half", "low"):
            assert [one.scores[judge].value for one in log.samples] == [row["scores"][judge] for row in rows]
        first = log.results.scores[0]
        assert first.name == "half" and first.metrics["share"].value == result["toxicity"]["share"]
        assert first.metrics["share"].metadata["ci95"] == result["toxicity"]["ci95"]["share"]
        assert log.eval.model_generate_config.max_tokens == 6
        assert log.results.metadata["degeneration"]["verdict"] == result["degeneration"]["verdict"]


def test_without_generations_there_is_no_log(
    monkeypatch: pytest.MonkeyPatch, evaluations: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("efface.export.inspect_log._check_installed", lambda: None)
    shutil.copy(evaluations / "base.json", tmp_path / "base.json")
    with pytest.raises(UserError, match="a log is of generations, and there is no .generations.jsonl beside it. Pass"):
        export_inspect(tmp_path / "base.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_but_earlier_logs_is_replaced(
    monkeypatch: pytest.MonkeyPatch, evaluations: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("efface.export.inspect_log._check_installed", lambda: None)
    prepare_output_dir(tmp_path)
    for marked, name in ((False, "model.safetensors"), (True, "2026-01-01T00-00-00+00-00_my-task_abc.json")):
        if marked:
            prepare_export_dir(tmp_path, "inspect", overwrite=True)
        (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(UserError, match="holds something else than an export as inspect. It is left alone"):
            export_inspect(evaluations, tmp_path, overwrite=True)
        assert (tmp_path / name).read_bytes() == b"mine"


def test_earlier_logs_are_replaced(monkeypatch: pytest.MonkeyPatch, evaluations: Path, tmp_path: Path) -> None:
    monkeypatch.setattr("efface.export.inspect_log._check_installed", lambda: None)
    log = SimpleNamespace(model_dump=lambda **_: {"version": 2})
    monkeypatch.setattr("efface.export.inspect_log.log_of", lambda *_: log)
    export_inspect(evaluations, tmp_path)
    written = export_inspect(evaluations, tmp_path, overwrite=True)
    assert sorted(written) == sorted(file for file in tmp_path.iterdir() if file.name != MARKER)


def test_without_inspect_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch, evaluations: Path, tmp_path: Path
) -> None:
    found = builtins.__import__

    def imported(name: str, *given: Any, **more: Any) -> Any:
        if name.startswith("inspect_ai"):
            raise ModuleNotFoundError("No module named 'inspect_ai'")
        return found(name, *given, **more)

    monkeypatch.delitem(sys.modules, "inspect_ai.log", raising=False)
    monkeypatch.setattr(builtins, "__import__", imported)
    with pytest.raises(UserError, match=r"needs the package inspect_ai, .*Install it: pip install efface\[inspect\]"):
        export_inspect(evaluations, tmp_path / "out")
    assert not (tmp_path / "out").exists()
