"""What do threads give that work as the processes of one command? Each has a context, and a group, of its own."""

import contextvars
import socket
import threading
from collections.abc import Callable
from typing import Any

from efface.generation.group import Group
from efface.generation.processes import working_in


def in_group(work: Callable[[Group], Any], size: int = 2) -> list[Any]:
    """What `work` returns or raises in each of `size` threads; one that raises tells the others, as a command does."""
    pairs = {rank: socket.socketpair() for rank in range(1, size)}
    groups = [Group(0, size, {rank: pair[0] for rank, pair in pairs.items()})]
    groups += [Group(rank, size, {0: pair[1]}) for rank, pair in pairs.items()]
    ends: list[Any] = [None] * size

    def run(group: Group) -> None:
        try:
            with working_in(group):
                ends[group.rank] = work(group)
        except BaseException as error:
            ends[group.rank] = error
            group.fail(str(error))
        finally:
            group.close()

    threads = [threading.Thread(target=contextvars.copy_context().run, args=(run, group)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "the threads wait for each other"
    return ends
