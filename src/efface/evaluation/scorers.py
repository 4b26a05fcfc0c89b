"""Who says how toxic a text is? The scorers by name, and the check of what any of them returns.

A scorer has a `name` and maps n texts to n numbers in [0, 1]. A new one is one file and one line in `SCORERS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

import numpy as np

from efface.errors import RunError, UserError

SCORERS = {
    "alt-profanity-check": "efface.evaluation.scorer_profanity:ProfanityScorer",
}
DEFAULT_SCORER = "alt-profanity-check"


class Scorer(Protocol):
    """Toxicity of texts as a probability."""

    @property
    def name(self) -> str:
        """How results call it."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(n,) floats in [0, 1], one per text."""


@dataclass
class NamedScorer:
    """A plain function as a scorer."""

    name: str
    function: Callable[[Sequence[str]], Any]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray(self.function(texts), dtype=float)


def load_scorer(name: str | Scorer, *, label: str | None = None, device: str | None = None) -> Scorer:
    """The scorer called `name`; a scorer itself is returned as it is.

    Args:
        name: an entry of `SCORERS`; `hf:ID` or `hf:DIRECTORY` (or any existing directory, or an id with a slash) for a
            Hugging Face sequence classifier; `package.module:attribute` for a third party's scorer, scorer class or
            plain function.
        label: which label of a Hugging Face classifier means toxic; None finds it by name.
        device: of a Hugging Face classifier.

    Raises:
        UserError: if there is no such scorer.
    """
    if not isinstance(name, str):
        return name
    if name in SCORERS:
        return resolve_name(SCORERS[name])()
    if name.startswith("hf:") or Path(name).is_dir() or ("/" in name and ":" not in name):
        from efface.evaluation.scorer_hf import HFScorer

        return HFScorer(name.removeprefix("hf:"), label=label, device=device)
    if ":" in name:
        return _third_party(name)
    raise UserError(
        f"scorer {name!r} is unknown. There are: {', '.join(sorted(SCORERS))}; hf:ID_OR_DIRECTORY for a Hugging Face "
        "sequence classifier; package.module:attribute for one of your own."
    )


def _third_party(name: str) -> Scorer:
    try:
        found = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"scorer {name!r} cannot be imported: {error}. Write package.module:attribute.") from error
    scorer = found() if isinstance(found, type) else found
    if not callable(scorer):
        raise UserError(f"scorer {name!r} is a {type(scorer).__name__}, which cannot be called with a list of texts.")
    return scorer if hasattr(scorer, "name") else NamedScorer(name, scorer)


def score(scorer: Scorer, texts: Sequence[str]) -> np.ndarray:
    """Scores of `texts`, (n,), checked.

    Raises:
        UserError: if the scorer's output is not n finite numbers in [0, 1].
        RunError: if the scorer itself fails.
    """
    if not texts:
        return np.zeros(0)
    try:
        raw = scorer(texts)
    except UserError:
        raise
    except Exception as error:  # whatever a third party's code raises; the cause is chained
        raise RunError(f"scorer {scorer.name!r} failed: {type(error).__name__}: {error}") from error
    try:
        scores = np.asarray(raw, dtype=float)
    except (TypeError, ValueError) as error:
        raise UserError(f"scorer {scorer.name!r} returned no numbers but a {type(raw).__name__}.") from error
    if scores.shape != (len(texts),):
        raise UserError(f"scorer {scorer.name!r} returned shape {scores.shape} for {len(texts)} texts, not one each.")
    wrong = np.flatnonzero(~((scores >= 0) & (scores <= 1)))  # NaN fails both comparisons
    if wrong.size:
        raise UserError(
            f"scorer {scorer.name!r} returned {scores[wrong[0]]} for text {wrong[0]} ({wrong.size} of {len(texts)} "
            "scores are not within 0 and 1). A scorer must return finite probabilities."
        )
    return scores
