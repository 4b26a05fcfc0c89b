"""Does any command replace a file of the user's? Not one of its own without being told, and no other at all.

Of: commands/compare.py, commands/scorers.py, pairs/report.py
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model, tiny_tokenizer

from efface.cli import main
from efface.files.jsonl import read_jsonl
from efface.files.results import read_json, write_jsonl
from efface.model.save import save_model

SCORER = ["--scorer", "stubs:parity"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, prompts, held-out pairs and labelled texts."""
    folder = tmp_path_factory.mktemp("outputs")
    save_model(tiny_model("gpt2"), tiny_tokenizer(), folder / "model")
    write_jsonl(folder / "prompts.jsonl", [{"prompt": f"The town number {i}"} for i in range(12)])
    rows = [{"prompt": f"The town {i}", "chosen": " is old.", "rejected": " is a fool."} for i in range(8)]
    write_jsonl(folder / "rows.jsonl", rows)
    write_jsonl(folder / "labelled.jsonl", [{"text": "a" * i, "toxic": bool(i % 2)} for i in range(1, 9)])
    return folder


def evaluate(bench: Path, output: Path) -> list[str]:
    given = ["--prompts", str(bench / "prompts.jsonl"), "--max-new-tokens", "4", *SCORER]
    return ["evaluate", str(bench / "model"), "-o", str(output), *given]


def attack(bench: Path, output: Path) -> list[str]:
    given = ["--prompts", str(bench / "prompts.jsonl"), "--max-new-tokens", "4", "--rows", str(bench / "rows.jsonl")]
    return ["attack", "relearn", str(bench / "model"), "-o", str(output), *given, *SCORER, "--steps", "1"]


def pairs(bench: Path, output: Path) -> list[str]:
    lax = ["--max-perplexity-ratio", "1e9", "--max-new-tokens", "24", "--temperature", "1", "--samples", "6"]
    given = ["--prompts", str(bench / "prompts.jsonl"), "--toxic", "sample", "--limit", "2", *SCORER]
    return ["pairs", str(bench / "model"), "-o", str(output), *given, *lax]


def scorers(bench: Path, output: Path) -> list[str]:
    return ["scorers", "--check", str(bench / "labelled.jsonl"), "-o", str(output), *SCORER]


Command = Callable[[Path, Path], list[str]]
COMMANDS: dict[str, tuple[Command, str]] = {
    "pairs": (pairs, "x.jsonl"),
    "evaluate": (evaluate, "x.json"),
    "attack": (attack, "x.json"),
    "scorers": (scorers, "x.json"),
}


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_result_is_replaced_with_overwrite_alone(name: str, bench: Path, fails: Any, tmp_path: Path) -> None:
    command, file = COMMANDS[name]
    argv = command(bench, tmp_path / file)
    assert main(argv) == 0
    found = contents(tmp_path)
    assert "already holds" in (line := fails(2, *argv)) and "--overwrite" in line
    assert contents(tmp_path) == found
    assert main([*argv, "--overwrite"]) == 0
    assert contents(tmp_path).keys() == found.keys()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("given", [[], ["--overwrite"]])
def test_no_other_file_is_replaced_at_all(
    name: str, given: list[str], bench: Path, fails: Any, tmp_path: Path
) -> None:
    command, file = COMMANDS[name]
    theirs = tmp_path / file
    shutil.copyfile(bench / "rows.jsonl", theirs)
    found = contents(tmp_path)
    line = fails(2, *command(bench, theirs), *given)
    assert str(theirs) in line and "left alone" in line
    assert contents(tmp_path) == found


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("pairs", "x.meta.json"),
        ("evaluate", "x.generations.jsonl"),
        ("evaluate", "x.utility.jsonl"),
        ("attack", "x.generations.jsonl"),
    ],
)
def test_nor_is_one_that_would_be_written_beside(
    name: str, beside: str, bench: Path, fails: Any, tmp_path: Path
) -> None:
    command, file = COMMANDS[name]
    (tmp_path / beside).write_text(json.dumps({"mine": 1}))
    assert f"{beside} is there" in fails(2, *command(bench, tmp_path / file), "--overwrite")
    assert contents(tmp_path) == {beside: '{"mine": 1}'}


def test_resume_takes_what_is_whole_and_the_same(bench: Path, fails: Any, tmp_path: Path, capsys: Any) -> None:
    for command, file in (COMMANDS["pairs"], COMMANDS["attack"]):
        argv = command(bench, tmp_path / file)
        assert main(argv) == 0
        found = contents(tmp_path)
        printed = capsys.readouterr().out
        assert main([*argv, "--resume"]) == 0
        assert contents(tmp_path) == found  # times and all
        assert capsys.readouterr().out == printed
        assert "other settings (" in fails(2, *argv, "--resume", "--seed", "1")
        assert contents(tmp_path) == found


def test_pairs_that_somebody_has_changed_are_his(bench: Path, fails: Any, tmp_path: Path) -> None:
    argv = pairs(bench, tmp_path / "x.jsonl")
    assert main(argv) == 0
    rows = read_jsonl(tmp_path / "x.jsonl")
    for theirs in (rows[:1], [rows[0], rows[1] | {"chosen": " is fine."}]):
        write_jsonl(tmp_path / "x.jsonl", theirs)
        assert "left alone" in fails(2, *argv, "--overwrite")
        assert read_jsonl(tmp_path / "x.jsonl") == theirs


def test_an_evaluation_that_was_interrupted_goes_on(bench: Path, tmp_path: Path) -> None:
    argv = evaluate(bench, tmp_path / "x.json")
    assert main(argv) == 0
    whole = read_json(tmp_path / "x.json")
    (tmp_path / "x.json").unlink()
    assert main(argv) == 0
    assert read_json(tmp_path / "x.json") == whole
