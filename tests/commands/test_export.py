"""Does `efface export` find its formats, write where it is told, and refuse in a line what it cannot?"""

from pathlib import Path
from typing import Any

import pytest
from blocks import blocks_of

from efface.cli import main
from efface.export import FORMATS, load_format
from efface.files.results import read_json, write_json


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    stamp = {"versions": {"efface": "0.1.0"}}
    write_json(tmp_path / "x.json", {"model": "m\x1b[31m", "environment": stamp} | blocks_of(0.5, perplexity=20.0))
    return tmp_path / "x.json"


def test_every_format_is_a_function_that_says_what_it_does() -> None:
    for name in FORMATS:
        export = load_format(name)
        assert callable(export) and export.__doc__ and {"directory", "output"} <= set(export.__annotations__)


def test_the_command_says_what_it_has_written(
    evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["export", str(evaluation), "--format", "eee", "-o", str(tmp_path / "out")]
    assert main(argv) == 0
    (file,) = (tmp_path / "out").rglob("*-*.json")
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"written: {file}" and "\x1b" not in said
    assert read_json(file)["schema_version"] == "0.3.0"
    assert main([*argv, "--overwrite", "-q"]) == 0 and capsys.readouterr().out == ""


def test_what_cannot_be_exported_is_refused_in_a_line(evaluation: Path, fails: Any, tmp_path: Path) -> None:
    out = ["-o", tmp_path / "out"]
    line = fails(2, "export", evaluation, "--format", "csv", *out)
    assert (
        line
        == "format 'csv' is unknown. There are: eee, sarif, inspect, gguf; or package.module:function of your own."
    )
    line = fails(2, "export", tmp_path / "nosuch", "--format", "eee", *out)
    assert line.endswith("there is no such file or directory. Pass what an efface command has written.")
    assert "nothing was attacked" in fails(2, "export", evaluation, "--format", "sarif", *out)
    assert main(["export", str(evaluation), "--format", "eee", "-o", str(tmp_path / "out"), "-q"]) == 0
    assert "--overwrite" in fails(2, "export", evaluation, "--format", "eee", *out)


def test_a_format_of_a_third_party(evaluation: Path, tmp_path: Path) -> None:
    argv = ["export", str(evaluation), "--format", "efface.export.eee:export_eee", "-o", str(tmp_path / "out")]
    assert main([*argv, "-q"]) == 0 and (tmp_path / "out" / "data").is_dir()
