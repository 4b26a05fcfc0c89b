"""Who is at work on an output? One process at a time: a second one is refused, and told who has it.

The lock is the system's own (`flock`), given up with the process, however that ends: none goes stale. Beside an output
lies, while somebody works on it, a file that says who: `.efface.lock` in a directory, `.NAME-DIGEST.lock` beside a
file.
Where the file system has no locks (some network ones, Windows), nobody is refused.
"""

import contextlib
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from efface.errors import UserError, one_line
from efface.files.digests import digest
from efface.files.io import LOCK, is_alive, sweep
from efface.files.redaction import redacted_arguments

PATIENCE = 15.0
"""Seconds that a dead holder's workers, which have inherited its lock, get to end."""
POLL = 0.1
LONGEST = 120
"""Characters of a command in a message."""


@contextlib.contextmanager
def held(output: Path) -> Iterator[None]:
    """Within, no other process that asks works on `output`, a directory (which must exist) or a file.

    Raises:
        UserError: if another one does, saying which.
    """
    place = output / LOCK if output.is_dir() else _beside(output)
    file = _taken(place, output)
    if file is None:
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a full disk: who has it is then not said
            file.write(json.dumps(_myself()))
            file.flush()
        if output.is_dir():
            sweep(output, alone=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            place.unlink()  # while it is ours, so that nobody's is taken away
        file.close()


def _beside(output: Path) -> Path:
    """The lock of a file. Of a long name only the beginning is in it, and others may begin so: hence the digest."""
    return output.with_name(f".{output.name[:40]}-{digest(output.name, 8)}.lock")


def acquire(file: IO[Any], *, wait: bool = False) -> bool | None:
    """Whether the lock of an open file is this process's now; False if it is another's, None where there are none.

    Args:
        wait: until it is this one's.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # Windows, some network file systems
        return None
    return True


def _taken(place: Path, output: Path) -> IO[str] | None:
    """The open file that is the lock; None where there are no locks."""
    begun = time.monotonic()
    while True:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            file = place.open("a+", encoding="utf-8")
        except OSError:  # what cannot be written is told by who writes the output
            return None
        mine = acquire(file)
        if mine is None:
            file.close()
            return None
        if not mine:
            holder = _read(file)
            file.close()
            if _alive(holder) or time.monotonic() - begun > PATIENCE:
                raise UserError(_refusal(output, holder))
            time.sleep(POLL)
            continue
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(place)):
                file.truncate(0)
                return file
        file.close()  # who had it has removed it meanwhile


def _myself() -> dict[str, object]:
    command = one_line(shlex.join(redacted_arguments([Path(sys.argv[0]).name, *sys.argv[1:]])), LONGEST)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": since}


def _read(file: IO[str]) -> dict[str, object]:
    try:
        file.seek(0)
        found = json.loads(file.read())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _alive(holder: dict[str, object]) -> bool:
    """Whether the holder runs; of one on another machine, or that has not said who it is, nobody knows."""
    pid = holder.get("pid")
    if not isinstance(pid, int) or holder.get("host") != socket.gethostname():
        return bool(holder)
    return is_alive(pid)


def _refusal(output: Path, holder: dict[str, object]) -> str:
    who = "another process"
    if holder:
        who = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')} "
        who += f"({one_line(str(holder.get('command')), LONGEST)})"
    return f"{str(output)!r} is being written by {who}. Wait for it, stop it, or choose another output."
