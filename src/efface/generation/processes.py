"""How is work divided over the processes of one command? Batches are dealt out, and every process gets all results.

Whatever decides what a batch gives (the seed, the place of a prompt in the list) is known to every process, so that
the results are those of one process. Batches are what one process would make of them; where these are fewer than the
processes some are cut, which changes the rounding of logits as another batch size does. Where no group is open (in
Python, in a command that was started once) all batches are this process's.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from efface.errors import NotFinite, RunError, UserError, described, out_of_memory
from efface.files.digests import key_of
from efface.generation.group import Group
from efface.terminal.progress import track

T = TypeVar("T", bound=Hashable)
_GROUP: ContextVar[Group | None] = ContextVar("group", default=None)
KINDS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (NotFinite, UserError, RunError, MemoryError)}
"""Of an error that one process has met, what the others raise: the first that it is."""


@contextlib.contextmanager
def working_in(group: Group) -> Iterator[None]:
    """Inside, `shared` divides work over the processes of the group."""
    token = _GROUP.set(group)
    try:
        yield
    finally:
        _GROUP.reset(token)


def shared(
    batches: Sequence[list[T]],
    work: Callable[[list[T]], Sequence[Any]],
    what: str,
    *,
    of: Callable[[], Any],
    show: bool = False,
) -> dict[T, Any]:
    """What `work` makes of each item, in the order of the batches.

    Args:
        batches: items that go through a model together; the same for all processes.
        work: of a batch, what each of its items gives, as JSON: what comes from another process is a list where it was
            a tuple.
        what: is done, for the bar.
        of: what the results depend on beside the model, as JSON. Asked only in a group: processes of which one would
            do something else must not go on.
        show: a bar.

    Raises:
        Exception: what `work` raises first in the order of the batches, on whichever process it was; then every
            process raises it.
    """
    group = _GROUP.get()
    if group is None:
        done = {number: work(batches[number]) for number in track(range(len(batches)), what, show=show)}
        return _by_item(batches, done)
    batches = cut(batches, group.size)
    done, failure, failed = {}, None, None
    for number in track(range(group.rank, len(batches), group.size), what, show=show):
        try:
            done[number] = work(batches[number])
        except Exception as error:
            failure, failed = error, [number, group.rank, *_told(error)]
            break
    everything = group.exchange(f"{what} {key_of([of(), batches])[:12]}", [list(done.items()), failed])
    failures = [its for _, its in everything if its is not None]
    if failures:
        _, rank, kind, text = min(failures)
        if failure is not None and rank == group.rank:
            raise failure
        raise KINDS[kind](text)
    return _by_item(batches, {number: found for its, _ in everything for number, found in its})


def go_on_after(failure: str) -> None:
    """Of several processes this one goes on after a failure: what the others are told if they had none."""
    group = _GROUP.get()
    if group is not None:
        group.survived.append(failure)


def cut(batches: Sequence[list[T]], least: int) -> list[list[T]]:
    """At least so many batches, if there are so many items: of the largest ones halves."""
    found = list(batches)
    while len(found) < least and max(map(len, found), default=0) > 1:
        number = max(range(len(found)), key=lambda i: len(found[i]))
        half = (len(found[number]) + 1) // 2
        found[number : number + 1] = [found[number][:half], found[number][half:]]
    return found


def _by_item(batches: Sequence[list[T]], done: dict[int, Sequence[Any]]) -> dict[T, Any]:
    found: dict[T, Any] = {}
    for number, batch in enumerate(batches):
        found |= zip(batch, done[number], strict=True)
    return found


def _told(error: Exception) -> tuple[str, str]:
    """Its kind, and what it says, for the other processes."""
    if out_of_memory(error):
        return "MemoryError", f"on another process: {described(error)}"
    for name, kind in KINDS.items():
        if isinstance(error, kind):
            return name, str(error)
    return "RunError", f"on another process: {described(error)}"
