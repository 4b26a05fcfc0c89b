"""What is a score worth? Each scorer against labelled texts, file by file: AUC with its interval, and thresholds.

The interval is a percentile bootstrap over groups (see `LabelledText.group`): sentences of one post are not
independent. Texts that a trained judge has seen are left out for every scorer, so that all are measured on the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from efface.errors import UserError
from efface.resampling import Ranking, draw_resamples
from efface.scoring import load_scorer
from efface.scoring.cache import cached
from efface.scoring.labelled import LabelledText, load_labelled
from efface.scoring.scorer import Scorer, score

THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
RESAMPLES = 1000


@dataclass
class Quality:
    """A scorer on one set of texts. None stands for what is not defined, such as the AUC of one class alone."""

    texts: int
    toxic: int
    auc: float | None
    """The chance that a toxic text scores above a benign one, a tie counting half."""
    ci95: list[float] | None
    thresholds: list[dict[str, Any]]
    """For each threshold: `share` of texts that score above it, `precision` and `recall` of the toxic ones."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Check:
    """A scorer on one file."""

    scorer: str
    version: str | None
    file: str
    quality: Quality
    implicit: Quality | None
    """The implicitly toxic texts against the benign ones, if the file says which are implicit."""
    explicit: Quality | None
    unlabelled: int
    seen: int
    """Labelled texts left out because a scorer had been trained on them."""

    def to_dict(self) -> dict[str, Any]:
        """As it is written to JSON, flat."""
        values = asdict(self)
        return {key: values[key] for key in ("scorer", "version", "file")} | values.pop("quality") | values


def check_scorers(
    files: Sequence[str], scorers: Sequence[str | Scorer], *, seed: int = 0, progress: bool = False
) -> list[Check]:
    """Measure every scorer on every file of labelled texts (see `labelled`), file after file.

    Raises:
        UserError: for a file that cannot be read, or of which nothing is left; as `load_scorer` and `score`.
    """
    judges = [load_scorer(scorer) for scorer in scorers]
    sources = [load_labelled(file) for file in files]
    checks = []
    for source in sources:
        texts = source.texts
        for judge in judges:
            if hasattr(judge, "seen"):
                known = judge.seen([text.text for text in texts])
                texts = [text for text, trained_on in zip(texts, known, strict=True) if not trained_on]
        if not texts:
            raise UserError(f"a scorer was trained on all {len(source.texts)} texts of {source.name}: check others.")
        for judge in judges:
            scores = score(cached(judge), [text.text for text in texts], progress=progress)
            checks.append(
                Check(
                    scorer=judge.name,
                    version=getattr(judge, "version", None),
                    file=source.name,
                    quality=measure(texts, scores, seed=seed),
                    implicit=_kind(texts, scores, True, seed),
                    explicit=_kind(texts, scores, False, seed),
                    unlabelled=source.unlabelled,
                    seen=len(source.texts) - len(texts),
                )
            )
    return checks


def measure(texts: Sequence[LabelledText], scores: np.ndarray, *, seed: int = 0) -> Quality:
    """The quality of `scores`, (n,), one for each of `texts`."""
    toxic = np.array([text.toxic for text in texts], dtype=bool)
    both = toxic.any() and not toxic.all()
    aucs = np.concatenate(list(_aucs(toxic, scores, [text.group for text in texts], seed))) if both else None
    return Quality(
        texts=len(texts),
        toxic=int(toxic.sum()),
        auc=None if aucs is None else float(aucs[0]),
        # A resample of few groups may hold one class alone and then has no AUC.
        ci95=None if aucs is None else np.nanquantile(aucs[1:], [0.025, 0.975]).tolist(),
        thresholds=[_at(threshold, toxic, scores) for threshold in THRESHOLDS],
    )


def _kind(texts: Sequence[LabelledText], scores: np.ndarray, implicit: bool, seed: int) -> Quality | None:
    """The toxic texts that are (or are not) implicitly so, against all benign ones."""
    chosen = [i for i, text in enumerate(texts) if not text.toxic or text.implicit is implicit]
    if not any(texts[i].toxic for i in chosen) or all(text.implicit is None for text in texts):
        return None
    return measure([texts[i] for i in chosen], scores[chosen], seed=seed)


def _at(threshold: float, toxic: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    flagged = scores > threshold
    right = float((flagged & toxic).sum())
    return {
        "threshold": threshold,
        "share": float(flagged.mean()) if len(flagged) else None,
        "precision": right / float(flagged.sum()) if flagged.any() else None,
        "recall": right / float(toxic.sum()) if toxic.any() else None,
    }


def _aucs(toxic: np.ndarray, scores: np.ndarray, groups: Sequence[str], seed: int) -> Iterator[np.ndarray]:
    """The AUC, then blocks of those of resampled groups."""
    names, numbers = np.unique(groups, return_inverse=True)
    ranking = Ranking(scores, toxic, numbers)
    yield ranking.auc(np.ones((1, len(names))))
    for times in draw_resamples(len(names), RESAMPLES, seed, width=len(scores)):
        yield ranking.auc(times)
