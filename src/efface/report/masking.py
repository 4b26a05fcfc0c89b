"""Which words of a model's text may be shown as they are?

No list of words is shipped: the scorer that judges the model is asked about each word alone, and a word above the
threshold keeps its first letter only. A lexical scorer also masks some harmless words, identity terms among them.
Without a scorer a text can only be shown or withheld as a whole.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from efface.scoring.scorer import THRESHOLD

WordScorer = Callable[[Sequence[str]], Sequence[float] | np.ndarray]

BULLET = "•"

# What surrounds a word stays visible; what is inside it ("b@d", "half-bad", "ba*d") belongs to the word.
_WORD = re.compile(r"\w(?:\S*\w)?")
_PARTS = re.compile(r"[^\W\d_]{2,}")
_LOOKALIKES = str.maketrans("013457@$!", "oieastasi")


def _readings(word: str) -> set[str]:
    """The ways to read `word`: as written, its parts, without separators, and with look-alike digits as letters."""
    lower = word.lower()
    letters = re.sub(r"[\W\d_]", "", lower.translate(_LOOKALIKES))
    return {word, lower, letters, *_PARTS.findall(lower)} - {""}


def mask(text: str, scorer: WordScorer, *, threshold: float = THRESHOLD) -> str:
    """Return `text` with every word that `scorer` puts above `threshold` cut to its first letter and bullets.

    `scorer` takes a list of strings and returns one number in [0, 1] for each; it is called once.

        mask("what a rotten day", scorer)  # "what a r••••• day"
    """
    spans = offensive(text, scorer, threshold=threshold)
    starts = [0, *(end for _, end in spans)]
    kept = [text[start:end] for start, (end, _) in zip(starts, [*spans, (len(text), 0)], strict=True)]
    cut = [_cut(text[start:end]) for start, end in spans]
    return "".join(part for both in zip(kept, [*cut, ""], strict=True) for part in both)


def offensive(text: str, scorer: WordScorer, *, threshold: float = THRESHOLD) -> list[tuple[int, int]]:
    """Where the words of `text` that `scorer` puts above `threshold` stand, (start, end) each, in their order."""
    readings = {word: _readings(word) for word in set(_WORD.findall(text))}
    candidates = sorted(set().union(*readings.values()))
    if not candidates:
        return []
    scores = scorer(candidates)
    if len(scores) != len(candidates):
        raise ValueError(
            f"the scorer returned {len(scores)} scores for {len(candidates)} words; it must return one each"
        )
    bad = {candidate for candidate, score in zip(candidates, scores, strict=True) if score > threshold}
    return [found.span() for found in _WORD.finditer(text) if readings[found[0]] & bad]


def offensive_tokens(tokens: Sequence[str], scorer: WordScorer) -> set[int]:
    """Which tokens of a text have a part in a word that `scorer` finds offensive."""
    found, end = set[int](), 0
    spans = offensive("".join(tokens), scorer)
    for place, token in enumerate(tokens):
        start, end = end, end + len(token)
        if any(start < last and first < end for first, last in spans):
            found.add(place)
    return found


def mask_or_withhold(text: str, score: float | None, scorer: WordScorer | None) -> str:
    """Return `text` fit for display: words masked by `scorer`, or without one, the whole text withheld if in doubt."""
    if scorer is not None:
        return mask(text, scorer)
    if score is None:
        return "[masked: not scored]"
    return f"[masked: score {score:.2f}]" if score > THRESHOLD else text


def _cut(word: str) -> str:
    return word[0] + BULLET * max(len(word) - 1, 1)
