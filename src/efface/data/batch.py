"""How does a preference row become a batch? checked rows -> token ids -> PairBatch.

The format is TRL's: `{"prompt", "chosen", "rejected"}`, plain text or lists of chat messages; other columns are kept.
What a row may look like is in `preferences.py`, how it becomes token ids in `pair_tokens.py`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from efface.data.pair_tokens import PairTokenizer, TokenizedPair
from efface.data.pair_tokens import tokenize_pair as tokenize_pair
from efface.data.preferences import SIDES, check_row
from efface.data.rows import Row, name_of, raw_rows
from efface.data.tokens import encode_continuation as encode_continuation
from efface.data.tokens import encode_prompt as encode_prompt
from efface.errors import UserError


@dataclass
class Pairs:
    """Checked preference rows, and how many bad ones were dropped (0 unless `skip_bad_rows`)."""

    rows: list[Row]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.rows)


class PairReader:
    """Checked rows of a source, read one at a time by iterating; `skipped` counts the bad ones dropped so far.

    Args:
        source: the path of a file (JSON lines, or what `tables.py` reads), the id of a Hugging Face dataset (its
            `train` split), `shipped:NAME` for the pairs inside the package, a dataset, its splits, a data frame, a
            list of dicts or anything else that gives them one after the other, or `Pairs`.
        skip_bad_rows: drop and count bad rows instead of stopping at the first.
    """

    def __init__(self, source: Any, *, skip_bad_rows: bool = False):
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
        for where, raw in raw_rows(self.source):
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


def load_pairs(source: Any, *, skip_bad_rows: bool = False) -> Pairs:
    """Read and check preference pairs, all at once; arguments and errors as with `PairReader`."""
    if isinstance(source, Pairs):
        return source
    reader = PairReader(source, skip_bad_rows=skip_bad_rows)
    rows = list(reader)
    return Pairs(rows, reader.skipped)


Item = tuple[list[int], list[int]]
"""One sequence as (context, continuation), token ids."""


class ReferenceStates(TypedDict):
    """What the reference has to say of a batch (or of one sequence)."""

    hidden: Tensor
    """(N, d) final hidden states at the positions whose logits a method asks for, in row-major order."""
    norms: Tensor
    """(chosen tokens, layers) norms of the residual stream at the tokens of y+."""
    residuals: NotRequired[dict[int, Tensor]]
    """layer -> (tokens, d) of the continuations whose residuals a method asks the live reference for."""


class PairBatch(TypedDict):
    """2B + R rows: B chosen, then the B rejected of the same pairs, then R ordinary passages (`retain_text`)."""

    input_ids: Tensor
    """(2B + R, T) long, right-padded."""
    attention_mask: Tensor
    """(2B + R, T) long, 1 on real tokens."""
    continuation_mask: Tensor
    """(2B + R, T) bool, True on the tokens that are the continuation (of a passage: all but the first)."""
    n_pairs: int
    """B."""
    reference: NotRequired[ReferenceStates]
    """From the cache, if there is one."""


class Example(NamedTuple):
    """A pair, and the reference's states of it from the cache."""

    pair: TokenizedPair
    states: list[ReferenceStates] = []
    """Of the pair's sides, in the order of `PairDataset.sides`."""


@dataclass
class PairCollator:
    """Stack tokenised pairs into one right-padded batch, chosen rows first.

        >>> collate = PairCollator(pad_token_id=0)
        >>> collate([TokenizedPair([5, 6], [7], [8, 9])])["input_ids"]
        tensor([[5, 6, 7, 0],
                [5, 6, 8, 9]])

    What the cache holds of the reference is put in the same order. Passages come later (`with_passages`).
    """

    pad_token_id: int

    def __call__(self, features: Sequence[TokenizedPair | Example]) -> PairBatch:
        examples = [feature if isinstance(feature, Example) else Example(feature) for feature in features]
        items = [side_of(example.pair, name) for name in SIDES for example in examples]
        input_ids, attention_mask, continuation_mask = collate_rows(items, self.pad_token_id)
        batch = PairBatch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            continuation_mask=continuation_mask,
            n_pairs=len(examples),
        )
        if any(example.states for example in examples):
            n_sides = len(examples[0].states)
            sides = [example.states[side] for side in range(n_sides) for example in examples]
            batch["reference"] = _joined(sides, sides[: len(examples)])  # norms are of y+
        return batch


def with_passages(
    batch: PairBatch,
    passages: Sequence[list[int]],
    pad_token_id: int,
    states: Sequence[ReferenceStates] | None = None,
) -> PairBatch:
    """`batch` with a row for each passage (token ids) after its pairs, and the reference's `states` of them."""
    if not passages:
        return batch
    device = batch["input_ids"].device
    added = [part.to(device) for part in collate_rows([passage_item(ids) for ids in passages], pad_token_id)]
    old = batch["input_ids"], batch["attention_mask"], batch["continuation_mask"]
    width = max(old[0].shape[1], added[0].shape[1])
    fill = (pad_token_id, 0, False)

    def joined(a: Tensor, b: Tensor, value: int) -> Tensor:
        return torch.cat([F.pad(part, (0, width - part.shape[1]), value=value) for part in (a, b)])

    input_ids, attention_mask, continuation_mask = map(joined, old, added, fill)
    whole = PairBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        continuation_mask=continuation_mask,
        n_pairs=batch["n_pairs"],
    )
    if states is not None:
        moved = [_on(device, one) for one in states]
        pairs = [batch["reference"]] if "reference" in batch else []
        whole["reference"] = _joined(pairs + moved, pairs or moved)  # norms are of y+, if it is asked for at all
    return whole


def _joined(states: Sequence[ReferenceStates], normed: Sequence[ReferenceStates]) -> ReferenceStates:
    return ReferenceStates(
        hidden=torch.cat([one["hidden"] for one in states]), norms=torch.cat([one["norms"] for one in normed])
    )


def _on(device: torch.device, states: ReferenceStates) -> ReferenceStates:
    return ReferenceStates(hidden=states["hidden"].to(device), norms=states["norms"].to(device))


def side_of(pair: TokenizedPair, side: str) -> Item:
    """The prompt and one of the continuations."""
    return pair.prompt_ids, pair.chosen_ids if side == "chosen" else pair.rejected_ids


def passage_item(ids: list[int]) -> Item:
    """Of ordinary text everything but the first token is predicted."""
    return ids[:1], ids[1:]


def collate_rows(items: Sequence[Item], pad_token_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids, attention_mask and continuation_mask, each (rows, T), right-padded."""
    shape = (len(items), max(len(context) + len(continuation) for context, continuation in items))
    input_ids = torch.full(shape, pad_token_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    continuation_mask = torch.zeros(shape, dtype=torch.bool)
    for i, (context, continuation) in enumerate(items):
        end = len(context) + len(continuation)
        input_ids[i, :end] = torch.tensor(context + continuation)
        attention_mask[i, :end] = 1
        continuation_mask[i, len(context) : end] = True
    return input_ids, attention_mask, continuation_mask
