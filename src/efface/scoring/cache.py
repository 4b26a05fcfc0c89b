"""Has this text been scored before? A cache on disk, so that a re-run of an evaluation scores nothing twice.

A score is found by a hash of the scorer's name, its version and the text, in one SQLite file under the cache folder
(`EFFACE_CACHE`). Several processes may use it at once. It is only ever a shortcut: a damaged file is begun anew and
one that cannot be used is left alone, both with a warning. Deleting the file is safe.
"""

import contextlib
import hashlib
import logging
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from efface.errors import UserError
from efface.scoring.ensemble import Ensemble
from efface.scoring.scorer import Scorer, score

logger = logging.getLogger(__name__)

T = TypeVar("T")
WAIT = 60  # seconds for another process to finish its write
TABLE = (
    "CREATE TABLE IF NOT EXISTS scores "
    "(key BLOB PRIMARY KEY, score REAL NOT NULL CHECK (score BETWEEN 0 AND 1)) WITHOUT ROWID"
)


def cache_scores(scorer: Scorer, path: Path | None = None) -> Scorer:
    """`scorer` with the cache before it, or itself if it has no `version` (a plain function) and so might change.

    Of an ensemble it is the members that are cached.

    Args:
        path: the file; None takes `scores/scores.sqlite` in the cache folder.
    """
    if path is None:
        from efface.files.results import cache_dir

        try:
            path = cache_dir() / "scores" / "scores.sqlite"
        except UserError as error:
            logger.warning("%s Scores are not kept.", error)
            return scorer
    if isinstance(scorer, Ensemble):  # so that a member's scores serve it alone as well
        return Ensemble(scorer.how, [cache_scores(member, path) for member in scorer.members])
    version = getattr(scorer, "version", None)
    if version is None or isinstance(scorer, CachedScorer):
        return scorer
    return CachedScorer(scorer, version, path)


class CachedScorer:
    """Asks `scorer` only for texts that are not in the file at `path`; equal texts of a call are scored once.

    Scores are checked (see `score`) before they are kept, so nothing that is not a probability ever gets there.
    """

    def __init__(self, scorer: Scorer, version: str, path: Path) -> None:
        self.scorer, self.version, self.path = scorer, version, path
        self.name = scorer.name
        self.selects_pairs = getattr(scorer, "selects_pairs", True)
        self._usable = True

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self._scores(texts, None)

    def of_answers(self, prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """With a scorer that reads no prompts the same as without them, and of one key."""
        return self._scores(texts, prompts if hasattr(self.scorer, "of_answers") else None)

    def _scores(self, texts: Sequence[str], prompts: Sequence[str] | None) -> np.ndarray:
        keys = [self._key(*both) for both in zip(texts, *([] if prompts is None else [prompts]), strict=True)]
        known = self._use(lambda connection: _read(connection, set(keys))) or {}
        missing = {key: i for i, key in enumerate(keys) if key not in known}
        if missing:
            asked = [None if given is None else [given[i] for i in missing.values()] for given in (texts, prompts)]
            fresh = dict(zip(missing, score(self.scorer, asked[0] or [], asked[1]).tolist(), strict=True))
            self._use(lambda connection: _write(connection, fresh))
            known |= fresh
        return np.array([known[key] for key in keys])

    def _key(self, *what: str) -> bytes:
        content = "\0".join((self.name, self.version, *what))
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def _use(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """What `work` returns, in a transaction of its own; None if the file cannot be used."""
        if not self._usable:
            return None
        for rebuild in (False, True):
            try:
                if rebuild:
                    self.path.unlink(missing_ok=True)
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # Opened for each use: a connection must not be shared with a forked process or another thread.
                with contextlib.closing(sqlite3.connect(self.path, timeout=WAIT)) as connection, connection:
                    connection.execute(TABLE)
                    return work(connection)
            except (OSError, sqlite3.DatabaseError) as error:
                if not _is_damaged(error) or rebuild:
                    logger.warning("the score cache %s cannot be used (%s): scores are not kept", self.path, error)
                    self._usable = False
                    break
                logger.warning("the score cache %s is damaged (%s) and is begun anew", self.path, error)
        return None


def _read(connection: sqlite3.Connection, keys: set[bytes]) -> dict[bytes, float]:
    found = {}
    for key in keys:
        row = connection.execute("SELECT score FROM scores WHERE key = ?", (key,)).fetchone()
        # A table of another make may hold anything: what is no probability is scored again.
        if row is not None and isinstance(row[0], int | float) and 0 <= row[0] <= 1:
            found[key] = float(row[0])
    return found


def _write(connection: sqlite3.Connection, scores: dict[bytes, float]) -> None:
    connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", scores.items())


def _is_damaged(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte; the rest says more exactly where
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
