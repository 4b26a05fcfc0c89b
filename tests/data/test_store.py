"""Does a store on disk give back what a list would, in every process, and does it leave nothing behind?"""

import gc
import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from efface.data import store as module
from efface.data.pair_tokens import TokenizedPair, tokenize_pair
from efface.data.store import PairStore
from efface.errors import RunError, UserError

LIMITS: dict[str, Any] = {"max_prompt_length": 12, "max_completion_length": 10}
WORDS = ["bread", "apples", "the river", "spring", "a market", "old towns", "cheese"]


def rows(n: int) -> Iterator[dict[str, str]]:
    for i in range(n):
        a, b, c = (WORDS[(i * k + k) % len(WORDS)] for k in (1, 2, 3))
        yield {"prompt": f"They said {a} and {b}", "chosen": f" was {b}" * (1 + i % 3), "rejected": f" or {c} {i}"}


def build(n: int, **changes: Any) -> PairStore:
    return PairStore.build(rows(n), tiny_tokenizer(), **LIMITS | changes)


def expected(n: int) -> list[TokenizedPair]:
    return [tokenize_pair(row, tiny_tokenizer(), **LIMITS) for row in rows(n)]


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stores of a test lie, and nothing else."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.mark.parametrize("buffered", [1, 2**18])
def test_a_store_reads_like_a_list(buffered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUFFERED", buffered)
    store, pairs = build(20), expected(20)
    assert len(store) == 20 and list(store) == pairs
    assert [store[i] for i in (-1, -20, np.int64(3), torch.tensor(4))] == [pairs[i] for i in (-1, -20, 3, 4)]
    assert store[2:9:3] == pairs[2:9:3] and store[:-15:-1] == pairs[:-15:-1] and store[30:] == []
    assert all(type(i) is int for i in store[0].prompt_ids + store[0].chosen_ids + store[0].rejected_ids)
    for index in (20, -21):
        with pytest.raises(IndexError, match=rf"pair {index} of a store of 20"):
            store[index]
    with pytest.raises(TypeError):
        store[1.0]  # type: ignore[call-overload]


def test_lengths() -> None:
    lengths = build(20).lengths
    assert lengths.dtype == np.int32 and lengths.shape == (20, 3)
    pairs = expected(20)
    assert lengths.tolist() == [[len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)] for p in pairs]


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@given(st.lists(st.fixed_dictionaries({"prompt": texts, "chosen": texts, "rejected": texts}), max_size=6))
@settings(max_examples=30)
def test_any_texts(given_rows: list[dict[str, str]]) -> None:
    tokenizer = tiny_tokenizer()
    pairs = [tokenize_pair(row, tokenizer, **LIMITS) for row in given_rows]
    different = [pair for pair in pairs if pair.chosen_ids != pair.rejected_ids]
    if pairs and not different:
        with pytest.raises(UserError, match="pairs is left"):
            PairStore.build(iter(given_rows), tokenizer, **LIMITS)
        return
    store = PairStore.build(iter(given_rows), tokenizer, **LIMITS)
    assert list(store) == different
    assert sum(store.dropped.values()) == len(pairs) - len(different)


def test_an_empty_store() -> None:
    store = build(0)
    assert len(store) == 0 and list(store) == [] and store.lengths.shape == (0, 3)
    with pytest.raises(IndexError):
        store[0]


def test_rows_are_read_one_at_a_time() -> None:
    class Row(dict[str, str]):
        alive = 0

        def __init__(self, row: dict[str, str]):
            super().__init__(row)
            Row.alive += 1
            assert Row.alive <= 2  # the last one, and the one that takes its place

        def __del__(self) -> None:
            Row.alive -= 1

    assert len(PairStore.build((Row(row) for row in rows(50)), tiny_tokenizer(), **LIMITS)) == 50


def test_progress_is_shown_only_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efface.terminal.progress.draws", lambda: True)
    build(3)
    assert capsys.readouterr().err == ""
    build(3, progress=True, total=3)
    assert "tokenising pairs" in capsys.readouterr().err


# Whose files?


def test_the_files_go_with_the_store(scratch: Path) -> None:
    store = build(5)
    assert [path.name for path in scratch.iterdir()] == [store.folder.name]
    del store
    gc.collect()
    assert list(scratch.iterdir()) == []


def test_a_pickled_copy_reads_but_does_not_own(scratch: Path) -> None:
    store = build(50)
    assert store[0]  # opened: the maps must not travel
    frozen = pickle.dumps(store)
    assert len(frozen) < 1000
    copy = pickle.loads(frozen)
    assert list(copy) == list(store) and (copy.lengths == store.lengths).all()
    del copy
    gc.collect()
    assert list(store) == expected(50)
    assert len(list(scratch.iterdir())) == 1


def test_a_forked_child_that_exits_leaves_the_files(scratch: Path) -> None:
    store = build(5)
    copy = pickle.loads(pickle.dumps(store))  # to read them by when the store is gone
    # As in a forked child, which has inherited the finalizer: a real fork of a process with threads may hang.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        del store
        gc.collect()
    assert list(copy) == expected(5)


@pytest.mark.full
def test_nothing_is_left_when_the_process_ends(scratch: Path) -> None:
    script = """
        import sys
        from tiny import tiny_tokenizer
        from efface.data.store import PairStore
        row = {"prompt": "They said", "chosen": " bread", "rejected": " cheese"}
        store = PairStore.build([row], tiny_tokenizer(), max_prompt_length=8, max_completion_length=8)
        assert store.folder.parent == __import__("pathlib").Path(sys.argv[1])
        raise SystemExit(3)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), scratch], env=environment)
    assert done.returncode == 3 and list(scratch.iterdir()) == []


# What can go wrong


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device that is always full")
@pytest.mark.parametrize("name", ["IDS", "ENDS"])
@pytest.mark.parametrize("buffered", [1, 2**18])
def test_a_full_disk(name: str, buffered: int, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, name, "/dev/full")
    monkeypatch.setattr(module, "BUFFERED", buffered)
    with pytest.raises(
        RunError,
        match=r"pairs could not be written under .*efface-pairs-\w+: No space left on device\. Free some .*\.$",
    ):
        build(5)
    assert list(scratch.iterdir()) == []


def test_no_temporary_folder(scratch: Path) -> None:
    scratch.rmdir()
    with pytest.raises(RunError, match="pairs could not be written under .*scratch: No such file or directory. Free"):
        build(5)


@pytest.mark.parametrize("error", [UserError("line 3 is bad"), OSError("the network is down"), KeyboardInterrupt()])
def test_an_error_of_the_rows_is_passed_on_as_it_is(error: BaseException, scratch: Path) -> None:
    def breaking() -> Iterator[dict[str, str]]:
        yield from rows(3)
        raise error

    with pytest.raises(type(error)) as caught:
        PairStore.build(breaking(), tiny_tokenizer(), **LIMITS)
    assert caught.value is error and list(scratch.iterdir()) == []


def test_a_continuation_without_tokens(scratch: Path) -> None:
    with pytest.raises(UserError, match="chosen has no tokens under this tokenizer"):
        build(3, max_completion_length=0)
    assert list(scratch.iterdir()) == []
