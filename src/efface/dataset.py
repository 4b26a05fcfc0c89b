"""What does a trainer draw from? Tokenised pairs, with their share of passages and the reference's states of both."""

from collections.abc import Sequence
from typing import Any

import torch

from efface.data import Example, Item, ReferenceStates, TokenizedPair, passage_item, side_of


class PairDataset(torch.utils.data.Dataset[Example]):
    """Tokenised pairs, each with its share of ordinary passages: the order of the data is one thing to resume."""

    def __init__(
        self,
        pairs: Sequence[TokenizedPair],
        passages: Sequence[list[int]] = (),
        passages_per_pair: float = 0.0,
        sides: Sequence[str] = ("chosen",),
    ):
        self.pairs, self.passages, self.per_pair = pairs, passages, passages_per_pair if passages else 0.0
        self.sides = sides
        self.states: Sequence[ReferenceStates] | None = None
        """Of the `items`, if a cache holds them."""

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        first, last = int(index * self.per_pair), int((index + 1) * self.per_pair)
        passages = [i % len(self.passages) for i in range(first, last)]
        states = []
        if self.states is not None:
            n = len(self.sides)
            numbers = [*range(index * n, (index + 1) * n), *(len(self.pairs) * n + i for i in passages)]
            states = [self.states[number] for number in numbers]
        return Example(self.pairs[index], [self.passages[i] for i in passages], states)

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
