"""Who says how toxic a text is? The scorers by name, and the check of what any of them returns.

A scorer has a `name` and maps n texts to n numbers in [0, 1], each of which depends on its own text alone. A new one
is one file and one line in `SCORERS`, or in `WITH_ARGUMENT` if it needs a file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

import numpy as np

from efface.errors import RunError, UserError, described
from efface.progress import track
from efface.registry import resolve

SCORERS = {
    "alt-profanity-check": "efface.scoring.profanity:ProfanityScorer",
}
WITH_ARGUMENT = {
    "words": "efface.scoring.words:WordListScorer",
    "judge": "efface.scoring.judge:Judge.load",
}
FORMS = {
    "hf:ID_OR_DIR": "any sequence classifier of transformers; hf:ID_OR_DIR#LABEL says which label means toxic",
    "words:FILE": "1 for a text with a word of the list, one word or phrase a line",
    "judge:DIR": "our own second judge, made by `efface scorers --train`; it never selects pairs",
    "mean:A,B,...": "the mean of other scorers",
    "max:A,B,...": "the highest score of other scorers",
    "package.module:attribute": "your own",
}
DEFAULT_SCORER = "alt-profanity-check"
CHUNK = 1024
"""Texts that `score` passes at once: what an interruption can lose of a cached scorer's work."""


class Scorer(Protocol):
    """Toxicity of texts as a probability.

    It may have further attributes: `version`, a text that changes whenever its scores do, without which nothing of it
    is cached; `selects_pairs`, False for a judge that must not choose what a model is trained on; and `seen(texts)`,
    (n,) bools, whether it was trained on a text, by which `efface scorers --check` leaves that text out.
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


def load_scorer(name: str | Scorer, *, label: str | None = None, device: str | None = None) -> Scorer:
    """The scorer called `name`; a scorer itself is returned as it is.

    Args:
        name: an entry of `SCORERS` or one of `FORMS`. Any existing directory, or an id with a slash, is taken for a
            Hugging Face classifier; `package.module:attribute` is a third party's scorer, scorer class or plain
            function; the members of `mean:` and `max:` have any other form, without commas.
        label: which label of a Hugging Face classifier means toxic; None finds it by name.
        device: of a Hugging Face classifier.

    Raises:
        UserError: if there is no such scorer.
    """
    if not isinstance(name, str):
        return name
    if name in SCORERS:
        return resolve_name(SCORERS[name])()
    kind, _, argument = name.partition(":")
    if kind in WITH_ARGUMENT:
        return resolve_name(WITH_ARGUMENT[kind])(argument)
    if kind in ("mean", "max") and argument:
        from efface.scoring.ensemble import Ensemble

        return Ensemble(kind, [load_scorer(member, label=label, device=device) for member in argument.split(",")])
    if name.startswith("hf:") or Path(name.rpartition("#")[0] or name).is_dir() or ("/" in name and ":" not in name):
        from efface.scoring.hf import HFScorer

        return HFScorer(name.removeprefix("hf:"), label=label, device=device)
    if ":" in name:
        return _third_party(name)
    raise UserError(f"scorer {name!r} is unknown. There are: {'; '.join([*SCORERS, *FORMS])}.")


def _third_party(name: str) -> Scorer:
    found = resolve("scorer", name, {}, "package.module:attribute")
    try:
        scorer = found() if isinstance(found, type) else found
    except (UserError, RunError):
        raise
    except (Exception, SystemExit) as error:  # a third party's code
        raise UserError(f"scorer {name!r} cannot be made: {described(error)}.") from error
    if not callable(scorer):
        raise UserError(f"scorer {name!r} is a {type(scorer).__name__}, which cannot be called with a list of texts.")
    return scorer if hasattr(scorer, "name") else NamedScorer(name, scorer)


def score(scorer: Scorer, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
    """Scores of `texts`, (n,), checked.

    Args:
        progress: show a bar.

    Raises:
        UserError: if the scorer's output is not n finite numbers in [0, 1].
        RunError: if the scorer itself fails.
    """
    starts = track(range(0, len(texts), CHUNK), f"scores of {scorer.name}", show=progress)
    return np.concatenate([np.zeros(0), *(_scores(scorer, texts[start : start + CHUNK], start) for start in starts)])


def _scores(scorer: Scorer, texts: Sequence[str], start: int) -> np.ndarray:
    try:
        raw = scorer(texts)
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
