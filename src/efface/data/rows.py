"""Where do rows come from? Files, the Hugging Face hub, the data in the package, objects; only their form is checked.

JSON lines are read here, other files in `tables.py`.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from efface.data.tables import is_saved, saved, table_rows, without_padding
from efface.errors import UserError, reason_of
from efface.files.io import is_regular_file
from efface.files.jsonl import SKIPPABLE, Row, json_lines, objects, unreadable
from efface.files.shapes import shown

PAIRS = "pairs"
FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".gz")
"""How names end that are no datasets of the hub."""


def raw_rows(source: Any, what: str = PAIRS) -> Iterator[tuple[str, Any]]:
    """(where it stands, the parsed row or a `UserError`) for each row of any source.

    A source is the path of a file (JSON lines, or what `tables.py` reads), the name of a dataset of the hub, or an
    object that gives rows: a list, a dataset or its splits (of which `train` is taken), a data frame, an iterator.

    Args:
        what: is read, for errors: "prompts".
    """
    if not isinstance(source, (str, os.PathLike)):
        for number, row in enumerate(_rows_of_object(source)):
            yield f"row {number}", row
        return
    path = check_source(source, what)
    name = os.fspath(source)
    if is_regular_file(path):
        try:
            rows = table_rows(path)
            yield from json_lines(path) if rows is None else rows
        except OSError as error:
            raise UserError(f"file {str(path)!r} cannot be read: {error.strerror or error}.") from error
    elif path.is_dir() and is_saved(path):
        for number, row in enumerate(_rows_of_object(saved(path))):
            yield f"{path} row {number}", row
    else:
        yield from _hub_rows(name, what)


def check_source(source: str | os.PathLike[str], what: str = PAIRS) -> Path:
    """The path of a source, whether it is a file or the name of a dataset of the hub; nothing is read.

    Raises:
        UserError: if it can only be a file, and there is none.
    """
    name = os.fspath(source)
    path = shipped(name.removeprefix("shipped:")) if name.startswith("shipped:") else Path(name)
    there = is_regular_file(path) or (os.path.isdir(path) and is_saved(path))
    if not there and (os.path.exists(path) or name.endswith(FILES) or name.startswith((".", "/", "~"))):
        hint = "Build one with `efface pairs MODEL -o PAIRS.jsonl`." if what == PAIRS else "Name an existing file."
        raise UserError(f"{what} file {name!r} does not exist or is no file. {hint}")
    return path


def labelled_rows(source: str | os.PathLike[str], what: str = "texts") -> Iterator[tuple[str, Row]]:
    """(where it stands, the row) for each JSON object of a file; a `UserError` at the first bad line.

    Args:
        what: see `raw_rows`.
    """
    try:
        yield from objects(raw_rows(source, what))
    except UserError as error:  # bad rows are skipped where pairs are trained on, and nowhere else
        if SKIPPABLE not in str(error):
            raise
        raise UserError(str(error).replace(SKIPPABLE, "")) from error


def load_texts(source: Sequence[str] | str | os.PathLike[str], field: str = "text") -> list[str]:
    """The `field` of every row of a JSON-lines file (or `shipped:NAME`), or the texts of a list.

    A field may also hold `{"text": ...}`, which is how RealToxicityPrompts stores a prompt with its scores.

    Raises:
        UserError: naming the file and line (or the place in the list) of what is no text.
    """
    if isinstance(source, str | os.PathLike):
        name, found = name_of(source), [(where, row.get(field)) for where, row in labelled_rows(source, f"{field}s")]
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


def shipped(name: str) -> Path:
    """Path of a data file in the package: `train`, `heldout`, `broad`, `broad-heldout` (pairs), `prompts`, `passages`,
    `text`, `injections`."""
    path = Path(__file__).parent / "shipped" / f"{name}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.jsonl")))
        raise UserError(f"shipped:{name} does not exist. Shipped with the package: {known}.")
    return path


def name_of(source: Any) -> str:
    """What to call a source in a message."""
    return repr(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else f"the given {type(source).__name__}"


def _rows_of_object(source: Any) -> Iterable[Any]:
    if isinstance(source, Mapping):
        if "train" in source:
            return _rows_of_object(source["train"])
        if "prompt" in source or "chosen" in source or "text" in source:
            raise UserError(
                f"the given {type(source).__name__} is one row or a table by columns ({_listed(source)}). Pass a list "
                "of rows."
            )
        raise UserError(
            f"the given {type(source).__name__} has the splits {_listed(source)}, and no 'train'. Pass one of them."
        )
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # a pandas data frame: it iterates over columns
        rows = ({key: _plain(value) for key, value in row.items()} for row in source.to_dict("records"))
        return map(without_padding, rows)
    if hasattr(source, "features") and hasattr(source, "column_names"):  # of `datasets`
        return map(without_padding, source)
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


def _hub_rows(name: str, what: str) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split="train")
    except Exception as error:  # the hub client raises a dozen unrelated types; all mean that there is no data
        raise UserError(
            f"{what} {name!r} is no local file and could not be loaded as a Hugging Face dataset "
            f"({reason_of(error)}). Check the name and the network, or pass a JSON-lines file."
        ) from error
    for number, row in enumerate(_rows_of_object(dataset)):
        yield f"{name} row {number}", row
