"""How does a search over token sequences move, and what does it keep? Operators and buffer of FLRT.

A step takes a sequence from the buffer, makes candidates from it that differ in one token (swapped, inserted or
deleted), scores them and keeps the best it knows. Thompson and Sklar 2024, arXiv 2407.17447. There the sequence that
was expanded leaves the buffer; here it stays, but those that were expanded less come first.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from efface.attacks.search.prefix_objective import Ids, Scored

SHARES = {"gradient": 0.7, "sample": 0.1, "insert": 0.1, "delete": 0.1}
"""Swap by gradient, swap by the model's own samples, insert such a sample, delete; how often each is drawn, as Lucki
et al. 2024 (arXiv 2409.18025) draw them."""
OPERATORS = tuple(SHARES)


def swapped(ids: Ids, choices: Sequence[Sequence[int]]) -> list[Ids]:
    """Every sequence with one token swapped for one of the `choices` at its place (P of them)."""
    return [
        (*ids[:place], token, *ids[place + 1 :])
        for place, (old, tokens) in enumerate(zip(ids, choices, strict=True))
        for token in tokens
        if token != old
    ]


def inserted(ids: Ids, choices: Sequence[Sequence[int]]) -> list[Ids]:
    """Every sequence with one of the `choices` more, before a token or at the end (P + 1 places)."""
    return [
        (*ids[:place], token, *ids[place:])
        for place, tokens in zip(range(len(ids) + 1), choices, strict=True)
        for token in tokens
    ]


def deleted(ids: Ids) -> list[Ids]:
    """Every sequence with one token less."""
    return [(*ids[:place], *ids[place + 1 :]) for place in range(len(ids))]


def possible(operators: Iterable[str], length: int, shortest: int, longest: int) -> list[str]:
    """Those of `operators` that leave a sequence of `length` tokens within the bounds."""
    wrong = {"insert"} if length >= longest else set()
    wrong |= {"delete"} if length <= shortest else set()
    return [operator for operator in operators if operator not in wrong]


def picked(
    candidates: Iterable[Ids], width: int, keeps: Callable[[list[Ids]], list[Ids]], rng: random.Random
) -> list[Ids]:
    """At most `width` different ones of `candidates`, at random from those that `keeps` gives back."""
    order = list(dict.fromkeys(candidates))
    rng.shuffle(order)
    found: list[Ids] = []
    for start in range(0, len(order), width):
        found += keeps(order[start : start + width])
        if len(found) >= width:
            break
    return found[:width]


def sampled(logits: Tensor, allowed: Tensor, n: int, generator: torch.Generator) -> list[list[int]]:
    """At each place `n` different ones of the `allowed` tokens, as a model samples them.

    Args:
        logits: (P, V) on the CPU.
        allowed: (A,) token ids.
    """
    # The n highest after Gumbel noise are n draws without replacement.
    noise = torch.empty(len(logits), len(allowed)).exponential_(generator=generator).clamp(min=1e-20)
    keys = logits[:, allowed] - noise.log()  # (P, A)
    found: list[list[int]] = allowed[keys.topk(min(n, len(allowed)), dim=1).indices].tolist()
    return found


@dataclass
class Buffer:
    """The best `size` different sequences that were added, ascending in their loss."""

    size: int
    kept: list[Scored] = field(default_factory=list)
    expanded: Counter[Ids] = field(default_factory=Counter)
    """How often each sequence was the parent of a step."""

    @property
    def best(self) -> Scored:
        return self.kept[0]

    @property
    def parent(self) -> Scored:
        """The best of those that were expanded least."""
        return min(self.kept, key=lambda scored: self.expanded[scored.ids])

    def add(self, candidates: Iterable[Scored], parent: Ids | None = None) -> None:
        """Put those in that are better than what is there; of equals the earlier stays.

        Args:
            parent: what was expanded to make them.
        """
        known = {scored.ids: scored for scored in self.kept}
        for scored in candidates:
            known.setdefault(scored.ids, scored)
        self.kept = sorted(known.values(), key=lambda scored: scored.loss)[: self.size]
        if parent is not None:
            self.expanded[parent] += 1
