"""What is learned in relearning? Token ids of toxic rows, polite rows, labelled or ordinary text, by their shares.

    toxic      prompt + rejected of held-out pairs
    benign     prompt + chosen
    own        prompt + what the model under attack itself answers there (Hu et al. 2024, arXiv 2406.13356)
    labelled   toxic texts of another make; the first half of the words is the prompt, the rest the answer
    text       ordinary documents

Where the model is measured inside its chat template, all but `text` is learned inside of it.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from efface.attacks.draw import as_measured, count_prompts_among, draw, draw_at_most, ordinary_text
from efface.attacks.own_answers import own_answers
from efface.attacks.target import Target
from efface.data.pair_tokens import TokenizedPair, tokenize_pairs
from efface.data.rows import load_texts
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.model.padding import max_positions

T = TypeVar("T")
KINDS = ("toxic", "benign", "own", "labelled", "text")
OF_ROWS = {"toxic", "benign", "own"}
MOST_LABELLED = 1024
"""Of a large file as many are drawn, more than any attack here has steps for."""


@dataclass
class Sources:
    """Token ids to learn from, and how much of it is what the attack is measured on."""

    ids: dict[str, list[list[int]]] = field(default_factory=dict)
    """Kind -> sequences."""
    seen: dict[str, int] = field(default_factory=dict)
    """`prompts_among_rows` and `texts_among_rows`."""


def read_sources(
    target: Target,
    kinds: Sequence[str],
    *,
    documents: str,
    k: int | None,
    max_prompt_length: int,
    max_completion_length: int,
) -> Sources:
    """Token ids of each kind of data that is asked for; a row that is too long is cut, and a line says so.

    Args:
        documents: for "text".
        k: rows, and texts of each kind, drawn under the seed; None for all.

    Raises:
        UserError: if there are fewer than `k`, or what a kind needs is not there.
    """
    lengths = {"max_prompt_length": max_prompt_length, "max_completion_length": max_completion_length}
    rows: list[Row] = []
    halves: list[Row] = []
    texts: list[str] = []
    found = Sources()
    if OF_ROWS & set(kinds):
        rows = draw(target.rows, k, target.seed)
        pairs = _pairs(target, rows, lengths)
        of_rows = {
            "toxic": lambda: [pair.prompt_ids + pair.rejected_ids for pair in pairs],
            "benign": lambda: [pair.prompt_ids + pair.chosen_ids for pair in pairs],
            "own": lambda: [prompt + answer for prompt, answer in own_answers(target, pairs)],
        }
        found.ids |= {kind: make() for kind, make in of_rows.items() if kind in kinds}
        if not all(found.ids.values()):
            raise UserError("data='own': the model answers no prompt of the rows with a word. Choose other data.")
    if "labelled" in kinds:
        halves = _in_halves(target)
        halves = draw_at_most(halves, MOST_LABELLED, target.seed) if k is None else draw(halves, k, target.seed)
        found.ids["labelled"] = [pair.prompt_ids + pair.rejected_ids for pair in _pairs(target, halves, lengths)]
    if "text" in kinds:
        texts = draw(load_texts(documents), k, target.seed, "documents")
        found.ids["text"] = ordinary_text(target, texts, max_prompt_length + max_completion_length, documents)
    found.seen = {
        "prompts_among_rows": count_prompts_among([*rows, *halves], target.prompts),
        "texts_among_rows": len(set(texts) & set(target.text or [])),
    }
    return found


def _pairs(target: Target, rows: Sequence[Row], lengths: Mapping[str, Any]) -> list[TokenizedPair]:
    return tokenize_pairs(
        as_measured(target, rows), target.processing_class, **lengths, max_positions=max_positions(target.model)
    )


def _in_halves(target: Target) -> list[Row]:
    """The labelled texts as RealToxicityPrompts halves its sentences: prompt, and what follows."""
    if target.labelled is None:
        raise UserError("data='labelled' needs labelled texts: pass labelled=FILE.")
    found: list[Row] = []
    for text in target.labelled:
        words = text.split()
        first, rest = " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
        if first:
            found.append({"prompt": first, "chosen": f" {rest}", "rejected": f" {rest}"})
    if not found:
        raise UserError("data='labelled': no toxic text has two words or more. Give a file with longer texts.")
    return found


def mixture(sources: Mapping[str, Sequence[T]], shares: Mapping[str, float]) -> list[T]:
    """The shortest list that has every item at least once and each source by its share (rounded to whole items).

    A source that is too short for its share is begun again.
    """
    size = max(len(items) / shares[kind] for kind, items in sources.items())
    return [
        item
        for kind, items in sources.items()
        for item in itertools.islice(itertools.cycle(items), round(shares[kind] * size))
    ]
