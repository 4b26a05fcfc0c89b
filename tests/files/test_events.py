"""Does the log book of a run directory tell what happened, line by line, whatever happens to the run or the disk?"""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from efface.errors import UserError
from efface.files import events
from efface.files.events import Journal, read_events, recorded
from efface.files.results import EVENTS, check_output_dir, contents, prepare_output_dir
from efface.terminal.signals import Terminated


@pytest.fixture(autouse=True)
def nobody_listens() -> Iterator[None]:
    yield
    assert not [one for one in events.LIBRARY.handlers if isinstance(one, events._Warnings)]


def names(directory: Path) -> list[str]:
    return [row["event"] for row in read_events(directory)]


def test_a_job_is_told_from_its_begin_to_its_end(tmp_path: Path) -> None:
    said: list[str] = []
    with recorded(tmp_path, said.append, command="efface train") as journal:
        journal("\n[1/2] read")
        journal.stage("first", "the first begins")
        journal.stage("second")
        with journal.during("attack", attack="gcg") as found:
            found["error"] = None
        logging.getLogger("efface.some.module").warning("a %s is damaged", "cache")
    rows = read_events(tmp_path)
    assert said == ["\n[1/2] read", "the first begins"]
    assert [row["event"] for row in rows] == [
        *("begin", "told", "stage begin", "stage end", "stage begin", "attack begun", "attack finished", "warning"),
        *("stage end", "end"),
    ]
    begin, told, finished, warning = rows[0], rows[1], rows[6], rows[7]
    assert begin["command"] == "efface train" and {"commit", "versions", "schema"} <= begin.keys()
    assert told["line"] == "[1/2] read" and warning["line"] == "a cache is damaged"
    assert finished["attack"] == "gcg" and finished["error"] is None and finished["seconds"] >= 0
    for row in rows:
        assert datetime.fromisoformat(row["time"]).utcoffset() is not None and row["process"] == os.getpid()


