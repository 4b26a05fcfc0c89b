"""How are preference rows read, checked and tokenised? One at a time, each named by its place.

The format is TRL's: `{"prompt", "chosen", "rejected"}`, plain text or lists of chat messages; other columns are kept.
What a row may look like is in `preferences.py`, how it becomes token ids in `pair_tokens.py`.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from efface.data.pair_tokens import PairTokenizer, TokenizedPair
from efface.data.preferences import check_row
from efface.data.rows import name_of, raw_rows
from efface.data.unpaired import paired
from efface.errors import UserError
from efface.files.digests import digest
from efface.files.jsonl import Row


@dataclass
class Pairs:
    """Checked preference rows, and how many bad ones were dropped (0 unless `skip_bad_rows`)."""

    rows: list[Row]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.rows)


PairsLike = str | os.PathLike[str] | Pairs | Iterable[Any]
"""What `load_pairs` takes: see the `source` of `PairReader`. Of what its rows are made is checked when they are read:
datasets and data frames do not say it of themselves."""


class PairReader:
    """Checked rows of a source, read one at a time by iterating; `skipped` counts the bad ones dropped so far.

    Args:
        source: the path of a file (JSON lines, or what `tables.py` reads), the id of a Hugging Face dataset (its
            `train` split), `shipped:NAME` for the pairs inside the package, a dataset, its splits, a data frame, a
            list of dicts or anything else that gives them one after the other, or `Pairs`.
        skip_bad_rows: drop and count bad rows instead of stopping at the first.
    """

    def __init__(self, source: PairsLike, *, skip_bad_rows: bool = False):
        self.source, self.skip_bad_rows, self.skipped = source, skip_bad_rows, 0
        self._last: UserError | None = None
        self._begun: tuple[tuple[str, Row], Iterator[tuple[str, Row]]] | None = None

    def __iter__(self) -> Iterator[Row]:
        """Raises UserError, at the row itself: naming the file, the line, what is wrong and what to do."""
        return (row for _, row in self.placed())

    def placed(self) -> Iterator[tuple[str, Row]]:
        """(where it stands, the row) for each row; raises as iterating does."""
        if self._begun is None:
            yield from self._read()
            return
        # What `begin` has read is not read again: an iterator would not give it twice.
        first, rest = self._begun
        self._begun = None
        yield first
        yield from rest

    def begin(self) -> None:
        """Read the first row, which comes again when the reader is iterated over; raises as that does."""
        if self._begun is None:
            rest = self._read()
            first = next(rest, None)
            if first is None:  # of `Pairs` without rows
                self.raise_without_rows()
            else:
                self._begun = first, rest

    def read_all(self) -> None:
        """Read and check all rows, which come again when the reader is iterated over; raises as that does."""
        rows = list(self.placed())
        if rows:
            self._begun = rows[0], iter(rows[1:])

    def reject(self, error: UserError) -> None:
        """Drop a bad row, which this is the error of, and count it; or raise the error."""
        if not self.skip_bad_rows:
            raise error
        self.skipped += 1
        self._last = error

    def raise_without_rows(self) -> None:
        """Raise what is to be said where no row is left."""
        last = "" if self._last is None else f"; the last: {self._last}"
        raise UserError(
            f"{name_of(self.source)} holds no usable pairs ({self.skipped} bad rows{last}). "
            "Build some with `efface pairs`."
        )

    def _read(self) -> Iterator[tuple[str, Row]]:
        if isinstance(self.source, Pairs):  # checked already
            self.skipped = self.source.skipped
            yield from ((f"row {number}", row) for number, row in enumerate(self.source.rows))
            return
        self.skipped = found = 0
        for where, raw in paired(raw_rows(self.source)):
            try:
                row = check_row(raw, where)
            except UserError as error:
                self.reject(error)
                continue
            found += 1
            yield where, row
        if not found:
            self.raise_without_rows()


def tokenized(rows: PairReader | Iterable[Row], tokenizer: PairTokenizer) -> Iterator[tuple[Row, TokenizedPair]]:
    """Each row with its token ids, but for those of which nothing can be learned.

    A row that is bad only to the tokenizer or its chat template is treated by a `PairReader` as its other bad rows;
    other rows are called by their number. What was cut or dropped is warned of at the end.

    Raises:
        UserError: at a bad row, naming its place; at the end, if nothing is left.
    """
    reader = rows if isinstance(rows, PairReader) else None
    placed = ((f"row {number}", row) for number, row in enumerate(rows)) if reader is None else reader.placed()
    found = 0
    for where, row in placed:
        try:
            pair = tokenizer(row)
        except UserError as error:
            problem = UserError(f"{where}: {error}")
            if reader is None:
                raise problem from error
            reader.reject(problem)
            continue
        if pair is not None:
            found += 1
            yield row, pair
    if not found and tokenizer.pairs:
        raise UserError(
            f"none of the {tokenizer.pairs} pairs is left: chosen and rejected have the same token ids. Raise "
            "max_completion_length if they were cut, or give other pairs."
        )
    if not found and reader is not None:
        reader.raise_without_rows()
    tokenizer.warn()


def rows_digest(source: PairsLike) -> str:
    """12 hexadecimal digits that stand for the rows of a source; errors as with `PairReader`."""
    return digest(json.dumps(load_pairs(source).rows, sort_keys=True, default=str))


def load_pairs(source: PairsLike, *, skip_bad_rows: bool = False) -> Pairs:
    """Read and check preference pairs, all at once.

    Args:
        source: a file (JSON lines, JSON, CSV, TSV, parquet), the id of a Hugging Face dataset, `shipped:NAME`
            (`train`, `heldout`, `broad`, `broad-heldout`), a dataset, a data frame, or dicts with `prompt`, `chosen`
            and `rejected`.
        skip_bad_rows: drop and count bad rows instead of stopping at the first.

    Raises:
        UserError: at the first bad row, naming its place, what is wrong and what to do; if no row is left.
    """
    if isinstance(source, Pairs):
        return source
    reader = PairReader(source, skip_bad_rows=skip_bad_rows)
    rows = list(reader)
    return Pairs(rows, reader.skipped)
