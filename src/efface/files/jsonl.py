"""Which JSON objects stand in a file, one a line? Whatever is wrong with one is said with its line."""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efface.errors import UserError
from efface.files.io import is_regular_file, opened
from efface.files.shapes import RepeatedName, named_once

Row = dict[str, Any]
"""A JSON object, as a line of a file holds one."""
SKIPPABLE = " or train with skip_bad_rows=True"
"""What else may be done about a bad row, but only of pairs."""


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(file:line, the JSON value or a `UserError`) for each line of a file, also one packed with gzip, that is not
    blank.

    Raises:
        UserError: if what is packed is cut short.
        OSError: if the file cannot be read.
    """
    try:
        with opened(path) as file:
            # Bytes, which split at newlines alone: text would also split inside a JSON string at U+2028.
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield _json_line(line, f"{path}:{number}")
    except (EOFError, zlib.error) as error:
        raise UserError(f"file {str(path)!r} is no whole gzip file ({error}).") from error


def _json_line(line: bytes, where: str) -> tuple[str, Any]:
    problem: str | None
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=named_once)
        problem = unreadable(row) if b"\\u" in line else None  # a lone surrogate can only be written as an escape
        if problem is None:
            return where, row
        problem += f". Repair the text{SKIPPABLE}."
    except UnicodeDecodeError as error:
        problem = f"not valid UTF-8 at byte {error.start}. Re-encode the file{SKIPPABLE}."
    except json.JSONDecodeError as error:
        problem = f"not valid JSON ({error.msg} at column {error.colno}). Each line must be one JSON object."
    except RecursionError:
        problem = f"lists or objects nested too deeply to be read. Flatten the row{SKIPPABLE}."
    except RepeatedName as error:
        problem = f"in an object {error}, and which is meant nobody knows. Keep one{SKIPPABLE}."
    except ValueError as error:  # a whole number of more digits than Python converts
        problem = f"a number that cannot be read ({str(error).split(';')[0]}). Shorten it{SKIPPABLE}."
    return where, UserError(f"{where}: {problem}")


def unreadable(value: Any) -> str | None:
    """What in a text, or anywhere in a row, no tokenizer takes and no file can hold: half of a character."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            return (
                f"holds half of a character (\\u{ord(value[error.start]):04x} at character {error.start}: one of the "
                "two codes of an emoji or the like, as cutting a text by length leaves it)"
            )
        return None
    if isinstance(value, dict):
        for key, one in value.items():
            problem = unreadable(key) or unreadable(one)
            if problem is not None:
                return f"field {key!a}{', ' if problem.startswith('field ') else ' '}{problem}"
    if isinstance(value, list | tuple):
        return next((problem for problem in map(unreadable, value) if problem is not None), None)
    return None


def objects(rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Row]]:
    """(where it stands, the row) for each of `rows`; a `UserError` at the first that is bad or no JSON object."""
    for where, row in rows:
        if isinstance(row, UserError):
            raise row
        if not isinstance(row, dict):
            raise UserError(f"{where}: a row must be a JSON object, not {type(row).__name__}.")
        yield where, row


def read_jsonl(path: str | os.PathLike[str]) -> list[Row]:
    """The JSON objects of a file, one a line; blank lines are skipped.

    Raises:
        UserError: if there is no such file, or naming the line of what is none.
    """
    file = Path(path)
    if not is_regular_file(file):
        raise UserError(f"file {str(file)!r} does not exist or is no file. Name an existing file of JSON lines.")
    try:
        return [row for _, row in objects(json_lines(file))]
    except OSError as error:
        raise UserError(f"file {str(file)!r} cannot be read: {error.strerror or error}.") from error
