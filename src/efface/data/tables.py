"""Which rows are in a file that is not JSON lines? Parquet, CSV, TSV, a JSON array, any of them packed with gzip, and
what `datasets` saves to disk. What a file is, its first bytes tell, and where they cannot its name.
"""

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from efface.errors import UserError, reason_of
from efface.files.io import opened

DELIMITERS = {".csv": ",", ".tsv": "\t"}
UNREAD = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ\x00": "packed with xz",
    b"(\xb5/\xfd": "packed with zstd",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
}
SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")
"""One of them at least stands in a folder of `save_to_disk`."""
HEAD = 16


def is_saved(folder: Path) -> bool:
    """Is it what `datasets.Dataset.save_to_disk` writes?"""
    return any((folder / name).is_file() for name in SAVED)


def saved(folder: Path) -> Any:
    """The dataset, or the splits of it, that lie in a folder of `save_to_disk`."""
    from datasets import load_from_disk

    try:
        return load_from_disk(str(folder))
    except Exception as error:  # of a dozen unrelated types; all mean that the folder is not whole
        raise UserError(f"folder {str(folder)!r} is no whole saved dataset ({reason_of(error)}).") from error


def table_rows(path: Path) -> Iterator[tuple[str, Any]] | None:
    """(where it stands, the row) for each row of a table; None if the file is taken for JSON lines.

    Raises:
        UserError: now or at the row, for a file of another kind, or one that is broken.
        OSError: if the file cannot be read.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    with path.open("rb") as file:
        head = file.read(HEAD)
    packed = head[:2] == b"\x1f\x8b"
    if packed:
        suffixes = suffixes[:-1] if suffixes[-1:] == [".gz"] else suffixes
        try:
            with gzip.open(path) as unpacked:
                head = unpacked.read(HEAD)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"file {str(path)!r} is no whole gzip file ({reason_of(error)}).") from error
    for magic, what in UNREAD.items():
        if head.startswith(magic):
            raise UserError(
                f"file {str(path)!r} is {what}, which is not read. Unpack or convert it: JSON lines, parquet, CSV "
                "and TSV are, also packed with gzip."
            )
    last = suffixes[-1] if suffixes else ""
    if head.startswith(b"PAR1"):
        if packed:
            raise UserError(f"file {str(path)!r} is parquet packed with gzip. Unpack it: parquet is packed already.")
        return _parquet(path)
    if last == ".arrow":
        return _arrow(path)
    if last in DELIMITERS:
        return _delimited(path, DELIMITERS[last])
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return _array(path, is_json=last == ".json")
    return None


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    # Through pyarrow, which `datasets` stands on: `load_dataset` would first copy the file into its own cache.
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield f"{path} row {number}", without_padding(row)
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"file {str(path)!r} is no whole parquet file ({reason_of(error)}).") from error


def _arrow(path: Path) -> Iterator[tuple[str, Any]]:
    from datasets import Dataset

    try:
        dataset = Dataset.from_file(str(path))
    except Exception as error:  # pyarrow's own types, and those of `datasets`
        raise UserError(f"file {str(path)!r} is no whole arrow file ({reason_of(error)}).") from error
    for number, row in enumerate(dataset):
        yield f"{path} row {number}", without_padding(row)


def without_padding(row: Any) -> Any:
    """A row of a table, without the keys that hold nothing in objects of it: a table gives each the keys of all, and a
    chat template would write the parameters of one tool into another."""
    return {key: _unpadded(value) for key, value in row.items()} if isinstance(row, dict) else row


def _unpadded(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpadded(one) for one in value]
    if isinstance(value, dict):
        return {key: _unpadded(one) for key, one in value.items() if one is not None}
    return value


def _delimited(path: Path, delimiter: str) -> Iterator[tuple[str, Any]]:
    # Not through pandas, for which the text "NA" is no text and "1" a number.
    reader = None
    try:
        with opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            reader = delimited_reader(text, delimiter, str(path))
            for row in reader:
                # More fields than columns stand under None, for fewer the value is None.
                extra = row.pop(None, None)
                where = f"{path}:{reader.line_num}"
                if extra is not None:
                    yield (
                        where,
                        UserError(
                            f"{where}: the line has {len(row) + len(extra)} fields, the header {len(row)}. Put a text "
                            "that holds the delimiter in quotes."
                        ),
                    )
                else:
                    yield where, {key: value for key, value in row.items() if value is not None}
    except UnicodeDecodeError as error:
        raise UserError(f"file {str(path)!r} is not valid UTF-8 (byte {error.start}). Re-encode it.") from error
    except csv.Error as error:
        raise not_delimited(error, str(path), reader) from error
    except (EOFError, zlib.error) as error:
        raise UserError(f"file {str(path)!r} is no whole table ({reason_of(error)}).") from error


def delimited_reader(lines: Iterable[str], delimiter: str, file: str) -> "csv.DictReader[str]":
    """The rows of CSV or TSV by the names of the first line.

    A text that begins with a quotation mark and does not end with one would take in the rows after it, up to the next
    mark: it is a `csv.Error`, of which `not_delimited` makes an error for the user.

    Args:
        file: whose lines they are, for errors.

    Raises:
        UserError: for a name that stands there twice.
    """
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    for name, times in Counter(reader.fieldnames or ()).items():
        if times > 1:
            raise UserError(f"{file}:1: {times} columns are called {name!r}. Rename or leave out all but one.")
    return reader


def not_delimited(error: csv.Error, file: str, reader: "csv.DictReader[str] | None") -> UserError:
    """What is wrong with a table, and where the row begins that is none."""
    line = 1 if reader is None else reader.line_num + 1
    return UserError(
        f"{file}:{line}: not a row of a table ({error}). Put a text that begins with a quotation mark in quotes, with "
        "each mark in it doubled, or give JSON lines."
    )


def _array(path: Path, *, is_json: bool) -> Iterator[tuple[str, Any]] | None:
    """The elements of a JSON array of objects; None for a file of JSON lines that happen to be arrays."""
    with opened(path) as file:
        content = file.read()
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        if not is_json or error.msg == "Extra data":
            return None
        raise UserError(
            f"{path}:{error.lineno}: not valid JSON ({error.msg} at column {error.colno}). The file begins as a JSON "
            "array of rows."
        ) from error
    except (ValueError, RecursionError):  # as lines, they are told apart
        return None
    if not rows or not all(isinstance(row, dict) for row in rows):
        return None
    return ((f"{path} row {number}", row) for number, row in enumerate(rows))
