"""How is our second judge trained? Logistic regression on labelled texts, calibrated and measured on others.

Texts fall into three parts by a hash of what they were made from: 80 % train the weights, 10 % calibrate (Platt 1999),
10 % are held out and measured, by source. Either class carries half of the weight, so that 0.5 means: as likely toxic
as not, where half of all texts are. A source of n texts weighs as sqrt(n): the largest does not drown the others.

What makes it a judge of *continuations*: posts with spans train it by sentences, of which those that no span touches
are benign, and ordinary sentences (`benign`) show it what edited prose looks like. On RealToxicityPrompts either adds
0.01 to 0.03 of AUC; random windows of 20 words, and the most toxic window of each toxic text, added nothing.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.data.rows import load_texts
from efface.data.text import body_sentences
from efface.errors import UserError
from efface.files.environment import environment
from efface.scoring.check import measure
from efface.scoring.judge import Judge, counts, text_key, tfidf
from efface.scoring.labelled import LabelledFile, LabelledText, load_labelled

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

REGULARISATION = 3.0  # scikit-learn's C
MIN_TEXTS = 20
"""Of either class in each part, below which no judge is made."""
PARTS = ("trained", "calibrated", "held_out")


def train_judge(
    files: Sequence[str | os.PathLike[str]],
    *,
    benign: Sequence[str | os.PathLike[str]] = (),
    seed: int = 0,
    command: str | None = None,
) -> Judge:
    """A judge trained on the labelled rows of `files`; the same files and seed give the same judge.

    About 15 seconds of one core for 60,000 sentences.

    Args:
        files: labelled rows, see `labelled`.
        benign: JSON lines with `text`: ordinary documents such as Wikipedia's, whose sentences are all benign.
        seed: decides which texts train, calibrate and measure.
        command: how this was called, for the record.

    Raises:
        UserError: for a file that cannot be read, or too few texts of a class.
    """
    sources = _unique([*map(load_labelled, files), *map(_benign_file, benign)])
    texts = [text for source in sources for text in source.texts]
    toxic = np.array([text.toxic for text in texts])
    numbers = np.repeat(np.arange(len(sources)), [len(source.texts) for source in sources])  # (n,) which source
    part = np.array([_part(text.group, seed) for text in texts])
    _check_enough(toxic, part)

    words = [text.text for text in texts]
    table = counts(words)
    weights = 1 / np.sqrt(np.bincount(numbers))[numbers]  # (n,)
    trained, calibrated = part == 0, part == 1
    idf = _idf(table[trained])
    features = tfidf(table, idf)
    coefficients = _logistic(features[trained], toxic[trained], weights[trained], REGULARISATION, seed)[0]
    coefficients = coefficients.astype(np.float32)
    logits = features @ coefficients  # (n,)
    # Two parameters need no penalty.
    slope, intercept = _logistic(logits[calibrated, None], toxic[calibrated], weights[calibrated], 1e6, seed)
    judge = Judge(
        idf,
        coefficients,
        slope=float(slope[0]),
        intercept=intercept,
        seen=[text_key(text) for text, number in zip(words, part, strict=True) if number < 2],
        meta={},
    )
    judge.meta = {
        "settings": {"regularisation": REGULARISATION, "seed": seed},
        "sources": [_counts(source, part[numbers == i]) for i, source in enumerate(sources)],
        "held_out": [
            {"file": source.name, **_quality(judge, source, part[numbers == i] == 2, seed)}
            for i, source in enumerate(sources)
        ],
        "environment": environment(seed=seed, model=None, command=command),
    }
    return judge


def _counts(source: LabelledFile, part: np.ndarray) -> dict[str, Any]:
    toxic = sum(text.toxic for text in source.texts)
    parts = {name: int((part == number).sum()) for number, name in enumerate(PARTS)}
    return {"file": source.name, "texts": len(part), "toxic": toxic, "unlabelled": source.unlabelled, **parts}


def _quality(judge: Judge, source: LabelledFile, held_out: np.ndarray, seed: int) -> dict[str, Any]:
    texts = [source.texts[i] for i in np.flatnonzero(held_out)]
    return measure(texts, judge([text.text for text in texts]), seed=seed).to_dict()


def _benign_file(file: str | os.PathLike[str]) -> LabelledFile:
    documents = load_texts(file)
    texts = [LabelledText(sentence, False, sentence) for text in documents for sentence in body_sentences(text)]
    if not texts:
        raise UserError(f"{os.fspath(file)!r} has no sentence of running text in {len(documents)} documents.")
    return LabelledFile(os.path.basename(file), texts, 0)


def _unique(sources: list[LabelledFile]) -> list[LabelledFile]:
    """Every text once for each label: what two files share counts for the first."""
    known: set[tuple[int, bool]] = set()
    kept = []
    for source in sources:
        texts = {(text_key(text.text), text.toxic): text for text in source.texts if text.text.strip()}
        kept.append(replace(source, texts=[text for key, text in texts.items() if key not in known]))
        known |= texts.keys()
    return kept


def _part(group: str, seed: int) -> int:
    """0 (80 %), 1 or 2 (10 % each)."""
    digest = hashlib.blake2b(f"{seed} {text_key(group)}".encode(), digest_size=8).digest()
    return (0, 0, 0, 0, 0, 0, 0, 0, 1, 2)[int.from_bytes(digest, "big") % 10]


def _check_enough(toxic: np.ndarray, part: np.ndarray) -> None:
    for number, name in enumerate(PARTS):
        for label, what in ((True, "toxic"), (False, "benign")):
            found = int(((part == number) & (toxic == label)).sum())
            if found < MIN_TEXTS:
                raise UserError(
                    f"{len(toxic)} texts leave {found} {what} ones to be {name.replace('_', ' ')}: a judge needs "
                    f"{MIN_TEXTS}. Give more labelled text of both kinds."
                )


def _idf(table: "csr_matrix") -> np.ndarray:
    """(COLUMNS,) ln((1 + n) / (1 + rows with the column)) + 1, scikit-learn's smooth form."""
    rows = np.bincount(table.indices, minlength=table.shape[1])
    return (np.log((1 + table.shape[0]) / (1 + rows)) + 1).astype(np.float32)


def _logistic(
    features: "csr_matrix | np.ndarray", toxic: np.ndarray, weights: np.ndarray, regularisation: float, seed: int
) -> tuple[np.ndarray, float]:
    """(coefficients, intercept), either class with half of the weight."""
    from sklearn.linear_model import LogisticRegression

    balanced = weights / np.where(toxic, weights[toxic].sum(), weights[~toxic].sum()) * len(toxic) / 2
    model = LogisticRegression(C=regularisation, solver="liblinear", random_state=seed)
    model.fit(features, toxic, sample_weight=balanced)
    return model.coef_[0], float(model.intercept_[0])
