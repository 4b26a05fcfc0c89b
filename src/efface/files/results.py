"""How do results reach the disk and come back? Strict JSON, atomic writes, run directories.

A file is either there and whole or not there (`io.py`). What is read may be anything: whatever is wrong with it is a
`UserError` that names file and place.
"""

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from efface.errors import RunError, UserError, reason_of
from efface.files.io import LOCK, is_temporary, read_regular_text, renamed_when_whole
from efface.files.shapes import RepeatedName, check_shape, named_once

if TYPE_CHECKING:
    pass

RESULTS, MARKER = "results.json", "efface.json"
EVENTS = "events.jsonl"
"""The log book of a run directory, see `events.py`."""
WHAT = "a run directory of efface"
"""What the marker says."""


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` as indented strict JSON, atomically.

    Raises:
        RunError: if a value is not finite or not JSON, or the file cannot be written; nothing is left half-written.
    """
    text = _dump(obj, path, indent=2)
    _write(Path(path), lambda stream: stream.write(text + "\n"))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` in UTF-8, atomically. Raises RunError as `write_json` does."""
    _write(Path(path), lambda stream: stream.write(text))


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Any]) -> None:
    """Write one strict JSON value per line, atomically. Raises RunError as `write_json` does."""

    def write_rows(stream: TextIO) -> None:
        for row in rows:
            stream.write(_dump(row, path) + "\n")

    _write(Path(path), write_rows)


def _dump(obj: Any, path: str | os.PathLike[str], indent: int | None = None) -> str:
    try:
        return json.dumps(obj, allow_nan=False, ensure_ascii=False, indent=indent)
    except (ValueError, TypeError) as error:
        raise RunError(f"{os.fspath(path)} was not written: {_culprit(obj) or error}.") from error


def _culprit(obj: Any, where: str = "") -> str | None:
    """Which value JSON refuses, since json itself only says that there is one."""
    if isinstance(obj, float) and not math.isfinite(obj):
        return f"the value of {where or 'the file'} is {obj}, and JSON has only finite numbers"
    items = obj.items() if isinstance(obj, dict) else enumerate(obj) if isinstance(obj, list | tuple) else ()
    for key, value in items:
        found = _culprit(value, f"{where}.{key}" if where else str(key))
        if found:
            return found
    if obj is None or isinstance(obj, str | int | float | dict | list | tuple):
        return None
    return f"the value of {where or 'the file'} is a {type(obj).__name__}, which JSON cannot hold"


def _write(path: Path, write: Callable[[TextIO], object]) -> None:
    with renamed_when_whole(path) as temporary:
        # A lone surrogate (half an emoji) has no UTF-8 form: it becomes "?" instead of failing a long run at its end.
        with open(temporary, "w", encoding="utf-8", errors="replace", newline="\n") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())


def parse_json(text: str, where: str) -> Any:
    """The JSON value that `text` is.

    Raises:
        UserError: saying `where` it was read and what is wrong, if it is none, or one that Python refuses.
    """
    try:
        return json.loads(text, object_pairs_hook=named_once)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}, line {error.lineno}: not valid JSON ({error.msg}, column {error.colno}). Repair or remove it."
        ) from error
    except RepeatedName as error:
        raise UserError(f"{where}: in an object {error}, and which is meant nobody knows. Repair it.") from error
    except ValueError as error:
        raise UserError(f"{where}: it holds a number of thousands of digits. Repair or remove it.") from error
    except RecursionError as error:
        raise UserError(f"{where}: it is nested too deeply to be read. Repair or remove it.") from error


def read_json(path: str | os.PathLike[str], shape: Any = None) -> dict[str, Any]:
    """Read one JSON object.

    Args:
        shape: what must be in it, see `shapes`; None takes any object.

    Raises:
        UserError: naming the file and line, if it is missing, no regular file, not UTF-8, not JSON or not an object,
            or what is in it has another shape.
    """
    name = os.fspath(path)
    value = parse_json(read_regular_text(path), name)
    if not isinstance(value, dict):
        raise UserError(f"{name}: a JSON {type(value).__name__} where an object {{...}} is needed.")
    if shape is not None:
        check_shape(value, shape, name)
    return value


def prepare_output_dir(
    path: str | os.PathLike[str], *, overwrite: bool = False, resume: bool | None = False, inputs: Iterable[Any] = ()
) -> Path:
    """Make `path` a run directory (marked by a file `efface.json`) and return it.

    A directory that holds a run is refused unless `overwrite` (its contents are deleted) or `resume` (they are kept).
    Nothing that does not look like a run of ours is ever deleted.

    Args:
        resume, inputs: see `check_output_dir`.

    Raises:
        UserError: if the directory cannot or must not be used.
    """
    directory = check_output_dir(path, overwrite=overwrite, resume=resume, inputs=inputs)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    if overwrite:
        _empty(directory, contents(directory))
    if not (directory / MARKER).exists():
        write_json(directory / MARKER, {"schema": 1, "what": WHAT})
    return directory


def check_output_dir(
    path: str | os.PathLike[str], *, overwrite: bool = False, resume: bool | None = False, inputs: Iterable[Any] = ()
) -> Path:
    """`path`, if it can be a run directory; nothing is made or changed.

    Args:
        overwrite, resume: what is there may be deleted, or continued; a `resume` of None: there is no such choice.
        inputs: what the run reads, as the user named it; what is no path of something that exists is passed over.

    Raises:
        UserError: if it cannot or must not be used.
    """
    directory = Path(path)
    if overwrite and resume:
        raise UserError("overwrite and resume exclude each other: the first deletes what the second continues.")
    _check_place(path, directory)
    if contents(directory):
        if not _is_run(directory):
            raise UserError(
                f"output directory {str(path)!r} is not empty and holds no run of efface (neither {MARKER} nor "
                f"{RESULTS} of one). It is left alone: choose a new or empty directory."
            )
        if not (overwrite or resume):
            choice = "overwrite=True" if resume is None else "overwrite=True or resume=True"
            raise UserError(
                f"output directory {str(path)!r} already holds a run. Choose another one, or pass {choice}."
            )
        if overwrite and any(place.is_relative_to(directory.resolve()) for place in (Path.cwd(), Path.home())):
            raise UserError(
                f"output directory {str(directory)!r} holds the working or home directory: it is not deleted."
            )
    for given in inputs:
        if isinstance(given, str | os.PathLike) and _is_inside(given, directory):
            raise UserError(
                f"{os.fspath(given)!r} lies in the output directory {str(path)!r}, whose contents the run replaces. "
                "Choose another output directory, or copy what it is to read."
            )
    return directory


def contents(directory: Path) -> list[Path]:
    """What a run has left in its directory, if any: all but the marker, the log book beside it, and what a killed
    process was writing."""
    if not directory.is_dir():
        return []
    hidden = (MARKER, LOCK, *[EVENTS] * (directory / MARKER).exists())  # anybody else's may have that name too
    return sorted(entry for entry in directory.iterdir() if entry.name not in hidden and not is_temporary(entry.name))


def _check_place(path: str | os.PathLike[str], directory: Path) -> None:
    """Whether there is, or can be made, a directory that can be read and written."""
    try:
        place = next(place for place in (directory, *directory.absolute().parents) if os.path.lexists(place))
        if not place.is_dir():
            raise _unusable(path, "it is a file" if place == directory else f"{str(place)!r} is a file")
        if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
            raise _unusable(path, os.strerror(errno.EACCES))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise _unusable(path, getattr(error, "strerror", None) or str(error)) from error


def _unusable(path: str | os.PathLike[str], reason: str) -> UserError:
    return UserError(f"output directory {str(path)!r} cannot be used: {reason}. Choose another one.")


def _is_inside(given: str | os.PathLike[str], directory: Path) -> bool:
    try:
        place = Path(given)
        return place.exists() and place.resolve().is_relative_to(directory.resolve())
    except (OSError, ValueError):  # no name that a file could have
        return False


def _is_run(directory: Path) -> bool:
    """By what its files say, not by their names: other tools write a results.json too."""
    for name, ours in (
        (MARKER, lambda found: found.get("what") == WHAT),
        (RESULTS, lambda found: type(found.get("schema")) is int and "efface" in found["environment"]["versions"]),
    ):
        try:
            if ours(read_json(directory / name)):
                return True
        except (UserError, KeyError, TypeError):
            continue
    return False


def _empty(directory: Path, entries: Iterable[Path]) -> None:
    try:
        # First what says that there is a finished run: if this is interrupted, nobody takes the rest for one.
        for entry in sorted(entries, key=lambda entry: entry.name != RESULTS):
            remove(entry)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"output directory {str(directory)!r} could not be emptied: {reason}.") from error


def remove(entry: Path) -> None:
    """A file, a link (not what it points to) or a folder with all that is in it."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def cache_dir() -> Path:
    """The folder of converted models: `EFFACE_CACHE`, or `efface` under the user's cache folder.

    Raises:
        UserError: if there is no such folder, since the user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(os.environ.get("EFFACE_CACHE") or Path(base) / "efface").expanduser()
    except RuntimeError as error:  # `docker run --user` without HOME, or EFFACE_CACHE=~nobody-here
        raise UserError(
            f"there is no cache folder ({reason_of(error)}). Set EFFACE_CACHE to a folder that can be written."
        ) from error
