"""How do the processes of one command talk to each other? Through the first of them, in JSON; and each waits for all.

A launcher (torchrun, accelerate) starts a command several times, and says in the environment how many there are and
where the first one is. By the store that torch.distributed keeps there they learn a port of the first one, and each of
the others keeps a connection to it. No process group of torch.distributed is opened: whoever asks for one inside (a
Trainer, accelerate, transformers) learns that this process is alone.

A process that ends closes its connection, however it ends, and the others know at once; one that fails says why first.
A wait can be interrupted.
"""

import contextlib
import hmac
import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from multiprocessing.connection import wait
from typing import Any

from efface.errors import RunError, one_line

OPENING = 300.0
"""Seconds that the processes get to find each other."""
PATIENCE = 3600.0
"""Seconds that one waits for another that is still there."""
LINGER = 5.0
"""Seconds that one that fails gives the others to hear of it."""
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 8}
"""After how many seconds of silence the system asks whether another machine is there, how often, how many times."""
LONGEST = 500
"""Characters of what a failure says to the others."""
KEY = "efface"
"""Under which the store has the place of the first process."""


class Parted(BaseException):
    """The processes no longer work together. No `Exception`: whatever goes on after the failure of one attack, or of
    one judge, must not go on after this."""


class Group:
    """The processes of one command, each of which makes one. `open` finds the others.

    Args:
        peers: of the first process, a connection to each of the others by its rank; of any other, that to the first.
    """

    def __init__(self, rank: int, size: int, peers: Mapping[int, socket.socket]):
        self.rank, self.size, self.peers = rank, size, dict(peers)
        self.survived: list[str] = []
        """The failures after which this process has gone on; where the others had them not, that is why they part."""
        for peer in self.peers.values():
            peer.settimeout(None)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that has gone says nothing
            for name, value in KEEPALIVE.items():
                if hasattr(socket, name) and peer.family != socket.AF_UNIX:
                    peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    @classmethod
    def open(cls) -> "Group":
        """The group of the processes that the environment (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) tells of.

        Raises:
            RunError: if they do not find each other.
        """
        from datetime import timedelta

        from torch.distributed import rendezvous

        try:
            store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=OPENING)))
            if rank == 0:
                return cls(rank, size, _others(store, size))
            return cls(rank, size, {0: _first(store, rank)})
        except (OSError, RuntimeError, ValueError) as error:  # torch's own are RuntimeErrors
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise RunError(
                f"the processes of this command do not find each other at {place} ({one_line(error, LONGEST)}). Start "
                "all of them by one launcher (torchrun, accelerate launch), with the same command; alone, without "
                "WORLD_SIZE in the environment."
            ) from error

    def exchange(self, at: str, said: Any) -> list[Any]:
        """What every process says (JSON), in the order of their ranks.

        Args:
            at: a name of the place in the work, which must be the same for all.

        Raises:
            Parted: if one has failed or ended, does not answer, or is at another place.
        """
        mine = {"at": at, "said": said, "survived": self.survived}
        if self.rank == 0:
            heard = self._hear()
            for rank, message in heard.items():
                if message["at"] != at:
                    raise Parted(
                        f"rank {rank} is at another place of the work than rank 0: "
                        f"{_why({0: mine, rank: message})}. Run the command in one process."
                    )
            found = [said, *(heard[rank]["said"] for rank in range(1, self.size))]
            self._tell({"at": at, "said": found})
            return found
        # What the first one has said unasked is that it has failed; writing to one that is gone might lose it.
        if not wait(list(self.peers.values()), 0):
            self._tell(mine)
        return list(self._hear()[0]["said"])

    def fail(self, why: str) -> None:
        """Tell the others that this process ends, and give them some seconds to hear it."""
        self._tell({"failed": one_line(why, LONGEST)})
        deadline, left = time.monotonic() + LINGER, list(self.peers.values())
        for peer in left:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_WR)
        # Closing with something unread would take back what was said.
        while left and (ready := wait(left, max(deadline - time.monotonic(), 0))):
            for one in ready:
                assert isinstance(one, socket.socket)
                with contextlib.suppress(OSError):
                    if one.recv(1 << 20):
                        continue
                left.remove(one)

    def close(self) -> None:
        """Leave the others."""
        for peer in self.peers.values():
            peer.close()

    def _tell(self, message: Any) -> None:
        for peer in self.peers.values():
            with contextlib.suppress(OSError):  # it is gone, which shows where it is to be heard
                _send(peer, message)

    def _hear(self) -> dict[int, Any]:
        """A message of every peer, by rank."""
        heard: dict[int, Any] = {}
        deadline, waiting = time.monotonic() + PATIENCE, {peer: rank for rank, peer in self.peers.items()}
        while waiting:
            ready = wait(list(waiting), max(deadline - time.monotonic(), 0))
            if not ready:
                ranks = ", ".join(map(str, waiting.values()))
                raise Parted(f"rank {ranks} has not answered for {PATIENCE:.0f} seconds.")
            for peer in ready:
                assert isinstance(peer, socket.socket)
                rank = waiting.pop(peer)
                try:
                    heard[rank] = _receive(peer)
                except (OSError, EOFError, ValueError) as error:
                    raise Parted(f"rank {rank} of this command has ended without a word (killed?).") from error
                if "failed" in heard[rank]:
                    raise Parted(heard[rank]["failed"])
        return heard


