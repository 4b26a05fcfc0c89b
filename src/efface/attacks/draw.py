"""Which of many rows or texts does an attack learn from? Equal seeds draw the same."""

import random
from collections.abc import Sequence
from typing import TypeVar

from efface.errors import UserError
from efface.files.jsonl import Row

T = TypeVar("T")


def drawn(items: Sequence[T], k: int | None, seed: int, what: str = "rows") -> list[T]:
    """`k` of `items`, or all in their order if `k` is None.

    Args:
        what: they are, for the error.

    Raises:
        UserError: if there are fewer.
    """
    if k is None:
        return list(items)
    if k > len(items):
        raise UserError(f"k={k}, but there are only {len(items)} {what}. Lower it or give more {what}.")
    return random.Random(seed).sample(items, k)


def drawn_at_most(items: Sequence[T], most: int, seed: int) -> list[T]:
    """All of `items` in their order, or `most` of them if there are more."""
    return drawn(items, most if len(items) > most else None, seed)


def prompts_among(rows: Sequence[Row], prompts: Sequence[str]) -> int:
    """How many of `prompts` are those of `rows`: an attack should not learn from what it is measured on."""
    return len({row["prompt"] for row in rows if isinstance(row["prompt"], str)} & set(prompts))
