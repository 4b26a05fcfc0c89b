"""What happened in a run directory, and when? `events.jsonl`: a JSON object a line, written as it happens.

    {"time": "2026-01-31T09:05:07.250+00:00", "event": "attack finished", "process": 4711, "attack": "gcg", ...}

It is the log book of the directory: each command that works there writes from "begin" to "end", "failed" or
"interrupted" behind what is there, and neither `--resume` nor `--overwrite` takes a line away. Nothing of it is read
by efface, so no result depends on it. It holds no text that a model wrote, and no value that `redaction` knows.

A process that is killed leaves at most a cut last line. Of several processes that train together the first one writes.
"""

import contextlib
import errno
import json
import logging
import math
import os
import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from efface.errors import RunError, UserError, described, one_line, reason_of
from efface.files.environment import environment
from efface.files.jsonl import Row
from efface.files.redaction import redacted
from efface.files.results import EVENTS

log = logging.getLogger(__name__)
LIBRARY = logging.getLogger("efface")
LONGEST = 500
"""Characters of a text in an event."""
Say = Callable[[str], None]


class Journal:
    """What tells whoever runs a job a line, and keeps it: a job hands it on as its own `say`.

    Args:
        directory: where `events.jsonl` lies or will lie.
        say: is told the lines; of another journal, whose directory is another one, that which is told there.
    """

    def __init__(self, directory: Path, say: Say):
        self.say: Say = say.say if isinstance(say, Journal) else say
        self.file = directory / EVENTS if os.environ.get("RANK", "0") == "0" else None
        self._failed = False
        self._after_a_cut = True  # nobody knows how the last process ended
        self._stage: tuple[str, float] | None = None

    def __call__(self, line: str) -> None:
        self.say(line)
        self.add("told", line=line)

    def add(self, event: str, **what: Any) -> None:
        """Write an event. One that cannot be written is given up: a log is nothing to lose a run for."""
        if self.file is None:
            return
        row = {"time": _now(), "event": event, "process": os.getpid(), **_plain(redacted(what))}
        try:
            self._append(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        except OSError as error:
            self._after_a_cut = True
            if not self._failed:
                self._failed = True  # first: the warning is an event too
                log.warning("%s is not written on: %s. The run goes on.", self.file, reason_of(error))

    def _append(self, line: bytes) -> None:
        """In one write: other processes may work in the same directory, and nothing waits in a buffer."""
        assert self.file is not None
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_BINARY"):  # a pipe or a link of that name; Windows' line ends
            flags |= getattr(os, name, 0)
        place = os.open(self.file, flags, 0o666)
        try:
            status = os.fstat(place)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "it is no regular file")
            if self._after_a_cut and status.st_size:
                os.lseek(place, -1, os.SEEK_END)
                line = line if os.read(place, 1) == b"\n" else b"\n" + line
            self._after_a_cut = os.write(place, line) < len(line)
        finally:
            os.close(place)

    def stage(self, name: str, line: str | None = None) -> None:
        """The next stage begins, of which `say` is told the line, and with that the one before has ended."""
        self.end_stage()
        if line is not None:
            self.say(line)
        self._stage = name, time.monotonic()
        self.add("stage begin", stage=name)

    def end_stage(self) -> None:
        if self._stage is not None:
            name, start = self._stage
            self._stage = None
            self.add("stage end", stage=name, seconds=_since(start))

    @contextlib.contextmanager
    def during(self, what: str, **which: Any) -> Iterator[Row]:
        """`what` is begun, and after the block finished; what the block puts into the yielded row is told then."""
        start, found = time.monotonic(), dict[str, Any]()
        self.add(f"{what} begun", **which)
        yield found
        self.add(f"{what} finished", **which, seconds=_since(start), **found)


@contextlib.contextmanager
def recorded(directory: Path, say: Say, *, command: str | None = None) -> Iterator[Journal]:
    """Within, a job works in `directory`, which must exist; the file tells its begin, its warnings and its end."""
    journal, start = Journal(directory, say), time.monotonic()
    made_by = environment(seed=None, model=None, command=command)
    journal.add("begin", schema=1, **{name: made_by[name] for name in ("command", "commit", "versions")})
    keeper = _Warnings(journal)
    LIBRARY.addHandler(keeper)
    try:
        yield journal
    except KeyboardInterrupt as error:
        journal.add("interrupted", seconds=_since(start), reason=str(error) or "interrupted.")
        raise
    except BaseException as error:
        known = isinstance(error, UserError | RunError)
        journal.add("failed", seconds=_since(start), reason=str(error) if known else described(error))
        raise
    finally:
        LIBRARY.removeHandler(keeper)
    journal.end_stage()
    journal.add("end", seconds=_since(start))


class _Warnings(logging.Handler):
    """Keeps what the library warns of, which is said wherever it would have been said."""

    def __init__(self, journal: Journal):
        super().__init__(logging.WARNING)
        self.journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        self.journal.add("warning", line=record.getMessage(), by=record.name)
        # Python prints a warning by itself only where nobody handles it, and a handler is what this is.
        if not logging.root.handlers and LIBRARY.handlers[0] is self and logging.lastResort is not None:
            logging.lastResort.handle(record)


def read_events(directory: Path) -> list[Row]:
    """The events of a run directory, none if there are none; lines that a killed process has cut are left out.

    Raises:
        UserError: if the file cannot be read.
    """
    file, found = directory / EVENTS, list[Row]()
    try:
        lines = file.read_bytes().split(b"\n") if file.exists() else []
    except OSError as error:
        raise UserError(f"{file} cannot be read: {reason_of(error)}. Pass the directory of a run.") from error
    for line in lines:
        with contextlib.suppress(ValueError):  # not JSON, or not UTF-8
            row = json.loads(line.decode("utf-8"))
            if isinstance(row, dict):
                found.append(row)
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _since(start: float) -> float:
    return round(time.monotonic() - start, 3)


def _plain(value: Any) -> Any:
    """As JSON holds it: texts in one line and not long, a number that is not finite as its name."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return one_line(value, LONGEST)