@pytest.mark.parametrize(
    ("error", "event", "reason"),
    [
        (UserError("rows.jsonl: none."), "failed", r"rows.jsonl: none\."),
        (KeyError("x"), "failed", "KeyError: 'x'"),
        (KeyboardInterrupt("checkpoint-2 is kept."), "interrupted", r"checkpoint-2 is kept\."),
        (Terminated(), "interrupted", r"interrupted\."),
        (SystemExit(3), "failed", "SystemExit: 3"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_how_it_ended(error: BaseException, event: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), recorded(tmp_path, print) as journal:
        journal.stage("training")
        raise error
    last = read_events(tmp_path)[-1]
    assert last["event"] == event and re.fullmatch(reason, last["reason"]) and names(tmp_path).count("end") == 0


def test_secrets_and_long_or_odd_values(tmp_path: Path) -> None:
    journal = Journal(tmp_path, print)
    values = {"hub_token": "hf_hunter2", "settings": {"api-key": "hunter2"}, "loss": float("nan"), "at": Path("a/b")}
    journal.add("log", **values, half="\ud83d", text="x\x1b[31m" + "y" * 9999, some=[1, (2.5, None, True)])
    (row,) = read_events(tmp_path)
    assert b"hunter2" not in (tmp_path / EVENTS).read_bytes() and b"\x1b" not in (tmp_path / EVENTS).read_bytes()
    assert row["loss"] == "nan" and row["at"] == "a/b" and row["half"] == "?" and len(row["text"]) < 600
    assert row["some"] == [1, [2.5, None, True]]


def test_a_killed_process_leaves_at_most_a_cut_last_line(tmp_path: Path) -> None:
    Journal(tmp_path, print).add("one")
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b'{"time": "2026-01-01T00:00:00+00:00", "event": "tw')
    assert names(tmp_path) == ["one"]
    journal = Journal(tmp_path, print)  # the next process
    journal.add("three")
    journal.add("four")
    assert names(tmp_path) == ["one", "three", "four"]


def test_every_line_is_there_at_once(tmp_path: Path) -> None:
    """A process that is killed in the next moment has written it."""
    program = (
        "import os, sys; from pathlib import Path; from efface.files.events import Journal\n"
        "Journal(Path(sys.argv[1]), print).add('one'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=120)
    assert names(tmp_path) == ["one"]


def test_a_full_disk_is_warned_of_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = os.write

    def full(place: int, line: bytes) -> int:
        write(place, line[:7])
        raise OSError(28, os.strerror(28))

    with recorded(tmp_path, print) as journal:
        monkeypatch.setattr(os, "write", full)
        journal.add("lost")
        journal.add("lost too")
        monkeypatch.undo()
        journal.add("there is room again")
    assert names(tmp_path) == ["begin", "there is room again", "end"]
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / EVENTS} is not written on: No space left on device. The run goes on."
    ]


@pytest.mark.parametrize("what", ["directory", "pipe", "link", "nowhere"])
def test_what_is_no_file_is_not_written_to(what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place, other = tmp_path / "run" / EVENTS, tmp_path / "mine.txt"
    other.write_text("mine")
    if what != "nowhere":
        place.parent.mkdir()
    if what == "directory":
        place.mkdir()
    elif what == "pipe":
        os.mkfifo(place)  # without a reader it would let its writer wait for ever
    elif what == "link":
        place.symlink_to(other)
    Journal(place.parent, print).add("one")
    assert len(caplog.records) == 1 and "is not written on" in caplog.text and other.read_text() == "mine"


def test_of_several_processes_the_first_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with recorded(tmp_path, print) as journal:
        journal("told all the same")
    assert not (tmp_path / EVENTS).exists()


def test_a_job_inside_another_one_has_a_log_book_of_its_own(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "inner").mkdir()
    with recorded(tmp_path, said.append) as outer, recorded(tmp_path / "inner", outer) as inner:
        inner("a line")
    assert said == ["a line"] and "told" in names(tmp_path / "inner") and "told" not in names(tmp_path)


def test_warnings_are_said_as_if_nobody_kept_them(tmp_path: Path) -> None:
    """Python prints a warning by itself if no handler is there; ours is none to be silent, nor to say it twice."""
    program = (
        "import logging, sys; from pathlib import Path; from efface.files.events import recorded\n"
        "with recorded(Path(sys.argv[1]), print) as one, recorded(Path(sys.argv[1]), one):\n"
        "    logging.getLogger('efface.data').warning('look here')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.stderr == "look here\n"


def test_it_is_of_the_run_and_not_a_result_of_it(tmp_path: Path) -> None:
    directory = prepare_output_dir(tmp_path / "run")
    Journal(directory, print).add("one")
    assert contents(directory) == [] and check_output_dir(directory) == directory
    prepare_output_dir(directory, overwrite=True)
    assert names(directory) == ["one"]  # the log book of the directory goes on
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / EVENTS).write_text(json.dumps({"event": "somebody else's"}))
    with pytest.raises(UserError, match="holds no run of efface"):
        check_output_dir(tmp_path / "mine")


def test_reading_what_is_not_there_or_no_file(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []
    (tmp_path / EVENTS).write_bytes(b'3\n\xff\n[]\nnull\n{"event": "one"}\n')
    assert names(tmp_path) == ["one"]
    (tmp_path / "folder" / EVENTS).mkdir(parents=True)
    with pytest.raises(UserError, match="events.jsonl cannot be read: Is a directory. Pass the directory of a run"):
        read_events(tmp_path / "folder")


def test_a_value_of_any_kind(tmp_path: Path) -> None:
    class Odd:
        def __str__(self) -> str:
            return "odd\nthing"

    Journal(tmp_path, print).add("log", odd=Odd(), inf=float("-inf"), nested={1: [Odd()]})
    (row,) = read_events(tmp_path)
    found: dict[str, Any] = {name: row[name] for name in ("odd", "inf", "nested")}
    assert found == {"odd": "odd thing", "inf": "-inf", "nested": {"1": ["odd thing"]}}
