"""Which of many rows or texts does an attack learn from, and in which form?

Equal seeds draw the same. Texts are cut into pieces; rows are put into the template that the model is measured in.
"""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from efface.attacks.target import Target
from efface.data.preferences import SIDES, Turn
from efface.data.tokens import bos_prefix
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.model.padding import max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")


def draw(items: Sequence[T], k: int | None, seed: int, what: str = "rows") -> list[T]:
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


def draw_at_most(items: Sequence[T], most: int, seed: int) -> list[T]:
    """All of `items` in their order, or `most` of them if there are more."""
    return draw(items, most if len(items) > most else None, seed)


def count_prompts_among(rows: Sequence[Row], prompts: Sequence[str]) -> int:
    """How many of `prompts` are those of `rows`, of a conversation what its user said last: an attack should not learn
    from what it is measured on. How much white space there is tells nothing apart."""
    return len({_spaced(_asked(row["prompt"])) for row in rows} & {_spaced(prompt) for prompt in prompts})


def _asked(prompt: str | list[Turn]) -> str:
    if isinstance(prompt, str):
        return prompt
    return next((turn["content"] for turn in reversed(prompt) if turn["role"] == "user"), "")


def _spaced(text: str) -> str:
    return " ".join(text.split())


def as_measured(target: Target, rows: Sequence[Row]) -> list[Row]:
    """`rows` of a prompt and continuations in the form that the target is measured in: where its prompts are messages
    (`--chat`), plain ones become conversations. What is learned outside of the template is another task."""
    if not target.decoding.chat:
        return list(rows)
    return [
        {"prompt": [{"role": "user", "content": row["prompt"]}]}
        | {side: [{"role": "assistant", "content": row[side].strip()}] for side in SIDES}
        if isinstance(row["prompt"], str)
        else row
        for row in rows
    ]


def ordinary_text(target: Target, documents: Sequence[str], length: int, source: str) -> list[list[int]]:
    """The token ids of ordinary text to learn from, in pieces of at most `length` tokens that the model can read.

    Args:
        source: where it is from, for the error.

    Raises:
        UserError: if there are no two tokens in a row.
    """
    found = cut_into_pieces(documents, target.processing_class, min(length, max_positions(target.model) or 2**20))
    if not found:
        raise UserError(f"documents={source!r} has no text of two tokens or more. Give longer texts.")
    return found


def cut_into_pieces(
    documents: Sequence[str], processing_class: "PreTrainedTokenizerBase", length: int
) -> list[list[int]]:
    """The documents one after the other, cut into pieces of at most `length` tokens, each with its BOS, if any."""
    prefix = bos_prefix(processing_class)
    room = max(length - len(prefix), 1)
    found = []
    for text in documents:
        ids = list(processing_class(text, add_special_tokens=False, verbose=False)["input_ids"])
        found += [prefix + ids[start : start + room] for start in range(0, len(ids), room)]
    return [piece for piece in found if len(piece) > 1]
