"""Does a text contain a word of a list? The scorer whose every verdict can be read off, in any language."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from efface.errors import UserError
from efface.files.io import read_regular_text


class WordListScorer:
    """1 for a text with at least one entry of the list, otherwise 0: a score that is never "a little toxic".

    Entries match whole words, without regard to case or to how much white space is between the words of a phrase. An
    entry that ends in `*` also matches with any ending (`silly*`: silly, sillyness), the convention of LIWC.

    Args:
        file: a text file in UTF-8 with one word or phrase on each line. No list is shipped.

    Raises:
        UserError: if the file cannot be read or has no entry.
    """

    def __init__(self, file: str) -> None:
        self.name = f"words:{file}"
        try:
            lines = read_regular_text(file).splitlines()
        except UserError as error:
            raise UserError(
                f"scorer {self.name!r}: the word list cannot be read ({error}) "
                "Pass a UTF-8 text file with one word or phrase on each line."
            ) from error
        entries = sorted({" ".join(line.casefold().split()) for line in lines} - {"", "*"})
        if not entries:
            raise UserError(f"scorer {self.name!r}: the word list is empty. Write one word or phrase on each line.")
        self.version = hashlib.sha256("\n".join(entries).encode()).hexdigest()[:16]
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(_pattern, entries))})(?!\w)")

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([float(self._pattern.search(text.casefold()) is not None) for text in texts])


def _pattern(entry: str) -> str:
    words = r"\s+".join(map(re.escape, entry.removesuffix("*").split()))
    return words + (r"\w*" if entry.endswith("*") else "")
