"""May an output file be written where the user says? What lies there is replaced only if it is the command's own.

Of a run's directory see `results.check_output_dir`.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from efface.errors import UserError
from efface.files.jsonl import read_jsonl
from efface.files.results import read_json
from efface.files.shapes import check_shape

Own = Callable[[Path], bool]
"""Whether a file that is there was made by the command that would write there."""
STAMP = {"versions": {"efface": str}}
"""What every result of ours has as its `environment`, with more beside it."""


def check_output_file(
    path: str | os.PathLike[str],
    own: Own,
    what: str,
    *,
    beside: Mapping[Path, Own] | None = None,
    overwrite: bool = False,
    resume: bool | None = None,
) -> None:
    """Nothing, if `path` may be written: nothing is there, or a file of `own`, and the user says what becomes of it.

    Args:
        what: the files are that `own` knows, for the error: "an evaluation".
        beside: other files that are written with it, and what may be replaced of them where `path` is not there yet.
        overwrite, resume: what is there may be replaced, or taken; a `resume` of None: there is no such choice.

    Raises:
        UserError: if not. Nothing has been changed.
    """
    file = Path(path)
    if overwrite and resume:
        raise UserError("overwrite and resume exclude each other: the first replaces what the second takes.")
    if not os.path.lexists(file):
        for other, known in (beside or {}).items():
            if os.path.lexists(other) and not known(other):
                raise UserError(
                    f"{other} is there, which {what} at {file} would replace, and it does not belong to one. It is "
                    "left alone: choose another output, or move it."
                )
    elif not own(file):
        raise UserError(
            f"{file} is there, and is not {what} as efface wrote it. It is left alone: choose another output."
        )
    elif not (overwrite or resume):
        choice = "overwrite=True" if resume is None else "overwrite=True or resume=True"
        raise UserError(f"{file} already holds {what}. Choose another output, or pass {choice}.")


def is_stamped(path: Path, shape: dict[str, Any]) -> bool:
    """Whether a file is a JSON object of that shape that says in its `environment` that efface wrote it."""
    try:
        found = read_json(path, shape)
        check_shape(found.get("environment"), STAMP, os.fspath(path))
    except UserError:
        return False
    return True


def first_row_has(path: Path, shape: dict[str, Any]) -> bool:
    """Whether a file is JSON lines of which the first has that shape, or one that was left empty."""
    try:
        check_shape(read_jsonl(path)[:1], [shape], os.fspath(path))
    except UserError:
        return False
    return True


def never(path: Path) -> bool:
    """No file may be replaced."""
    return False
