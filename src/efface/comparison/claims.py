"""Who works on an arm? Several processes may share a sweep's directory: each takes what nobody else has.

A claim is a lock on a file, which the system gives up with the process, however that ends: no claim goes stale. Where
the file system has no locks (some network ones) nothing is claimed; then give each machine its own arms (`--arm`).

Short: the answer is a lock.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from efface.files.lock import acquire


@contextlib.contextmanager
def claimed(file: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether `file` is this process's own inside the block; False if it is another's.

    Args:
        wait: until it is this one's.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lock:
        yield acquire(lock, wait=wait) is not False
