"""Which scratch folders has a killed process left? Those whose lock nobody holds, and those that nobody writes to.

A folder of this kind holds a file that is locked as long as its process, or one that it has started, lives: the lock
is given up with the process, however that ends. Folders of libraries have none; they are left after an hour without
a change.
"""

import contextlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO

from efface.files.io import STALE
from efface.files.lock import acquire

IN_USE = ".in-use"


def make_scratch(prefix: str) -> tuple[Path, IO[bytes] | None]:
    """A new folder under TMPDIR, and the file whose being open says that it is in use; those of killed processes with
    the same prefix are removed.

    Raises:
        OSError: if it cannot be made.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    for left in folder.parent.glob(f"{prefix}*"):
        if left != folder and _is_nobodys(left / IN_USE):
            shutil.rmtree(left, ignore_errors=True)
    begun = folder / f"{IN_USE}.tmp"  # locked before it has its name: another process that sweeps would take it
    try:
        file = begun.open("wb")
    except OSError:  # a full disk: it is never taken for anybody's
        return folder, None
    if not acquire(file):
        file.close()
        begun.unlink(missing_ok=True)
        return folder, None
    begun.rename(folder / IN_USE)
    return folder, file


def sweep_folders(parent: Path, pattern: str) -> None:
    """Remove the folders of that name in `parent` in which nothing has changed for an hour."""
    for left in parent.glob(pattern):
        with contextlib.suppress(OSError):
            newest = max(entry.lstat().st_mtime for entry in (left, *left.rglob("*")))
            if left.is_dir() and not left.is_symlink() and time.time() - newest > STALE:
                shutil.rmtree(left, ignore_errors=True)


def _is_nobodys(file: Path) -> bool:
    """Whether there is such a file, and nobody holds its lock."""
    try:
        with file.open("rb") as lock:
            return acquire(lock) is True
    except OSError:  # not there, or somebody else's
        return False
