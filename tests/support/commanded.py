"""What do commands do as one of two processes? Each case of FOLDER/cases.json, one after the other.

`python commanded.py FOLDER` runs them through `cli.main`, with the variables of a launcher in the environment, and
writes to FOLDER/RANK-CASE.json how each ended, what it said, how many sequences it wrote itself and how long it took.
A case may say what goes wrong on the process of rank 1.
"""

import contextlib
import faulthandler
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from frozen import freeze

from efface.attacks.target import Target
from efface.audit.battery import BUDGETS, Budget
from efface.cli import main
from efface.errors import NotFinite
from efface.generation.decoder import Decoder

SECONDS = 60  # for one case: longer means that the processes wait for each other
BATTERY = {
    "relearn": "--data toxic,own --learning_rates 1e-3,1e-2 --steps 1,2",
    "orthogonalize": "--directions contrast --layers last --forms affine",  # whose control is trained
    "third_party:fine": "--words 2",
}


def small() -> None:
    """The quick battery is a few attacks from here on."""
    BUDGETS["quick"] = Budget(minutes=1, limit=5, max_text_tokens=60, attacks=BATTERY)


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """How many sequences each call of the decoder continues."""
    decode, calls = Decoder.decode, list[int]()

    def counting(self: Decoder, prompts: Any, owners: Any, uniform: Any) -> Any:
        calls.append(len(owners))
        return decode(self, prompts, owners, uniform)

    with replaced(Decoder, "decode", counting):
        yield calls


@contextlib.contextmanager
def replaced(owner: Any, name: str, new: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stopped() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def _raising(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


TROUBLES: dict[str, tuple[Any, str, Callable[[], None]]] = {
    "breaks": (Target, "measure", _raising(ValueError("broken on purpose"))),
    "is not finite": (Decoder, "decode", _raising(NotFinite("the output is not finite, on purpose."))),
    "is stopped": (Target, "measure", _stopped),
    "is killed": (Decoder, "decode", _killed),
}


@contextlib.contextmanager
def troubled(trouble: str | None) -> Iterator[None]:
    """The third call of what is troubled goes wrong."""
    if trouble is None or os.environ["RANK"] == "0":
        yield
        return
    owner, name, happen = TROUBLES[trouble]
    usual, calls = getattr(owner, name), list[int]()

    def called(*args: Any, **given: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 3:
            happen()
        return usual(*args, **given)

    with replaced(owner, name, called):
        yield


def run(case: dict[str, Any]) -> dict[str, Any]:
    """What a case gave."""
    out, err, start = io.StringIO(), io.StringIO(), time.monotonic()
    os.environ["MASTER_PORT"] = str(case["port"])
    if os.environ["RANK"] == "0" and case.get("without"):
        shutil.rmtree(case["without"])
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # says where it hangs, if it does; set anew each time
    with troubled(case.get("trouble")), counted() as calls:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(case["command"])
    said = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
    return said | {"sequences": sum(calls), "seconds": time.monotonic() - start, "rank": os.environ.get("RANK")}


if __name__ == "__main__":
    torch.set_num_threads(1)
    small()
    freeze()
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    for case in json.loads((folder / "cases.json").read_text()):
        found = run(case)
        (folder / f"{rank}-{case['name']}.json").write_text(json.dumps(found))
