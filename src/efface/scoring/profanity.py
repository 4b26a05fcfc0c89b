"""How toxic is a text without any download? The linear model of alt-profanity-check, whose weights ship on PyPI.

It sees explicit toxicity only and is near chance on implicit hate. Its package unpickles its weights when imported,
and unpickling runs code, so their hashes are compared with the table below before the import.
"""

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from efface.errors import UserError

PACKAGE, VERSION = "profanity_check", "1.9.1"
SHA256 = {
    "data/model.joblib": "aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b",
    "data/vectorizer.joblib": "19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831",
}


def check_files(package: Path) -> None:
    """Compare the pickled files of the installed package with the known hashes.

    Raises:
        UserError: if one is missing, changed or unknown.
    """
    found = {file.relative_to(package).as_posix() for file in package.rglob("*.joblib")}
    if found != SHA256.keys():
        raise UserError(_refusal(f"it holds {sorted(found)} instead of {sorted(SHA256)}"))
    for name, expected in SHA256.items():
        if hashlib.sha256((package / name).read_bytes()).hexdigest() != expected:
            raise UserError(_refusal(f"{name} is not the file of version {VERSION}"))


def _refusal(reason: str) -> str:
    return (
        f"alt-profanity-check is not imported, because importing it runs its pickled files and {reason}. "
        f"Install the known version: pip install alt-profanity-check=={VERSION}."
    )


class ProfanityScorer:
    """The offline default. An empty text scores 0."""

    name = "alt-profanity-check"
    version = VERSION

    def __init__(self) -> None:
        # find_spec of a top-level package locates it without importing it.
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise UserError(
                f"scorer 'alt-profanity-check', a dependency of efface, is not installed: pip install "
                f"alt-profanity-check=={VERSION}."
            )
        check_files(Path(spec.origin).parent)
        from profanity_check import predict_prob

        self._predict = predict_prob

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        scores = np.zeros(len(texts))
        # The model gives an empty text its prior (0.04) and an empty list an error.
        filled = [index for index, text in enumerate(texts) if text.strip()]
        if filled:
            scores[filled] = self._predict([texts[index] for index in filled])
        return scores
