"""Is nothing scored twice, is nothing wrong kept, and does a broken cache never stop a run?"""

import logging
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efface.errors import RunError, UserError
from efface.scoring import load_scorer
from efface.scoring.cache import CachedScorer, cache_scores
from efface.scoring.ensemble import Ensemble
from efface.scoring.scorer import NamedScorer, score

TEXTS = ["an old town", "you silly man", "", "half an emoji \ud83d", "an old town", "a\0b"]


class Counting:
    """Scores by length and remembers what it was asked."""

    def __init__(self, name: str = "counting", version: str | None = "1") -> None:
        self.name, self.version = name, version
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.array([len(text) / 100 for text in texts]) / 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scores" / "scores.sqlite"


def test_nothing_is_scored_twice(path: Path) -> None:
    first = Counting()
    scores = score(cache_scores(first, path), TEXTS)
    assert first.asked == list(dict.fromkeys(TEXTS))  # equal texts once
    np.testing.assert_array_equal(scores, Counting()(TEXTS))
    again = Counting()
    np.testing.assert_array_equal(
        score(cache_scores(again, path), [*TEXTS[::-1], "new"]), Counting()([*TEXTS[::-1], "new"])
    )
    assert again.asked == ["new"]


def test_each_batch_of_texts_is_kept_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efface.scoring.scorer.CHUNK", 2)

    class Interrupted(Counting):
        def __call__(self, texts: Sequence[str]) -> np.ndarray:
            if "3" in texts:
                raise KeyboardInterrupt
            return super().__call__(texts)

    with pytest.raises(KeyboardInterrupt):
        score(cache_scores(Interrupted(), path), ["0", "1", "2", "3"])
    after = Counting()
    score(cache_scores(after, path), ["0", "1", "2", "3"])
    assert after.asked == ["2", "3"]


@pytest.mark.parametrize("other", [Counting(version="2"), Counting(name="other")], ids=["version", "name"])
def test_another_scorer_or_version_is_asked_anew(other: Counting, path: Path) -> None:
    score(cache_scores(Counting(), path), TEXTS)
    score(cache_scores(other, path), TEXTS)
    assert len(other.asked) == len(set(TEXTS))


def test_a_scorer_without_a_version_is_not_cached(path: Path) -> None:
    function = NamedScorer("mine", Counting())
    assert cache_scores(function, path) is function
    unversioned = Counting(version=None)
    assert cache_scores(unversioned, path) is unversioned
    once = cache_scores(Counting(), path)
    assert cache_scores(once, path) is once


def test_members_of_an_ensemble_share_their_scores(path: Path) -> None:
    a, b = Counting("a"), Counting("b")
    score(cache_scores(a, path), TEXTS)
    both = cache_scores(Ensemble("mean", [a, b]), path)
    assert both.name == "mean:a,b"
    score(both, TEXTS)
    assert len(a.asked) == len(b.asked) == len(set(TEXTS))


def test_what_the_scorer_is_known_for_is_kept(path: Path) -> None:
    judge = Counting()
    judge.selects_pairs = False  # type: ignore[attr-defined]
    assert cache_scores(judge, path).selects_pairs is False  # type: ignore[attr-defined]
    assert cache_scores(Counting(), path).selects_pairs is True  # type: ignore[attr-defined]


@pytest.mark.parametrize("output", [[0.1, float("nan")], [0.1], [0.1, 1.5], None], ids=str)
def test_nothing_wrong_is_kept(output: Any, path: Path) -> None:
    class Bad(Counting):
        def __call__(self, texts: Sequence[str]) -> Any:
            return output

    with pytest.raises(UserError, match="'counting' returned"):
        score(cache_scores(Bad(), path), ["a", "b"])
    after = Counting()
    score(cache_scores(after, path), ["a", "b"])
    assert after.asked == ["a", "b"]


def test_a_failing_scorer_is_named_once(path: Path) -> None:
    class Failing(Counting):
        def __call__(self, texts: Sequence[str]) -> np.ndarray:
            raise KeyError("lost")

    with pytest.raises(RunError, match="^scorer 'counting' failed: KeyError: 'lost'$"):
        score(cache_scores(Failing(), path), ["a"])


@pytest.mark.parametrize("damage", ["foreign", "overwritten"])
def test_a_damaged_file_is_begun_anew(damage: str, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = [f"text {i}" for i in range(500)]
    score(cache_scores(Counting(), path), texts)
    content = path.read_bytes()
    # Not a database at all; or one whose pages were lost.
    path.write_bytes(b"no database" * 100 if damage == "foreign" else content[:100] + b"\xff" * (len(content) - 100))
    anew = Counting()
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(score(cache_scores(anew, path), texts), Counting()(texts))
    assert len(anew.asked) == 500 and "is damaged" in caplog.text
    again = Counting()
    score(cache_scores(again, path), texts)
    assert not again.asked


def test_a_cache_that_cannot_be_written_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    scorer = cache_scores(Counting(), tmp_path / "file" / "scores.sqlite")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(score(scorer, TEXTS), Counting()(TEXTS))
        score(scorer, TEXTS)
    assert caplog.text.count("cannot be used") == 1  # said once


def test_a_locked_file_delays_but_loses_nothing(path: Path) -> None:
    """Another process is in the middle of a write: the scores are kept after it."""
    score(cache_scores(Counting(), path), ["a"])
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    release.start()
    score(cache_scores(Counting(), path), ["b"])
    release.join()
    other.close()
    after = Counting()
    score(cache_scores(after, path), ["a", "b"])
    assert not after.asked


def test_many_at_once(path: Path) -> None:
    texts = [f"text {i}" for i in range(60)]

    def work(start: int) -> None:
        for i in range(start, 60, 4):
            score(cache_scores(Counting(), path), texts[i : i + 8])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = Counting()
    np.testing.assert_array_equal(score(cache_scores(after, path), texts), Counting()(texts))
    assert not after.asked


def test_default_place_is_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    words = tmp_path / "words.txt"
    words.write_text("fool\n")
    scorer = cache_scores(load_scorer(f"words:{words}"))
    assert isinstance(scorer, CachedScorer) and score(scorer, ["you fool", "a town"]).tolist() == [1, 0]
    assert (tmp_path / "scores" / "scores.sqlite").is_file()


def test_without_a_home_scores_are_not_kept(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("EFFACE_CACHE", "~no-such-user-here/cache")
    scorer = load_scorer("alt-profanity-check")
    assert cache_scores(scorer) is scorer
    assert "there is no cache folder" in caplog.text and "Scores are not kept" in caplog.text
