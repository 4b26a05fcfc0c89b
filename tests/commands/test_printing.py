"""Is what a command prints a table on a terminal, plain text in a file, and little with --quiet?"""

import argparse
import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model, tiny_tokenizer

from efface.cli import main
from efface.commands.printing import sayer, show
from efface.model.save import save_model
from efface.terminal.table import Page, Table, plain

CODES = re.compile(r"\x1b\[[0-9;]*m")
TABLE = Table([("relearn", "failed (1)"), ("= weights", "0.10")], ("attack", "share"), notes=["it broke " * 20])
PAGE = Page(["## What attacks reach", TABLE])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(block: Any, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    show(block, file=stream)
    return stream.getvalue()


def words(text: str) -> list[str]:
    return CODES.sub("", text).replace("─", "").split()


def test_a_terminal_gets_colour_and_a_file_the_same_words_without(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal = printed(PAGE, Terminal(), monkeypatch)
    in_file = printed(PAGE, io.StringIO(), monkeypatch)
    assert "\x1b[1m" in on_terminal and "\x1b[31m" in on_terminal and "─" in on_terminal
    assert in_file.isascii() and "\x1b" not in in_file
    assert words(on_terminal) == words(in_file) == words(str(PAGE))
    for text in (on_terminal, in_file):
        assert max(map(len, CODES.sub("", text).splitlines())) <= 60


def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(PAGE, Terminal(), monkeypatch, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text) and words(text) == words(str(PAGE))
    assert "\x1b" not in printed(PAGE, Terminal(), monkeypatch, TERM="dumb")


def test_tables_on_a_terminal_are_laid_out_as_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Table([[f"cell {i} of a row" for i in range(9)]] * 2, [f"head {i}" for i in range(9)])
    lines = [line.rstrip() for line in CODES.sub("", printed(wide, Terminal(), monkeypatch)).splitlines()]
    assert [line for line in lines if not line.startswith("─")] == list(plain(wide, 60))


def test_a_line_is_not_broken_and_markup_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "written: " + "/a/long/path" * 20
    assert printed(line, Terminal(), monkeypatch) == line + "\n"
    assert "[red]x[/red] :smile:" in printed(Table([("[red]x[/red] :smile:", "1")]), Terminal(), monkeypatch)


def test_the_first_of_several_processes_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (printed(PAGE, io.StringIO(), monkeypatch, RANK=rank) for rank in "01")
    assert first and not second


def test_what_happens_is_not_said_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        sayer(argparse.Namespace(quiet=quiet))("work")
        sayer(argparse.Namespace(quiet=quiet), sys.stderr)("more")
        found = capsys.readouterr()
        assert (found.out, found.err) == (("", "") if quiet else ("work\n", "more\n"))


# Whole commands


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("printing")
    save_model(tiny_model("gpt2"), tiny_tokenizer(), folder / "model")
    row = {"prompt": "The town is", "chosen": " a quiet place", "rejected": " a place of fools"}
    for name, rows in {
        "pairs": [row | {"prompt": f"The town {i} is"} for i in range(8)],
        "prompts": [{"prompt": f"The town {i}"} for i in range(8)],
        "text": [{"text": "The history of the town is long. " * 9}],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(name: str, bench: Path, output: Path) -> list[str]:
    on = ["--prompts", str(bench / "prompts.jsonl"), "--scorer", "stubs:parity", "--max-new-tokens", "4"]
    on += ["--text", str(bench / "text.jsonl")]
    rows, base = ["--rows", str(bench / "pairs.jsonl")], ["--base", str(bench / "model")]
    model, out = str(bench / "model"), ["-o", str(output)]
    return {
        "train": ["train", "sft", model, str(bench / "pairs.jsonl"), *out, "--max_steps", "2", "--logging_steps", "1"],
        "evaluate": ["evaluate", model, *out, *on],
        "attack": ["attack", "relearn", model, *out, *on, *rows, *base, "--steps", "1"],
        "audit": ["audit", model, *out, *on, *rows, *base, "--only", "prefill"],
    }[name]


RESULTS = {"train": "trained for 2 steps", "evaluate": "toxic share", "attack": "toxic share", "audit": "prefill"}


@pytest.mark.parametrize("name", RESULTS)
def test_quiet_leaves_the_result(name: str, bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = command(name, bench, tmp_path / "x")
    assert main([*argv, "--quiet"]) == 0
    found = capsys.readouterr()
    assert RESULTS[name] in found.out and found.err == "" and "written: " not in found.out
    assert not re.search(r"^(budget quick|\S+: \d of|\S+: measured)", found.out, re.MULTILINE)
    assert main(["-q", *argv]) == 2  # errors are said
    assert "already holds" in capsys.readouterr().err


def test_warnings_of_others_are_not_told_when_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = logging.getLogger("library_of_a_test")  # with a handler and a level of its own, as transformers' has
    monkeypatch.setattr(theirs, "handlers", [logging.StreamHandler()])
    monkeypatch.setattr(theirs, "propagate", False)

    def run(options: argparse.Namespace) -> None:
        theirs.warning("a notice")
        theirs.error("an error")
        warnings.warn("a warning", FutureWarning, stacklevel=1)

    monkeypatch.setattr("efface.commands.lists.run", run)
    assert main(["models", "-q"]) == 0
    assert capsys.readouterr().err.split() == ["an", "error"]
    with pytest.warns(FutureWarning):
        assert main(["models"]) == 0
    assert "a notice" in capsys.readouterr().err


def test_quiet_and_verbose_exclude_each_other(fails: Any) -> None:
    assert fails(2, "-v", "models", "-q") == "--verbose and --quiet exclude each other. Give one."


def test_counts_stand_beside_shares(bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("evaluate", "attack"):
        assert main(command(name, bench, tmp_path / f"{name}.json")) == 0
        assert re.search(r"\d of 8, at most \d+\.\d %", capsys.readouterr().out)
    assert main(command("audit", bench, tmp_path / "audit")) == 0
    assert re.search(r"^prefill +\d +\d\.\d\d \[", capsys.readouterr().out, re.MULTILINE)


def run(argv: list[str], **how: Any) -> "subprocess.CompletedProcess[bytes]":
    support = Path(__file__).parents[1] / "support"
    path = os.pathsep.join([str(support), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path} | how.pop("env", {})
    return subprocess.run([sys.executable, "-m", "efface.cli", *argv], env=environment, **how)


@pytest.mark.full
@pytest.mark.parametrize("name", ["train", "attack"])
def test_a_file_gets_no_bars_and_no_control_codes(name: str, bench: Path, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        assert run(command(name, bench, tmp_path / "x"), stdout=out, stderr=err).returncode == 0
    for file in ("out", "err"):
        text = (tmp_path / file).read_text()
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f█|]|it/s|Loading weights|Writing model", text), text
        rows = [line for line in text.splitlines() if not line.startswith((f"{tmp_path}", "written", "sft: memory"))]
        assert max(map(len, rows), default=0) <= 80, text


@pytest.mark.full
def test_a_terminal_gets_a_table_that_fits(bench: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    argv = command("attack", bench, tmp_path / "x.json")
    with open(tmp_path / "err", "wb") as err:
        done = run(argv, stdout=theirs, stderr=err, env={"COLUMNS": "70", "TERM": "xterm", "NO_COLOR": ""})
    os.close(theirs)
    text = b""
    try:
        while piece := os.read(ours, 65536):
            text += piece
    except OSError:  # as a terminal ends whose other side is closed
        pass
    os.close(ours)
    assert done.returncode == 0
    lines = CODES.sub("", text.decode()).splitlines()
    assert "\x1b[1m" in text.decode() and any(set(line) == {"─"} for line in lines)
    assert max(len(line) for line in lines if not line.startswith("written")) <= 70
