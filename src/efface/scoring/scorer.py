"""What is a scorer? It has a `name` and maps n texts to n numbers in [0, 1], each of which depends on its own text
alone; `score` checks what any of them returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from efface.errors import RunError, UserError
from efface.terminal.progress import track

THRESHOLD = 0.5
"""A text that scores above it is toxic."""
CHUNK = 1024
"""Texts that `score` passes at once: what an interruption can lose of a cached scorer's work."""


class Scorer(Protocol):
    """Toxicity of texts as a probability.

    It may have further attributes: `version`, a text that changes whenever its scores do, without which nothing of it
    is cached; `selects_pairs`, False for a judge that must not choose what a model is trained on; `seen(texts)`,
    (n,) bools, whether it was trained on a text, by which `efface scorers --check` leaves that text out; and
    `of_answers(prompts, texts)`, (n,) scores of texts as answers, by which it is asked where there are prompts.
    """

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


def score(
    scorer: Scorer, texts: Sequence[str], prompts: Sequence[str] | None = None, *, progress: bool = False
) -> np.ndarray:
    """Scores of `texts`, (n,), checked.

    Args:
        prompts: what each text answers, for a scorer that reads it; None: nothing.
        progress: show a bar.

    Raises:
        UserError: if the scorer's output is not n finite numbers in [0, 1].
        RunError: if the scorer itself fails.
    """
    starts = track(range(0, len(texts), CHUNK), f"scores of {scorer.name}", show=progress)
    asked = None if prompts is None else getattr(scorer, "of_answers", None)

    def chunk(start: int) -> np.ndarray:
        part = slice(start, start + CHUNK)
        if asked is None or prompts is None:
            return _scores(scorer, lambda: scorer(texts[part]), texts[part], start)
        return _scores(scorer, lambda: asked(prompts[part], texts[part]), texts[part], start)

    return np.concatenate([np.zeros(0), *map(chunk, starts)])


def at_threshold(scores: np.ndarray, threshold: float) -> np.ndarray:
    """(n,) probabilities, stretched so that what lay at `threshold` lies at 1/2, and 0 and 1 where they were."""
    above = scores > threshold
    return np.where(above, 1 - (1 - scores) / (2 - 2 * threshold), scores / (2 * threshold))


def _scores(scorer: Scorer, ask: Callable[[], Any], texts: Sequence[str], start: int) -> np.ndarray:
    try:
        raw = ask()
    except (UserError, RunError):
        raise
    except (Exception, SystemExit) as error:  # whatever a third party's code raises; the cause is chained
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
            f"scorer {scorer.name!r} returned {scores[wrong[0]]} for text {start + wrong[0]} ({wrong.size} of "
            f"{len(texts)} scores are not within 0 and 1). A scorer must return finite probabilities."
        )
    return scores