def _why(messages: Mapping[int, Any]) -> str:
    """What two processes say that are not at the same place: one has gone on after a failure of its own, or not."""
    rank = max(messages, key=lambda one: len(messages[one]["survived"]))
    if len({len(message["survived"]) for message in messages.values()}) > 1:
        failure = one_line(messages[rank]["survived"][-1], LONGEST)
        return f"it has gone on after a failure of rank {rank} alone ({failure})"
    return " and ".join(message["at"] for message in messages.values())


def _others(store: Any, size: int) -> dict[int, socket.socket]:
    """Of the first process: the connections of all others, by rank. Whoever does not know the token is sent away."""
    host, token = os.environ["MASTER_ADDR"], secrets.token_hex(16)
    here = os.environ.get("LOCAL_WORLD_SIZE") == str(size) or host == "localhost" or host.startswith("127.")
    if here:
        server, host = socket.create_server(("127.0.0.1", 0), backlog=size), "127.0.0.1"
    elif socket.has_dualstack_ipv6():
        server = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=size)
    else:
        server = socket.create_server(("", 0), backlog=size)
    found: dict[int, socket.socket] = {}
    deadline = time.monotonic() + OPENING
    with server:
        store.set(KEY, json.dumps([host, server.getsockname()[1], token]))
        while len(found) < size - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            peer, _ = server.accept()
            peer.settimeout(10)
            try:
                rank, its = _receive(peer, longest=LONGEST)
            except (OSError, EOFError, ValueError, TypeError):
                peer.close()
                continue
            if hmac.compare_digest(str(its).encode(), token.encode()) and rank in range(1, size) and rank not in found:
                found[rank] = peer
            else:
                peer.close()
    return found


def _first(store: Any, rank: int) -> socket.socket:
    """Of any other process: the connection to the first one."""
    host, port, token = json.loads(store.get(KEY))
    peer = socket.create_connection((host, port), timeout=OPENING)
    _send(peer, [rank, token])
    return peer


def _send(peer: socket.socket, message: Any) -> None:
    data = json.dumps(message).encode()
    peer.sendall(len(data).to_bytes(8, "big") + data)


def _receive(peer: socket.socket, longest: int | None = None) -> Any:
    """Raises EOFError if the peer has gone, ValueError for what is no message."""
    length = int.from_bytes(_exactly(peer, 8), "big")
    if longest is not None and length > longest:
        raise ValueError(f"a message of {length} bytes")
    return json.loads(_exactly(peer, length))


def _exactly(peer: socket.socket, length: int) -> bytes:
    found = bytearray()
    while len(found) < length:
        piece = peer.recv(min(length - len(found), 1 << 20))
        if not piece:
            raise EOFError
        found += piece
    return bytes(found)
