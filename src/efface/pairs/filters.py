"""Which texts are too like others, too short, too long or on several lines, and which scorer may choose among them?"""

import re
import zlib
from typing import TYPE_CHECKING

import numpy as np

from efface.errors import UserError
from efface.scoring import load_scorer
from efface.scoring.scorer import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEWLINE = re.compile(r"[\n\r\v\f\x85\u2028\u2029]")
SHINGLE = 3
"""Words in a row that are compared."""
_BANDS, _ROWS = 32, 4
"""Two texts are compared when all hashes of a band agree: 99 % of the pairs of Jaccard similarity 0.6, 23 % at 0.3."""


def selecting_scorer(scorer: str | Scorer) -> Scorer:
    """The scorer, loaded, if it may select pairs.

    Raises:
        UserError: if it is a judge that must not have seen what it judges (`selects_pairs = False`).
    """
    found = load_scorer(scorer)
    if not getattr(found, "selects_pairs", True):
        raise UserError(
            f"scorer {found.name!r} is a second judge: a model trained on pairs that it had selected would be judged "
            "by what it was trained to please. Select with another one (see `efface scorers`) and evaluate with it."
        )
    return found


def has_length(text: str, min_words: int, max_words: int | None) -> bool:
    """Whether a text has at least `min_words` and at most `max_words` (None: any number of) words."""
    return min_words <= len(text.split()) and (max_words is None or len(text.split()) <= max_words)


def first_line(text: str) -> str:
    """What stands before the first newline; a text without one is left as it is."""
    newline = NEWLINE.search(text)
    return text if newline is None else text[: newline.start()].rstrip()


def newline_tokens(processing_class: "PreTrainedTokenizerBase") -> list[int]:
    """The ids of all tokens whose text holds a newline, special ones excepted."""
    ids = sorted(set(range(len(processing_class))) - set(processing_class.all_special_ids))
    texts = processing_class.batch_decode([[token] for token in ids])
    return [token for token, text in zip(ids, texts, strict=True) if NEWLINE.search(text)]


class NearDuplicates:
    """Texts that are nearly equal to an earlier one: Jaccard similarity of their sets of three words in a row.

    Candidates are found by MinHash (Broder 1997) in bands, then compared exactly, so that the work grows with the
    number of texts and not with its square. Deterministic: the same texts in the same order give the same answers.

    Args:
        threshold: the similarity from which two texts count as duplicates, in (0, 1].

    Raises:
        UserError: if the threshold is not within (0, 1].
    """

    def __init__(self, threshold: float):
        if not 0 < threshold <= 1:
            raise UserError(f"near_duplicate={threshold}: a similarity must be above 0 and at most 1.")
        self.threshold = threshold
        self._texts: list[frozenset[int]] = []
        self._buckets: dict[tuple[int, bytes], list[int]] = {}
        draw = np.random.default_rng(0)
        self._factors = draw.integers(1, 2**63, _BANDS * _ROWS, dtype=np.uint64) | np.uint64(1)  # (128,)
        self._shifts = draw.integers(0, 2**63, _BANDS * _ROWS, dtype=np.uint64)

    def add(self, text: str) -> bool:
        """Whether `text` is new; if so, it is remembered."""
        shingles = word_runs(text)
        keys = list(enumerate(self._bands(shingles)))
        near = {number for key in keys for number in self._buckets.get(key, ())}
        for number in near:
            other = self._texts[number]
            if len(shingles & other) >= self.threshold * len(shingles | other):
                return False
        for key in keys:
            self._buckets.setdefault(key, []).append(len(self._texts))
        self._texts.append(shingles)
        return True

    def _bands(self, shingles: frozenset[int]) -> list[bytes]:
        values = np.fromiter(shingles, dtype=np.uint64)  # (n,)
        # Multiplication modulo 2^64 mixes upwards only: the low bits are dropped.
        hashes = (values[:, None] * self._factors + self._shifts) >> np.uint64(32)  # (n, 128)
        return [band.tobytes() for band in hashes.min(0).reshape(_BANDS, _ROWS)]


def word_runs(text: str) -> frozenset[int]:
    """Hashes of the runs of three words of a text; of a shorter one the whole."""
    words = text.lower().split()
    runs = (" ".join(words[i : i + SHINGLE]) for i in range(max(len(words) - SHINGLE + 1, 1)))
    return frozenset(zlib.crc32(run.encode("utf-8", "replace")) for run in runs)
