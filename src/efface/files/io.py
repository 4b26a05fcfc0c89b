"""How is a file written, and which are read? Whole or not at all; and nothing that is no regular file.

A file is written under a temporary name, flushed to the disk and renamed. What is read or replaced must be a regular
file: a pipe lets its reader wait for ever, a device never ends, and a rename would put a file in its place.
"""

import contextlib
import gzip
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from efface.errors import RunError, UserError

LONGEST = ".generations.jsonl"
"""The longest of what is put behind the name of an output file: there must be room for it."""
LOCK = ".efface.lock"
"""Lies in a directory while somebody works on it, see `lock.py`."""
STALE = 3600.0
"""Seconds after which a temporary file that nobody has written to is one that a killed process has left."""


def read_regular_text(path: str | os.PathLike[str], what: str = "") -> str:
    """The text, in UTF-8, of a regular file.

    Args:
        what: the file is, for the error: "word list".

    Raises:
        UserError: naming the file, if it is missing, no regular file, cannot be read or is not UTF-8.
    """
    where = f"{what} {os.fspath(path)}".lstrip()
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            return Path(path).read_bytes().decode("utf-8-sig")  # line ends as they are: a table's cells may hold some
        reason = f"it is {_kind(status)}"
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 ({error.reason}). Save it as UTF-8.") from error
    except (OSError, ValueError) as error:  # a ValueError is a zero byte in the name
        reason = getattr(error, "strerror", None) or str(error)
    raise UserError(f"{where} cannot be read: {reason}. Pass an existing file.")


def is_regular_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file; also False where that cannot be found out (a folder denied, a name too long)."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def renamed_when_whole(path: Path) -> Iterator[Path]:
    """A new, empty file beside `path` to write to; it becomes `path` when the block ends well, else it is removed.

    A link stays a link: what it points to is replaced. A file that is there keeps its mode.

    Raises:
        RunError: if the file cannot be written, or what is no regular file has its name.
    """
    temporary: Path | None = None
    try:
        target = Path(os.path.realpath(path))
        old = _status(target)
        if old is not None and not stat.S_ISREG(old.st_mode):
            raise RunError(f"{path} was not written: {_kind(old)} has its name.")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _new_beside(target)
        yield temporary
        if old is not None:
            os.chmod(temporary, stat.S_IMODE(old.st_mode))
        os.replace(temporary, target)
    except OSError as error:
        raise RunError(f"{path} was not written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):  # already renamed when all went well
            if temporary is not None:
                temporary.unlink()


def check_writable(path: Path) -> None:
    """Nothing, if a file can be made at `path`, and what stands beside it: found out by making one there.

    Raises:
        UserError: if not.
    """
    try:
        target = Path(os.path.realpath(path))
        old = _status(target)
        if old is None or stat.S_ISREG(old.st_mode):
            for place in {target, path.absolute()}:  # behind a link, what stands beside it stands beside the link
                _status(place.with_name(place.name + LONGEST))
                folder = next(parent for parent in place.parents if _status(parent) is not None)
                _new_beside(folder / place.name).unlink()
                sweep(folder)
            return
        reason = f"{_kind(old)} has its name"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise UserError(f"{os.fspath(path)!r} cannot be a file: {reason}. Choose another place.")


def is_temporary(name: str) -> bool:
    """Whether a file of that name is one that `renamed_when_whole` writes to, in this version or an earlier one."""
    return re.fullmatch(r"\..+\.\d+(-[0-9a-f]{8})?\.tmp", name, re.DOTALL) is not None


def sweep(folder: Path, *, alone: bool = False) -> None:
    """Remove the temporary files that killed processes have left in `folder`; those of the last hour may be in use.

    Args:
        alone: nobody else works there, so that those of processes that are gone are nobody's.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                if not is_temporary(entry.name):
                    continue
                old = time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE
                if old or (alone and not is_alive(int(entry.name.rsplit(".", 2)[1].partition("-")[0]))):
                    os.unlink(entry.path)


def is_alive(process: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True


def opened(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked if it is packed with gzip."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")  # type: ignore[return-value]


def _new_beside(path: Path) -> Path:
    """A new file under a temporary name in the same folder, so that the rename stays on one file system.

    Processes in different containers may have the same id, so part of the name is random; and nothing is ever written
    through a link that somebody else has put there.
    """
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    os.close(os.open(temporary, flags, 0o666))
    return temporary


def _status(path: Path) -> os.stat_result | None:
    """None if there is nothing. Raises OSError if that cannot be found out."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _kind(status: os.stat_result) -> str:
    """What a thing that is no regular file is."""
    if stat.S_ISDIR(status.st_mode):
        return "a directory"
    return "a pipe" if stat.S_ISFIFO(status.st_mode) else "a device"
