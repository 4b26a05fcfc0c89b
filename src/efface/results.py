"""How do results reach the disk and come back? Strict JSON, the environment stamp, atomic writes, run directories.

A file is either there and whole or not there (`files.py`). What is read may be anything: whatever is wrong with it
is a `UserError` that names file and place.
"""

import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from efface.errors import RunError, UserError
from efface.files import read_regular_text, renamed_when_whole
from efface.shapes import check_shape

if TYPE_CHECKING:
    from torch import nn

RESULTS = "results.json"
MARKER = "efface.json"


def environment(*, seed: int | None, model: "nn.Module | None", command: str | None) -> dict[str, Any]:
    """What it takes to reproduce a figure: versions, seed, device, dtype, threads, command. No host, no paths."""
    import torch

    parameter = None if model is None else next(model.parameters(), None)
    return {
        "versions": {
            "python": platform.python_version(),
            "efface": _version("efface") or "unknown",
            "torch": torch.__version__,
            "transformers": _version("transformers"),
            "scikit-learn": _version("scikit-learn"),
        },
        "seed": seed,
        "device": None if parameter is None else str(parameter.device),
        "dtype": None if parameter is None else str(parameter.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "command": command,
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


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
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}, line {error.lineno}: not valid JSON ({error.msg}, column {error.colno}). Repair or remove it."
        ) from error
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


def prepare_output_dir(path: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = False) -> Path:
    """Make `path` a run directory (marked by a file `efface.json`) and return it.

    A directory that holds a run is refused unless `overwrite` (its contents are deleted) or `resume` (they are kept).
    Nothing that does not look like a run of ours is ever deleted.

    Raises:
        UserError: if the directory cannot or must not be used.
    """
    directory = Path(path)
    if overwrite and resume:
        raise UserError("overwrite and resume exclude each other: the first deletes what the second continues.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        contents = sorted(directory.iterdir())
    except OSError as error:
        reason = "it is a file" if directory.is_file() else error.strerror or str(error)
        raise UserError(f"output directory {str(path)!r} cannot be used: {reason}. Choose another one.") from error
    others = [entry for entry in contents if entry.name != MARKER]
    if others and not _is_run(directory):
        raise UserError(
            f"output directory {str(path)!r} is not empty and holds no run of efface (neither {MARKER} nor "
            f"{RESULTS} of one). It is left alone: choose a new or empty directory."
        )
    if others and overwrite:
        _empty(directory, others)
    elif others and not resume:
        raise UserError(
            f"output directory {str(path)!r} already holds a run. Choose another one, or pass --overwrite or --resume."
        )
    if not (directory / MARKER).exists():
        write_json(directory / MARKER, {"schema": 1, "what": "a run directory of efface"})
    return directory


def _is_run(directory: Path) -> bool:
    if (directory / MARKER).is_file():
        return True
    # Other tools write a results.json too: only one with our schema number counts.
    try:
        return "schema" in read_json(directory / RESULTS)
    except UserError:
        return False


def _empty(directory: Path, entries: Iterable[Path]) -> None:
    here = directory.resolve()
    if Path.cwd().is_relative_to(here) or Path.home().is_relative_to(here):
        raise UserError(f"output directory {str(directory)!r} holds the working or home directory: it is not deleted.")
    try:
        for entry in entries:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"output directory {str(directory)!r} could not be emptied: {reason}.") from error
