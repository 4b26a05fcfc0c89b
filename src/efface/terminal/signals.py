"""What ends a command from outside? Ctrl-C, and a system that stops it (SIGTERM): both through the same clean-up.

A batch system sends SIGTERM before it kills. As an exception it runs every `finally`, so that nothing is left in
temporary folders, and ends in a line and the exit code of a program that the signal has ended.

Short: the answer is a handler.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

STOPPED = 128 + signal.SIGTERM
INTERRUPTED = 128 + signal.SIGINT


class Terminated(KeyboardInterrupt):
    """SIGTERM; a KeyboardInterrupt, so that whoever cleans up after Ctrl-C does so after this."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Within, SIGTERM raises `Terminated` in the main thread. Elsewhere, or where somebody else handles it, nothing
    changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.getsignal(signal.SIGTERM)
    if before not in (signal.SIG_DFL, None):
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def deaf() -> None:
    """The command has ended and its exit code is settled: no signal changes it while Python takes itself down."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated
