"""Which words of a model's text may be shown as they are?

No list of words is shipped: the scorer that judges the model is asked about each word alone, and a word above the
threshold keeps its first letter only. A lexical scorer also masks some harmless words, identity terms among them.
Without a scorer a text can only be shown or withheld as a whole.
"""

import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np

from efface.scoring.scorer import THRESHOLD

WordScorer = Callable[[Sequence[str]], Sequence[float] | np.ndarray]

BULLET = "•"
RUN = 4
"""Tokens that are read together where nothing parts words."""

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
    bad = _offensive(set(_WORD.findall(text)), scorer, threshold)
    return _WORD.sub(lambda m: _cut(m[0]) if m[0] in bad else m[0], text)


def _offensive(words: set[str], scorer: WordScorer, threshold: float = THRESHOLD) -> set[str]:
    """Those of which `scorer` puts some reading above `threshold`."""
    readings = {word: _readings(word) for word in words}
    candidates = sorted(set().union(*readings.values()))
    if not candidates:
        return set()
    scores = scorer(candidates)
    if len(scores) != len(candidates):
        raise ValueError(
            f"the scorer returned {len(scores)} scores for {len(candidates)} words; it must return one each"
        )
    bad = {candidate for candidate, score in zip(candidates, scores, strict=True) if score > threshold}
    return {word for word, ways in readings.items() if ways & bad}


def mask_tokens(tokens: Sequence[str], scorer: WordScorer) -> list[str]:
    """`tokens` of a text, of which each may be shown alone, with offensive words masked: of a word in several tokens
    the first letter stays and no other, or single letters would spell it.

    Judged are whole words and each token, and where no token begins with a space, as some tokenizers decode them, all
    runs of up to RUN tokens: nobody knows there where a word ends.

        mask_tokens(["a", " rot", "ten", " day"], scorer)  # ["a", " r••", "•••", " day"]
    """
    text, ends = "".join(tokens), list(itertools.accumulate(map(len, tokens)))
    starts = [0, *ends[:-1]]
    spaced = any(token[:1] == " " and token.strip() for token in tokens[1:])
    runs = {(start, end) for n in range(1 if spaced else RUN) for start, end in zip(starts, ends[n:], strict=False)}
    words = [found.span() for found in _WORD.finditer(text)] if spaced else []
    words += [found.span() for start, end in runs for found in _WORD.finditer(text, start, end)]
    bad = _offensive({text[start:end] for start, end in words}, scorer)
    letters = list(text)
    for start, end in words:
        if text[start:end] in bad:
            kept = int(end - start > 1)
            letters[start + kept : end] = BULLET * (end - start - kept)
    return ["".join(letters[start:end]) for start, end in zip(starts, ends, strict=False)]


def mask_or_withhold(text: str, score: float | None, scorer: WordScorer | None) -> str:
    """Return `text` fit for display: words masked by `scorer`, or without one, the whole text withheld if in doubt."""
    if scorer is not None:
        return mask(text, scorer)
    if score is None:
        return "[masked: not scored]"
    return f"[masked: score {score:.2f}]" if score > THRESHOLD else text


def _cut(word: str) -> str:
    return word[0] + BULLET * max(len(word) - 1, 1)
