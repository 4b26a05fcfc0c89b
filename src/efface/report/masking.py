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
    readings = {word: _readings(word) for word in set(_WORD.findall(text))}
    candidates = sorted(set().union(*readings.values()))
    if not candidates:
        return text
    scores = scorer(candidates)
    if len(scores) != len(candidates):
        raise ValueError(
            f"the scorer returned {len(scores)} scores for {len(candidates)} words; it must return one each"
        )
    bad = {candidate for candidate, score in zip(candidates, scores, strict=True) if score > threshold}
    return _WORD.sub(lambda m: _cut(m[0]) if readings[m[0]] & bad else m[0], text)


def mask_or_withhold(text: str, score: float | None, scorer: WordScorer | None) -> str:
    """Return `text` fit for display: words masked by `scorer`, or without one, the whole text withheld if in doubt."""
    if scorer is not None:
        return mask(text, scorer)
    if score is None:
        return "[masked: not scored]"
    return f"[masked: score {score:.2f}]" if score > THRESHOLD else text


def _cut(word: str) -> str:
    return word[0] + BULLET * max(len(word) - 1, 1)
