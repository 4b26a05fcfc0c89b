"""Where do rows come from? JSON lines, the Hugging Face hub, the data in the package; only their form is checked."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from efface.errors import UserError
from efface.files import is_regular_file
from efface.shapes import shown

Row = dict[str, Any]
HALF_CHARACTER = "holds half a character (a lone surrogate), which no tokenizer takes. Repair it or leave the row out."
TOO_DEEP = "it is nested too deeply to be read. Repair the row or leave it out."
_SURROGATE = re.compile("[\ud800-\udfff]")


def raw_rows(source: Any, hint: str = "") -> Iterator[tuple[str, Any]]:
    """(where it stands, the parsed row or a `UserError`) for each row of any source."""
    if not isinstance(source, (str, os.PathLike)):
        for number, row in enumerate(source):
            yield f"row {number}", row
        return
    name = os.fspath(source)
    path = shipped(name.removeprefix("shipped:")) if name.startswith("shipped:") else Path(name)
    if is_regular_file(path):
        yield from _json_lines(path)
    elif os.path.exists(path) or name.endswith((".json", ".jsonl")) or name.startswith((".", "/", "~")):
        what, hint = ("", hint) if hint else ("pairs ", "Build one with `efface pairs MODEL -o PAIRS.jsonl`.")
        raise UserError(f"{what}file {name!r} does not exist or is no file. {hint}")
    else:
        yield from _hub_rows(name)


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with path.open("rb") as file:
            # Bytes, which split at newlines alone: text would also split inside a JSON string at U+2028.
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield _json_line(line, f"{path}:{number}")
    except OSError as error:
        raise UserError(f"file {str(path)!r} cannot be read: {error.strerror}.") from error


def _json_line(line: bytes, where: str) -> tuple[str, Any]:
    try:
        return where, json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        problem = f"not valid UTF-8 at byte {error.start}. Re-encode the file or pass --skip-bad-rows."
    except json.JSONDecodeError as error:
        problem = f"not valid JSON ({error.msg} at column {error.colno}). Each line must be one JSON object."
    except ValueError:
        problem = "it holds a number of thousands of digits, which no column has. Repair the row or leave it out."
    except RecursionError:
        problem = TOO_DEEP
    return where, UserError(f"{where}: {problem}")


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
    for number, row in enumerate(dataset):
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
        try:
            broken = [field for field, value in row.items() if has_half_character(value)]
        except RecursionError as error:  # just not too deep for the parser
            raise UserError(f"{where}: {TOO_DEEP}") from error
        if broken:
            raise UserError(f"{where}: {broken[0]!r} {HALF_CHARACTER}")
        yield where, row


def has_half_character(value: Any) -> bool:
    """Whether a lone surrogate, half of a character such as an emoji, is in any text of a JSON value."""
    if isinstance(value, str):
        return not value.isascii() and _SURROGATE.search(value) is not None
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(map(has_half_character, parts))


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
        if has_half_character(text):  # in a list; those of files have been checked
            raise UserError(f"{where}: the text {HALF_CHARACTER}")
        texts.append(text)
    if not texts:
        raise UserError(f"{name} is empty: pass at least one {field}.")
    return texts


def name_of(source: Any) -> str:
    """What to call a source in a message."""
    return repr(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else f"the given {type(source).__name__}"
