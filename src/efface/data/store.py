"""Where do tokenised pairs lie? On disk, memory-mapped, so that memory does not grow with their number.

Two flat files in a temporary folder (TMPDIR says where): the token ids of all pairs one after another, and where each
prompt, chosen and rejected text ends in them. The operating system reads, and forgets, the pages that a batch needs.
"""

import operator
import os
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, overload

import numpy as np

from efface.data.pair_tokens import PairTokenizer, TokenizedPair
from efface.data.pairs import PairReader, tokenized
from efface.errors import RunError
from efface.files.jsonl import Row
from efface.files.scratch import make_scratch
from efface.terminal.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IDS, ENDS = "ids.int32", "ends.int64"
BUFFERED = 2**18  # token ids held before they go to the disk: 1 MB


class PairStore(Sequence[TokenizedPair]):
    """Tokenised pairs on disk, read like a list. Made by `PairStore.build`.

    The files are removed with the store, or when the process that built it ends; if it is killed, by the next one. A
    pickled copy, such as a worker of a DataLoader gets, only reads them: it is of use as long as the original is
    there.
    """

    def __init__(self, folder: Path, n_pairs: int):
        self.folder = folder
        self.truncated: dict[str, int] = {}
        """What -> how many of it were cut to length: prompts, continuations, pairs beyond the model's positions."""
        self.dropped: dict[str, int] = {}
        """Why -> how many pairs were left out, of which nothing could be learned."""
        self._n_pairs = n_pairs
        self._opened: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def build(
        cls,
        rows: PairReader | Iterable[Row],
        processing_class: "PreTrainedTokenizerBase",
        *,
        max_prompt_length: int,
        max_completion_length: int,
        max_positions: int | None = None,
        progress: bool = False,
        total: int | None = None,
    ) -> "PairStore":
        """Tokenise checked rows one at a time, however many there are; `total` is for the progress bar alone.

        What is cut or dropped on the way is counted in the store, and warned of. A row that is bad only to the
        tokenizer or its chat template is treated by a `PairReader` as its other bad rows.

        Args:
            max_positions: of the model, see `tokenize_pair`.

        Raises:
            UserError: as `tokenize_pair` does, with the place of the row; if no pair is left.
            RunError: if the files cannot be written. Nothing is left of them, whatever goes wrong.
        """
        tokenizer = PairTokenizer(
            processing_class,
            max_prompt_length=max_prompt_length,
            max_completion_length=max_completion_length,
            max_positions=max_positions,
        )
        try:
            folder, in_use = make_scratch("efface-pairs-")
        except OSError as error:
            raise _not_written(tempfile.gettempdir(), error) from error
        try:
            n_pairs, end = 0, 0
            ids, ends = array("i"), array("q")
            for _, pair in track(tokenized(rows, tokenizer), "tokenising pairs", show=progress, total=total):
                for part in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
                    ids.extend(part)
                    end += len(part)
                    ends.append(end)
                n_pairs += 1
                if len(ids) >= BUFFERED:
                    _append(folder, ids, ends)
            _append(folder, ids, ends)
        except BaseException:
            _remove(folder, os.getpid(), in_use)
            raise
        store = cls(folder, n_pairs)
        store.truncated, store.dropped = tokenizer.truncated, dict(tokenizer.dropped)
        weakref.finalize(store, _remove, folder, os.getpid(), in_use)
        return store

    def __len__(self) -> int:
        return self._n_pairs

    @overload
    def __getitem__(self, index: int) -> TokenizedPair: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedPair]: ...
    def __getitem__(self, index: int | slice) -> TokenizedPair | list[TokenizedPair]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = operator.index(index)
        if number < 0:
            number += len(self)
        if not 0 <= number < len(self):
            raise IndexError(f"pair {index} of a store of {len(self)}")
        ids, ends = self._maps()
        start = int(ends[3 * number - 1]) if number else 0
        prompt, chosen, rejected = ends[3 * number : 3 * number + 3].tolist()
        return TokenizedPair(ids[start:prompt].tolist(), ids[prompt:chosen].tolist(), ids[chosen:rejected].tolist())

    @property
    def lengths(self) -> np.ndarray:
        """(n, 3) int32: tokens of the prompt, of chosen and of rejected; computed anew at each call."""
        _, ends = self._maps()
        flat = np.empty(len(ends), np.int32)
        flat[:1] = ends[:1]
        np.subtract(ends[1:], ends[:-1], out=flat[1:], casting="unsafe")  # without an int64 array on the way
        return flat.reshape(-1, 3)

    def _maps(self) -> tuple[np.ndarray, np.ndarray]:
        """ids (tokens,) int32 and ends (3n,) int64, opened at the first use in this process."""
        if self._opened is None:
            if not self._n_pairs:  # an empty file cannot be mapped
                return np.empty(0, np.int32), np.empty(0, np.int64)
            ids = np.memmap(self.folder / IDS, dtype=np.int32, mode="r")
            ends = np.memmap(self.folder / ENDS, dtype=np.int64, mode="r")
            # Plain views: every slice of a np.memmap would run its slow Python constructor.
            self._opened = ids.view(np.ndarray), ends.view(np.ndarray)
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}  # pickled, a map would be its whole content


def _append(folder: Path, ids: "array[int]", ends: "array[int]") -> None:
    """Move both buffers to the ends of their files."""
    for name, buffer in ((IDS, ids), (ENDS, ends)):
        try:
            # Closed here, since a full disk may show only then, and would show again at a later close.
            with open(folder / name, "ab") as file:
                file.write(buffer)
        except OSError as error:
            raise _not_written(folder, error) from error
        del buffer[:]


def _remove(folder: Path, owner: int, in_use: IO[bytes] | None) -> None:
    if os.getpid() == owner:  # a forked worker inherits the finalizer, but not the files
        shutil.rmtree(folder, ignore_errors=True)
        if in_use is not None:
            in_use.close()


def _not_written(folder: Path | str, error: OSError) -> RunError:
    return RunError(
        f"the tokenised pairs could not be written under {folder}: {error.strerror or error}. "
        "Free some space, or set TMPDIR to a folder on a larger disk."
    )
