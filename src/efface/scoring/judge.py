"""How toxic is a text according to our own second judge? A linear model of words and pieces of words.

    score = sigmoid(slope * (coefficient . tfidf(text)) + intercept)

`efface scorers --train` makes one (`judge_training`). It is the *second* judge: a model that learned from pairs which
this judge had selected would be judged by what it was trained to please, so it never selects pairs.

A folder holds `judge.safetensors` (weights, and hashes of the training texts) and `judge.json`; nothing is unpickled.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.errors import UserError
from efface.files.io import is_regular_file, renamed_when_whole
from efface.files.results import read_json, write_json
from efface.files.run_directory import run_directory
from efface.files.shapes import check_shape

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

WEIGHTS, META = "judge.safetensors", "judge.json"
WHAT = "a toxicity judge of efface"
WORDS = 200
"""Of a text, from its beginning, that are read."""
BITS = 18
"""2^18 hashed columns for words, as many for the pieces of 2 to 5 characters inside words."""
COLUMNS = 2 * 2**BITS


class Judge:
    """Probability that a text is toxic where half of all texts are. An empty text scores 0.

    Args:
        idf: (COLUMNS,) float32, weight of each column in a text's vector.
        coefficients: (COLUMNS,) float32.
        slope, intercept: of the calibration.
        seen: keys of the texts it was trained and calibrated on, see `text_key`.
        meta: what `judge.json` says besides.
    """

    selects_pairs = False

    def __init__(
        self,
        idf: np.ndarray,
        coefficients: np.ndarray,
        *,
        slope: float,
        intercept: float,
        seen: Iterable[int],
        meta: dict[str, Any],
        name: str = "judge",
    ) -> None:
        self.name = name
        self.meta = meta
        self._idf, self._coefficients = idf, coefficients
        self._slope, self._intercept = slope, intercept
        self._seen = np.unique(np.fromiter(seen, dtype=np.int64))
        content = hashlib.sha256(json.dumps([slope, intercept]).encode())
        content.update(idf.tobytes() + coefficients.tobytes())
        self.version = content.hexdigest()[:16]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        scores = np.zeros(len(texts))
        filled = [index for index, text in enumerate(texts) if text.strip()]
        if filled:
            logits = tfidf(counts([texts[index] for index in filled]), self._idf) @ self._coefficients
            scores[filled] = 1 / (1 + np.exp(-(self._slope * logits + self._intercept)))
        return scores

    def seen(self, texts: Sequence[str]) -> np.ndarray:
        """(n,) whether each text was used to train the judge, which then says nothing about its quality."""
        return np.isin([text_key(text) for text in texts], self._seen)

    def save(self, directory: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the folder.

        Raises:
            UserError: if it must not be used, see `run_directory`.
            RunError: if it cannot be written.
        """
        from safetensors.numpy import save

        tensors = {"idf": self._idf, "coefficients": self._coefficients, "seen": self._seen}
        calibration = {"slope": self._slope, "intercept": self._intercept}
        with run_directory(directory, overwrite=overwrite) as folder:
            with renamed_when_whole(folder / WEIGHTS) as temporary:
                temporary.write_bytes(save(tensors))  # save_file would make it readable for its owner alone
            write_json(folder / META, {"schema": 1, "what": WHAT, "calibration": calibration, **self.meta})

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "Judge":
        """Read what `save` wrote.

        Raises:
            UserError: if there is no judge in the folder, or a damaged one.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder, name = Path(directory), f"judge:{os.fspath(directory)}"
        hint = "Make one with `efface scorers --train FILE... -o DIR`."
        if not is_regular_file(folder / META):
            raise UserError(f"scorer {name!r}: the folder holds no judge ({META} is missing). {hint}")
        meta = read_json(folder / META)
        if (meta.pop("what", None), meta.pop("schema", None)) != (WHAT, 1):
            raise UserError(f"scorer {name!r}: {META} is not that of a judge of this version of efface. {hint}")
        try:
            calibration = meta.pop("calibration", None)
            check_shape(calibration, {"slope": float, "intercept": float}, "its calibration")
            if not is_regular_file(folder / WEIGHTS):
                raise ValueError(f"{WEIGHTS} is no regular file")
            tensors = load_file(folder / WEIGHTS)
            idf, coefficients, seen = (tensors[part] for part in ("idf", "coefficients", "seen"))
            if not idf.shape == coefficients.shape == (COLUMNS,):
                raise ValueError(f"weights of shape {coefficients.shape} instead of ({COLUMNS},)")
            if not (np.isfinite(idf).all() and np.isfinite(coefficients).all()):
                raise ValueError("weights that are not finite")
            if seen.ndim != 1 or seen.dtype != np.int64:
                raise ValueError("keys of training texts that are none")
            slope, intercept = calibration["slope"], calibration["intercept"]
            return cls(idf, coefficients, slope=slope, intercept=intercept, seen=seen.tolist(), meta=meta, name=name)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"scorer {name!r} is damaged ({type(error).__name__}: {error}). {hint}") from error


def counts(texts: Sequence[str]) -> "csr_matrix":
    """(n, COLUMNS) how often each hashed word (first half) and piece of a word (second half) occurs."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import HashingVectorizer

    texts = [" ".join(text.split()[:WORDS]) for text in texts]
    common: dict[str, Any] = {"n_features": 2**BITS, "norm": None, "alternate_sign": False}
    words = HashingVectorizer(analyzer="word", token_pattern=r"(?u)\b\w+\b", **common)
    pieces = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 5), **common)
    return hstack([words.transform(texts), pieces.transform(texts)], format="csr")


def tfidf(table: "csr_matrix", idf: np.ndarray) -> "csr_matrix":
    """(n, COLUMNS) (1 + ln count) * idf; words and pieces scaled to length 1 each. Changes `table`."""
    from scipy.sparse import hstack
    from sklearn.preprocessing import normalize

    table.data = (1 + np.log(table.data)) * idf[table.indices]
    half = table.shape[1] // 2
    return hstack([normalize(table[:, :half]), normalize(table[:, half:])], format="csr")


def text_key(text: str) -> int:
    """64 bits that are equal for texts which differ in case and white space alone."""
    content = " ".join(text.casefold().split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)
