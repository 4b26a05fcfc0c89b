"""What does a trainer draw from? Tokenised pairs, ordinary passages, and the reference's states of both."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from efface.data.batch import Example, Item, PairBatch, ReferenceStates, passage_item, side_of, with_passages
from efface.data.pair_tokens import TokenizedPair


class PairDataset(torch.utils.data.Dataset[Example]):
    """Tokenised pairs, and the passages that go with any of them (`PassageStream` deals them)."""

    def __init__(
        self,
        pairs: Sequence[TokenizedPair],
        passages: Sequence[list[int]] = (),
        sides: Sequence[str] = ("chosen",),
    ):
        self.pairs, self.passages, self.sides = pairs, passages, sides
        self.states: Sequence[ReferenceStates] | None = None
        """Of the `items`, if a cache holds them."""

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        if self.states is None:
            return Example(self.pairs[index])
        n = len(self.sides)
        return Example(self.pairs[index], [self.states[number] for number in range(index * n, (index + 1) * n)])

    def add_passages(self, batch: PairBatch, numbers: Sequence[int], pad_token_id: int) -> PairBatch:
        """`batch` with these passages behind its pairs."""
        first = len(self.pairs) * len(self.sides)
        states = None if self.states is None else [self.states[first + number] for number in numbers]
        return with_passages(batch, [self.passages[number] for number in numbers], pad_token_id, states)

    @property
    def items(self) -> "Items":
        """What a reference has to be asked: the sides of all pairs whose logits are needed, then the passages."""
        return Items(self)


class Items(Sequence[Item]):
    """The sequences of a data set, without a list of them."""

    def __init__(self, dataset: PairDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset.pairs) * len(self.dataset.sides) + len(self.dataset.passages)

    def __getitem__(self, number: Any) -> Any:
        passage = number - len(self.dataset.pairs) * len(self.dataset.sides)
        if passage < 0:
            pair, side = divmod(number, len(self.dataset.sides))
            return side_of(self.dataset.pairs[pair], self.dataset.sides[side])
        if passage >= len(self.dataset.passages):
            raise IndexError(number)
        return passage_item(self.dataset.passages[passage])


class PassageStream:
    """Which passages stand in which micro-batch: as many in each, all of them in turn, shuffled anew each turn.

    The micro-batch's number alone decides, so that an interrupted run goes on as it would have, and the processes of
    a distributed one share the stream out.

    Args:
        n_passages: how many there are; 0 for none.
        per_batch: how many go into a micro-batch.
        seed: of the shuffling.
    """

    def __init__(self, n_passages: int, per_batch: int, seed: int):
        self.n_passages, self.per_batch, self.seed = n_passages, per_batch if n_passages else 0, seed
        self._shuffled: tuple[int, list[int]] = (-1, [])

    def numbers(self, micro_batch: int) -> list[int]:
        """Of the passages in the micro-batch of this number, counted over all steps and processes."""
        places = range(micro_batch * self.per_batch, (micro_batch + 1) * self.per_batch)
        return [self._turn(place // self.n_passages)[place % self.n_passages] for place in places]

    def _turn(self, turn: int) -> list[int]:
        if self._shuffled[0] != turn:
            self._shuffled = turn, np.random.default_rng([self.seed, turn]).permutation(self.n_passages).tolist()
        return self._shuffled[1]
