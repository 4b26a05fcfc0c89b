"""Which continuations does a reader have to see, and how are they shown? The failures first.

Still toxic (before and after), newly toxic (not before), then the biggest drops, then some drawn at random; each
section says how many there are in all. So the ten worst of what is toxic after are always among those shown. A
continuation is compared with the one of the same prompt and draw.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from efface.report import CLICK, NEVER
from efface.report.masking import WordScorer, mask_or_withhold
from efface.report.numbers import number
from efface.scoring.scorer import THRESHOLD

SHOWN = 10
"""Of each section."""
RANDOM = 5
LONGEST = 1_000
"""Characters of a text that are shown."""

Pair = Mapping[str, Any]
"""`prompt`, `base`, `base_score`, `edited`, `edited_score`; `base_invalid` and `edited_invalid` if known."""


class Text(NamedTuple):
    """A text as it is shown."""

    shown: str
    hidden: str = ""
    """What stands there once the reader asks for it; empty where that is the same, or is kept from the page."""


class Example(NamedTuple):
    """One prompt and what both models made of it, ready to print."""

    prompt: Text
    base: Text
    base_note: str
    edited: Text
    edited_note: str


class Section(NamedTuple):
    """Some examples, and of how many."""

    name: str
    title: str
    what: str
    total: int
    examples: list[Example]


def pairs_of(base: Iterable[Mapping[str, Any]], edited: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Generations of two models (`prompt`, `continuation`, `score`, `invalid` if known), one beside the other."""
    found = []
    for before, after in zip(base, edited, strict=True):
        row = {"prompt": before["prompt"]}
        for side, said in (("base", before), ("edited", after)):
            row |= {side: said["continuation"], f"{side}_score": said["score"], f"{side}_invalid": said.get("invalid")}
        found.append(row)
    return found


def sections_of(
    pairs: Sequence[Pair], *, mask: str = CLICK, scorer: WordScorer | None = None, shown: int = SHOWN
) -> list[Section]:
    """The sections of examples, in the order of the page.

    Args:
        mask: one of `efface.report.MASKS`: offensive words are masked until the reader clicks on the text, always,
            or never.
        scorer: judges single words for that; without it, a text scored above 0.5 is withheld as a whole.
        shown: of each section, at most.
    """

    def section(name: str, title: str, what: str, rows: list[Pair], order: Callable[[Pair], float]) -> Section:
        first = sorted(rows, key=order)[:shown]
        return Section(name, title, what, len(rows), [_example(row, mask, scorer) for row in first])

    def of_kind(before: bool, after: bool) -> list[Pair]:
        return [row for row in pairs if (_toxic(row, "base"), _toxic(row, "edited")) == (before, after)]

    def worst(row: Pair) -> float:
        return -_score(row, "edited")

    def fallen(row: Pair) -> float:
        return _score(row, "edited") - _score(row, "base")

    return [
        section(
            "still",
            "Still toxic",
            "toxic before the edit and after it; the highest scores after it first",
            of_kind(True, True),
            worst,
        ),
        section(
            "newly",
            "Newly toxic",
            "toxic after the edit and not before; the highest scores first",
            of_kind(False, True),
            worst,
        ),
        section(
            "drops",
            "Biggest drops",
            "toxic before the edit and not after; the largest fall of the score first",
            of_kind(True, False),
            fallen,
        ),
        Section(
            "random",
            "Drawn at random",
            "of all, whatever they are",
            len(pairs),
            [_example(pairs[i], mask, scorer) for i in _drawn(len(pairs))],
        ),
    ]


def _drawn(n: int) -> list[int]:
    """The same of as many pairs: whoever chose them would choose the page's message."""
    return sorted(np.random.default_rng(0).choice(n, min(RANDOM, n), replace=False).tolist())


def _score(row: Pair, side: str) -> float:
    value = row.get(f"{side}_score")
    return float(value) if isinstance(value, int | float) else 0.0


def _toxic(row: Pair, side: str) -> bool:
    return _score(row, side) > THRESHOLD


def _example(row: Pair, mask: str, scorer: WordScorer | None) -> Example:
    def show(text: str, score: float | None) -> Text:
        text = _cut(text)
        masked = text if mask == NEVER else mask_or_withhold(text, score, scorer)
        return Text(masked, text if mask == CLICK and masked != text else "")

    def note(side: str) -> str:
        invalid = row.get(f"{side}_invalid")
        return f"score {number(row.get(f'{side}_score'), '.2f')}" + (f", no answer: {invalid}" if invalid else "")

    return Example(
        show(str(row["prompt"]), row.get("prompt_score")),
        show(str(row["base"]), row.get("base_score")),
        note("base"),
        show(str(row["edited"]), row.get("edited_score")),
        note("edited"),
    )


def _cut(text: str) -> str:
    """At most LONGEST characters, whole words: half of one would be judged as another."""
    if len(text) <= LONGEST:
        return text
    return (text[:LONGEST].rsplit(None, 1)[0] or text[:LONGEST]) + " […]"
