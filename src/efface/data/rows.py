"""Where do rows come from? Files, the Hugging Face hub, the data in the package, objects; only their form is checked.

JSON lines are read here, other files in `tables.py`.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from efface.data.tables import is_saved, opened, saved, table_rows
from efface.errors import UserError
from efface.files.io import is_regular_file
from efface.files.shapes import shown

Row = dict[str, Any]


def raw_rows(source: Any, hint: str = "") -> Iterator[tuple[str, Any]]:
    """(where it stands, the parsed row or a `UserError`) for each row of any source.

    A source is the path of a file (JSON lines, or what `tables.py` reads), the name of a dataset of the hub, or an
    object that gives rows: a list, a dataset or its splits (of which `train` is taken), a data frame, an iterator.
    """
    if not isinstance(source, (str, os.PathLike)):
        for number, row in enumerate(_rows_of_object(source)):
            yield f"row {number}", row
        return
    name = os.fspath(source)
    path = shipped(name.removeprefix("shipped:")) if name.startswith("shipped:") else Path(name)
    if is_regular_file(path):
        try:
            rows = table_rows(path)
            yield from _json_lines(path) if rows is None else rows
        except OSError as error:
            raise UserError(f"file {str(path)!r} cannot be read: {error.strerror or error}.") from error
    elif path.is_dir() and is_saved(path):
        for number, row in enumerate(_rows_of_object(saved(path))):
            yield f"{path} row {number}", row
    elif os.path.exists(path) or name.endswith((".json", ".jsonl")) or name.startswith((".", "/", "~")):
        what, hint = ("", hint) if hint else ("pairs ", "Build one with `efface pairs MODEL -o PAIRS.jsonl`.")
        raise UserError(f"{what}file {name!r} does not exist or is no file. {hint}")
    else:
        yield from _hub_rows(name)


def _rows_of_object(source: Any) -> Iterable[Any]:
    if isinstance(source, Mapping):
        if "train" in source:
            return source["train"]
        if "prompt" in source or "chosen" in source or "text" in source:
            raise UserError(
                f"the given {type(source).__name__} is one row or a table by columns ({_listed(source)}). Pass a list "
                "of rows."
            )
        raise UserError(
            f"the given {type(source).__name__} has the splits {_listed(source)}, and no 'train'. Pass one of them."
        )
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # a pandas data frame: it iterates over columns
        return ({key: _plain(value) for key, value in row.items()} for row in source.to_dict("records"))
    if not isinstance(source, Iterable):
        raise UserError(f"rows are to come from {type(source).__name__}. Pass a path, a dataset or a list of dicts.")
    return source


def _listed(source: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, source)) or "none at all"


def _plain(value: Any) -> Any:
    """Lists for the arrays that a data frame read from parquet holds."""
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, dict) else value


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
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
        row = json.loads(line.decode("utf-8"))
        problem = unreadable(row) if b"\\u" in line else None  # a lone surrogate can only be written as an escape
        if problem is None:
            return where, row
        problem += ". Repair the text or train with --skip-bad-rows."
    except UnicodeDecodeError as error:
        problem = f"not valid UTF-8 at byte {error.start}. Re-encode the file or train with --skip-bad-rows."
    except json.JSONDecodeError as error:
        problem = f"not valid JSON ({error.msg} at column {error.colno}). Each line must be one JSON object."
    except RecursionError:
        problem = "lists or objects nested too deeply to be read. Flatten the row or train with --skip-bad-rows."
    except ValueError as error:  # a whole number of more digits than Python converts
        problem = (
            f"a number that cannot be read ({str(error).split(';')[0]}). Shorten it or train with --skip-bad-rows."
        )
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


def _hub_rows(name: str) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split="train")
    except Exception as error:  # the hub client raises a dozen unrelated types; all mean that there is no data
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"pairs {name!r} is no local file and could not be loaded as a Hugging Face dataset "
            f"({reason}). Check the name and the network, or pass a JSON-lines file."
        ) from error
    for number, row in enumerate(_rows_of_object(dataset)):
        yield f"{name} row {number}", row


def shipped(name: str) -> Path:
    """Path of a data file in the package: `train`, `heldout` (pairs), `prompts`, `passages`, `text`, `injections`."""
    path = Path(__file__).parent / "shipped" / f"{name}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.jsonl")))
        raise UserError(f"shipped:{name} does not exist. Shipped with the package: {known}.")
    return path


def labelled_rows(source: str | os.PathLike[str]) -> Iterator[tuple[str, Row]]:
    """(where it stands, the row) for each JSON object of a file; a `UserError` at the first bad line."""
    for where, row in raw_rows(source, "Name an existing file of JSON lines."):
        if isinstance(row, UserError):
            raise row
        if not isinstance(row, dict):
            raise UserError(f"{where}: a row must be a JSON object, not {type(row).__name__}.")
        yield where, row


def read_jsonl(path: str | os.PathLike[str]) -> list[Row]:
    """The JSON objects of a file, one a line; blank lines are skipped. Raises as `labelled_rows` does."""
    return [row for _, row in labelled_rows(path)]


def load_texts(source: Sequence[str] | str | os.PathLike[str], field: str = "text") -> list[str]:
    """The `field` of every row of a JSON-lines file (or `shipped:NAME`), or the texts of a list.

    A field may also hold `{"text": ...}`, which is how RealToxicityPrompts stores a prompt with its scores.

    Raises:
        UserError: naming the file and line (or the place in the list) of what is no text.
    """
    if isinstance(source, str | os.PathLike):
        name, found = name_of(source), [(where, row.get(field)) for where, row in labelled_rows(source)]
    else:
        name, found = f"the list of {field}s", [(f"{field} {number}", value) for number, value in enumerate(source)]
    texts = []
    for where, value in found:
        text = value.get("text") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise UserError(f"{where}: {field!r} must be a text, but it is {shown(value)}.")
        problem = unreadable(text)
        if problem is not None:
            raise UserError(f"{where}: {field!r} {problem}. Repair the text.")
        texts.append(text)
    if not texts:
        raise UserError(f"{name} is empty: pass at least one {field}.")
    return texts


def name_of(source: Any) -> str:
    """What to call a source in a message."""
    return repr(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else f"the given {type(source).__name__}"
