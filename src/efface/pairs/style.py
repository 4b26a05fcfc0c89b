"""Could a discriminator tell `rejected` from `chosen` without reading a word? The AUC of a style-only classifier.

An adversary takes every shortcut there is. What this classifier sees (case, punctuation, spacing, length, repetition)
says nothing about toxicity, so the closer its AUC is to 0.5, the less the pairs can teach besides toxicity.
"""

import re
from collections.abc import Sequence

import numpy as np

KINDS = {
    "newline": r"[\n\r]",
    "quotation mark": r"[\"“”«»]",
    "digit": r"\d",
    "upper case": r"[A-Z]",
    "full stop": r"\.",
    "exclamation or question mark": r"[!?]",
    "comma": r",",
    "apostrophe": r"['’]",
    "colon or semicolon": r"[:;]",
    "bracket": r"[()\[\]{}]",
    "not ASCII": r"[^\x00-\x7f]",
    "no space in front": r"\A\S",
    "end of a sentence at the end": r"[.!?][\"'”’)]*\s*\Z",
}
"""What a discriminator could go by without reading a word: name -> pattern."""


def shortcuts(chosen: Sequence[str], rejected: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each of `KINDS` the share of the texts of either side that have it; where they differ, one can be told."""
    sides = {"chosen": chosen, "rejected": rejected}
    return {
        kind: {
            side: round(sum(re.search(pattern, text) is not None for text in texts) / max(len(texts), 1), 4)
            for side, texts in sides.items()
        }
        for kind, pattern in KINDS.items()
    }


def style_features(text: str) -> list[float]:
    """Rates of case, punctuation, spacing, length and repetition of one text."""
    words = text.split()
    letters = [c for c in text if c.isalpha()]
    n_chars, n_words = max(len(text), 1), max(len(words), 1)
    return [
        sum(c.isupper() for c in letters) / max(len(letters), 1),
        float(text.lstrip()[:1].isupper()),
        sum(text.count(mark) for mark in ".,;:") / n_chars,
        sum(text.count(mark) for mark in "!?") / n_chars,
        sum(text.count(mark) for mark in "\"'()") / n_chars,
        sum(c.isdigit() for c in text) / n_chars,
        text.count("\n") / n_chars,
        len(re.findall(r"\s[.,!?]", text)) / n_chars,
        float(text[:1].isspace()),
        len(text),
        len(words),
        sum(map(len, words)) / n_words,
        1 - len({word.lower() for word in words}) / n_words,
    ]


def style_auc(chosen: Sequence[str], rejected: Sequence[str], *, folds: int = 5, seed: int = 0) -> float | None:
    """Cross-validated AUC, pairs kept together, of boosted trees on `style_features`; None below 20 pairs."""
    if len(chosen) < 20:
        return None
    from sklearn.metrics import roc_auc_score

    predicted = style_probabilities(chosen, rejected, folds=folds, seed=seed)
    return round(float(roc_auc_score(np.repeat([0, 1], len(chosen)), predicted)), 4)


def style_probabilities(
    chosen: Sequence[str], rejected: Sequence[str], *, folds: int = 5, seed: int = 0
) -> np.ndarray:
    """(2n,) how surely a classifier that has not seen the pair takes each text for `rejected`; `chosen` come first."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import GroupKFold, cross_val_predict

    features = np.array([style_features(text) for text in [*chosen, *rejected]])  # (2n, 13)
    return cross_val_predict(
        HistGradientBoostingClassifier(max_iter=60, random_state=seed),
        features,
        np.repeat([0, 1], len(chosen)),
        groups=np.tile(np.arange(len(chosen)), 2),
        cv=GroupKFold(folds),
        method="predict_proba",
    )[:, 1]
