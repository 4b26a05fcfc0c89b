"""Do processes share work without a word of it being lost or done twice, and what if one fails? In threads.

Of: generation/group.py
"""

import json
import socket
import threading
import time
from typing import Any

import pytest
from grouped import in_group

from efface.errors import NotFinite, RunError, UserError
from efface.generation import group as groups
from efface.generation.group import Group, Parted
from efface.generation.processes import cut, go_on_after, shared

BATCHES = [[7, 8], [5], [1, 2, 3], [4]]


def doubled(batch: list[int]) -> list[tuple[int, str]]:
    return [(2 * item, "\ud83d") for item in batch]  # half an emoji, too, goes from one to the other


@pytest.mark.parametrize("size", [2, 3, 6])
def test_every_process_gets_all_and_each_batch_is_done_once(size: int) -> None:
    done: list[int] = []

    def work(batch: list[int]) -> list[Any]:
        done.extend(batch)
        return doubled(batch)

    ends = in_group(lambda group: shared(BATCHES, work, "double", of=lambda: BATCHES), size)
    alone = shared(BATCHES, doubled, "double", of=lambda: None)
    for end in ends:
        assert list(end) == list(alone)
        assert {item: tuple(found) for item, found in end.items()} == alone
    assert sorted(done) == [1, 2, 3, 4, 5, 7, 8]


def test_batches_are_cut_only_where_they_are_too_few() -> None:
    assert cut(BATCHES, 4) == BATCHES
    assert cut([[1, 2, 3, 4, 5]], 2) == [[1, 2, 3], [4, 5]]
    assert cut([[1, 2, 3, 4, 5], [6]], 4) == [[1, 2], [3], [4, 5], [6]]
    assert cut([[1], [2]], 4) == [[1], [2]] and cut([], 2) == []


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (NotFinite("not finite."), NotFinite, "^not finite.$"),
        (UserError("no such thing."), UserError, "^no such thing.$"),
        (ZeroDivisionError("by zero"), RunError, "^on another process: ZeroDivisionError: by zero$"),
        (MemoryError("can't allocate memory"), MemoryError, "^on another process: MemoryError: can't allocate memory"),
    ],
)
def test_what_one_meets_all_raise_and_go_on(error: Exception, kind: type[Exception], message: str) -> None:
    def work(group: Group) -> list[Any]:
        def failing(batch: list[int]) -> list[Any]:
            if batch == [5]:
                raise error
            return doubled(batch)

        with pytest.raises(Exception) as raised:
            shared(BATCHES, failing, "double", of=lambda: None)
        if group.rank == 1:  # whose batch it was
            assert raised.value is error
        else:
            with pytest.raises(kind, match=message):
                raise raised.value
        return group.exchange("afterwards", group.rank)

    assert in_group(work, 3) == [[0, 1, 2]] * 3


def test_of_several_failures_all_raise_that_of_the_first_batch() -> None:
    def work(group: Group) -> Any:
        def failing(batch: list[int]) -> list[Any]:
            raise UserError(f"batch {batch}")

        return shared(BATCHES, failing, "double", of=lambda: None)

    assert [(type(end), str(end)) for end in in_group(work, 3)] == [(UserError, "batch [7, 8]")] * 3


def test_processes_that_would_do_different_things_part() -> None:
    for end in in_group(lambda group: shared(BATCHES, doubled, "double", of=lambda: group.rank)):
        assert isinstance(end, Parted) and "rank 1 is at another place of the work than rank 0: double" in str(end)


def test_who_has_gone_on_after_a_failure_of_its_own_says_which() -> None:
    def work(group: Group) -> Any:
        if group.rank == 0:
            return group.exchange("attack one", None)
        go_on_after("out of memory")
        return group.exchange("attack two", None)

    for end in in_group(work):
        assert isinstance(end, Parted) and "gone on after a failure of rank 1 alone (out of memory)" in str(end)


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_who_fails_says_so_whoever_it_is(broken: int) -> None:
    def work(group: Group) -> Any:
        group.exchange("first", [group.rank] * 100_000)  # more than a connection holds
        if group.rank == broken:
            raise UserError("broken.")
        return group.exchange("second", "x" * 1_000_000)

    ends = in_group(work, 3)
    assert isinstance(ends.pop(broken), UserError)
    assert [(type(end), str(end)) for end in ends] == [(Parted, "broken.")] * 2


def test_who_ends_without_a_word_or_does_not_answer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaves(group: Group) -> Any:
        return group.close() if group.rank else group.exchange("first", None)

    assert str(in_group(leaves)[0]) == "rank 1 of this command has ended without a word (killed?)."
    monkeypatch.setattr(groups, "PATIENCE", 0.2)
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(Parted, match="rank 1 has not answered for 0 seconds"):
        Group(0, 2, {1: ours}).exchange("first", None)


class Store(dict[str, str]):
    """What a process finds in the store of torch.distributed."""

    set = dict.__setitem__

    def get(self, key: str, default: Any = None) -> Any:
        while key not in self:
            time.sleep(0.01)
        return self[key]


def test_who_does_not_know_the_token_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    store, found = Store(), dict[int, socket.socket]()
    thread = threading.Thread(target=lambda: found.update(groups._others(store, 2)))
    thread.start()
    host, port, _ = json.loads(store.get(groups.KEY))
    assert host == "127.0.0.1"
    for said in ([1, "guessed"], 3, [1]):
        with socket.create_connection((host, port)) as stranger:
            groups._send(stranger, said)
            assert stranger.recv(1) == b""
    with groups._first(store, 1):
        thread.join(10)
        assert list(found) == [1]
    found[1].close()


def test_processes_that_do_not_find_each_other_end_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "OPENING", 0.3)
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=f"do not find each other at localhost:{port}"):
        Group.open()
