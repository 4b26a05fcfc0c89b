"""Is a bar drawn on a terminal alone, and never into a file, whoever draws it?"""

import io
import os
import sys
from typing import Any

import datasets
import huggingface_hub.utils as hub
import pytest
from transformers.utils import logging as theirs

from efface.terminal import progress
from efface.terminal.progress import bars, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def clock(seconds: float) -> Any:
    """One that is so much later each time."""
    ticks = iter(range(1000))
    return lambda: next(ticks) * seconds


def shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0, **how: Any) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(track(range(5), "work", **({"show": True} | how), clock=clock(seconds))) == [0, 1, 2, 3, 4]
    return stream.getvalue()


def test_a_terminal_gets_a_bar_and_a_file_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "work: " in shown(Terminal(), monkeypatch) and shown(io.StringIO(), monkeypatch) == ""


def test_long_work_leaves_a_plain_line_a_minute_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    said = shown(io.StringIO(), monkeypatch, seconds=30)
    assert said.splitlines() == ["work: 1 of 5 after 60 s", "work: 3 of 5 after 120 s"]
    unknown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", unknown)
    list(track(iter(range(3)), "work", show=True, clock=clock(61)))
    assert unknown.getvalue().startswith("work: 0 after 61 s\n")
    monkeypatch.setattr(sys, "stderr", None)
    assert list(track(range(3), "work", show=True, clock=clock(61))) == [0, 1, 2]


def test_nothing_is_shown_unless_asked_for_or_where_a_command_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(Terminal(), monkeypatch, show=False) == ""
    with bars(False):
        assert shown(Terminal(), monkeypatch) == "" and shown(io.StringIO(), monkeypatch, seconds=99) == ""
    assert shown(Terminal(), monkeypatch) != ""


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "file"])
@pytest.mark.parametrize("quiet", [True, False])
def test_bars_of_libraries_follow_and_are_as_before_afterwards(
    stream: Any, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)

    def drawn() -> list[bool]:
        return [
            theirs.is_progress_bar_enabled(),
            not hub.are_progress_bars_disabled(),
            not datasets.are_progress_bars_disabled(),
        ]

    before = drawn()
    with bars(not quiet):
        assert drawn() == (before if stream.isatty() and not quiet else [False] * 3)
    assert drawn() == before


def test_a_library_that_is_imported_later_is_told_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "DATASETS", "not.imported")
    monkeypatch.setattr(progress, "VARIABLES", {"not.imported": "NO_BARS_FOR_A_TEST"})
    with bars(True):
        assert os.environ["NO_BARS_FOR_A_TEST"] == "1"
    assert "NO_BARS_FOR_A_TEST" not in os.environ
    monkeypatch.setenv("NO_BARS_FOR_A_TEST", "0")
    with bars(True):  # whoever has said so himself is heeded
        assert os.environ["NO_BARS_FOR_A_TEST"] == "0"
    assert os.environ["NO_BARS_FOR_A_TEST"] == "0"
