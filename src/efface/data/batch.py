"""Which row and position of a batch is what? Token ids -> PairBatch, right-padded, chosen rows first.

How a row becomes token ids is in `pair_tokens.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, NotRequired, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from efface.data.pair_tokens import TokenizedPair
from efface.data.preferences import SIDES

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


def side_of(pair: TokenizedPair, side: str) -> Item:
    """The prompt and one of the continuations."""
    return pair.prompt_ids, pair.chosen_ids if side == "chosen" else pair.rejected_ids


def passage_item(ids: list[int]) -> Item:
    """Of ordinary text everything but the first token is predicted."""
    return ids[:1], ids[1:]


def collate_rows(items: Sequence[Item], pad_token_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids, attention_mask and continuation_mask, each (rows, T), right-padded."""
    input_ids, attention_mask = pad_rows([context + continuation for context, continuation in items], pad_token_id)
    continuation_mask = torch.zeros(input_ids.shape, dtype=torch.bool)
    for i, (context, continuation) in enumerate(items):
        continuation_mask[i, len(context) : len(context) + len(continuation)] = True
    return input_ids, attention_mask, continuation_mask


def pad_rows(rows: Sequence[Sequence[int]], pad: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, both (rows, T) long, of ragged rows; padded on the right, or on the left."""
    longest = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), longest), pad)
    attention_mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        input_ids[i, place] = torch.tensor(row)
        attention_mask[i, place] = 1
    return input_ids, attention_mask


def predicting_positions(continuation_mask: Tensor) -> Tensor:
    """From the tokens that *are* the continuation to the positions that *predict* them: one to the left.

    For prompt `a b` and continuation `c d`:

        tokens             a  b  c  d
        continuation_mask  0  0  1  1    residual states that L_erase uses
        returned           0  1  1  0    logits that L_retain uses

    Args:
        continuation_mask: (batch, T) bool; its first column must be False, as nothing predicts the first token.
    """
    return F.pad(continuation_mask[:, 1:], (0, 1), value=False)


def _joined(states: Sequence[ReferenceStates], normed: Sequence[ReferenceStates]) -> ReferenceStates:
    return ReferenceStates(
        hidden=torch.cat([one["hidden"] for one in states]), norms=torch.cat([one["norms"] for one in normed])
    )


def _on(device: torch.device, states: ReferenceStates) -> ReferenceStates:
    return ReferenceStates(hidden=states["hidden"].to(device), norms=states["norms"].to(device))
