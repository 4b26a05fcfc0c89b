"""How is a command killed at some moment, and gone on with? In a forked child: importing torch costs seconds.

The child runs `efface.cli.main`, as the program does. Before the first fork everything that it needs is imported, and
torch has one thread, since threads do not survive a fork.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Ended:
    """How a command has ended."""

    code: int
    """Its exit code; of one that was killed minus the signal."""
    seconds: float
    told: str
    """What it wrote to standard error."""


def run_forked(
    argv: Sequence[str], told: Path, *, kill_after: float | None = None, number: int = signal.SIGKILL
) -> Ended:
    """`efface ARGV` in a child.

    Args:
        told: gets what it writes.
        kill_after: seconds after which it gets the signal `number`, unless it has ended.
    """
    import efface.cli
    import efface.training.run  # noqa: F401

    sys.stdout.flush()
    start = time.monotonic()
    child = os.fork()
    if not child:
        _be(argv, told)
    if kill_after is not None:
        while time.monotonic() - start < kill_after:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return _ended(status, start, told)
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
    _, status = os.waitpid(child, 0)
    return _ended(status, start, told)


def _be(argv: Sequence[str], told: Path) -> None:
    from efface.cli import main

    code = 70
    try:
        file = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = main(list(argv))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)  # of Python's own end, which would tear down what it shares with its parent, nothing


def _ended(status: int, start: float, told: Path) -> Ended:
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return Ended(code, time.monotonic() - start, told.read_text(errors="replace") if told.exists() else "")
