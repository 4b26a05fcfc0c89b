"""Is it told which file of a checkpoint is not the one that was written?"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efface.cli import main
from efface.errors import RunError, UserError
from efface.files import manifest
from efface.files.manifest import NAME, check_manifest, write_manifest
from efface.files.results import read_json, write_json

FILES = ("README.md", "config.json", "model.safetensors", "results.json", "without-interventions/model.safetensors")
OTHERS = ("checkpoint-2/model.safetensors", ".former-run/model.safetensors", "runs/events.json", "notes.pdf")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    for name in FILES + OTHERS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"this is {name}")
    write_manifest(tmp_path)
    return tmp_path


def test_what_makes_a_checkpoint_is_listed_and_nothing_else(checkpoint: Path) -> None:
    found = read_json(checkpoint / NAME)
    assert found["schema"] == 1 and set(found["files"]) == set(FILES)
    text = b"this is config.json"
    assert found["files"]["config.json"] == {"sha256": hashlib.sha256(text).hexdigest(), "bytes": len(text)}
    assert check_manifest(checkpoint) == len(FILES)
    write_manifest(checkpoint)
    assert read_json(checkpoint / NAME) == found  # which does not list itself


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing since"),
        (lambda folder: (folder / "config.json").write_text("this is Config.json"), "config.json has changed since"),
        (lambda folder: (folder / FILES[-1]).write_text("less"), f"{FILES[-1]} has changed since"),
        (lambda folder: (folder / "more.safetensors").write_text("x"), "more.safetensors was added since"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter_config.json was added since"),
        (lambda folder: (folder / NAME).unlink(), f"has no {NAME}: nothing says what its files were"),
    ],
)
def test_the_file_that_differs_is_named(change: Callable[[Path], Any], message: str, checkpoint: Path) -> None:
    change(checkpoint)
    with pytest.raises(UserError, match=message):
        check_manifest(checkpoint)


def test_what_is_no_part_of_the_model_may_come_and_change(checkpoint: Path) -> None:
    (checkpoint / "evaluation.json").write_text("{}")
    (checkpoint / OTHERS[0]).unlink()
    assert check_manifest(checkpoint) == len(FILES)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname"])
def test_a_manifest_names_nothing_outside_of_its_directory(name: str, checkpoint: Path) -> None:
    write_json(checkpoint / NAME, {"schema": 1, "files": {name: {"sha256": "", "bytes": 0}}})
    with pytest.raises(UserError, match="names a file outside of the directory"):
        check_manifest(checkpoint)


def test_a_file_that_cannot_be_read_is_told(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(manifest, "file_sha256", fail)
    with pytest.raises(RunError, match=f"{NAME} was not written: Input/output error"):
        write_manifest(checkpoint)


def test_the_command(checkpoint: Path, capsys: pytest.CaptureFixture[str], fails: Any) -> None:
    assert main(["models", "--verify", str(checkpoint)]) == 0
    assert capsys.readouterr().out == f"{checkpoint}: {len(FILES)} files, all as they were written\n"
    (checkpoint / "model.safetensors").write_text("another")
    assert "model.safetensors has changed" in fails(2, "models", "--verify", checkpoint)
