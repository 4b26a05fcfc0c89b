"""What of an earlier run stays when a command meets it again? Its plan is compared, or it is set aside.

The *plan* says with what a run was begun, in `plan.json`, before its first step: a run of another plan is not
continued. With `overwrite` the *former run* lies in a folder of the directory until the new one is whole, so that one
that fails or is killed has cost nothing.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from efface.errors import RunError, UserError, one_line
from efface.files.results import RESULTS, contents, read_json, remove, write_json

PLAN = "plan.json"
FORMER = ".former-run"
MOVING = ".former-run.part"
"""The same while it is on its way: what stands beside this folder belongs into it."""
CHECKPOINTS = "checkpoint-*"
QUOTED = 120
"""Characters of a value in a message, at most."""

Plan = dict[str, Any]


def read_plan(directory: Path) -> Plan | None:
    """With what the run in `directory` was begun; None if nothing says so."""
    return read_json(directory / PLAN) if (directory / PLAN).exists() else None


def write_plan(directory: Path, plan: Plan) -> None:
    write_json(directory / PLAN, {"schema": 1, **plan})


def check_plan(directory: Path, found: Plan | None, plan: Plan, what: str, defaults: Mapping[str, Any]) -> None:
    """Refuse to continue what was begun with another plan.

    Args:
        found: the plan of what is there; what it does not say is not compared.
        plan: that of now; likewise.
        what: is there, for the error: "a run".
        defaults: of the settings, for those that only one of the two names.

    Raises:
        UserError: naming what differs.
    """
    differing = differences(found or {}, json.loads(json.dumps(plan)), defaults)
    if differing:
        raise UserError(
            f"{str(directory)!r} holds {what} of other settings: {'; '.join(differing)}. Use the same ones to go on, "
            "pass overwrite=True, or choose another -o DIR."
        )


def differences(found: Plan, plan: Plan, defaults: Mapping[str, Any]) -> list[str]:
    """`name: was A, is B` for what both plans say, setting by setting."""
    told = []
    for name in (name for name in plan if name in found and name != "settings"):
        if found[name] != plan[name]:
            told.append((name, found[name], plan[name]))
    ours, theirs = plan.get("settings"), found.get("settings")
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted(ours | theirs):
            was, now = (given.get(name, defaults.get(name)) for given in (theirs, ours))
            if was != now:
                told.append((name, was, now))
    return [f"{name}: was {_short(was)}, is {_short(now)}" for name, was, now in told]


def _short(value: Any) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), QUOTED)


def set_aside(directory: Path) -> None:
    """Move the former run out of the way, but not away.

    First go the results and the checkpoints, then the plan: interrupted in between, what is left is the former run
    under its own plan, or nothing that a new one could take for its own.

    Raises:
        RunError: if it cannot be moved.
    """
    former, moving = directory / FORMER, directory / MOVING
    try:
        if former.exists() and (directory / RESULTS).exists():
            remove(former)  # what replaced it is whole
        if former.exists():
            for entry in _in_order(directory):  # of a run that was to replace it and has not ended
                remove(entry)
            return
        moving.mkdir(exist_ok=True)
        for entry in _in_order(directory):
            os.replace(entry, moving / entry.name)
        os.replace(moving, former)
    except OSError as error:
        raise RunError(f"the run in {str(directory)!r} could not be set aside: {error.strerror or error}.") from error


def discard_former(directory: Path) -> None:
    """The new run is whole: the former is deleted."""
    for name in (FORMER, MOVING):
        with contextlib.suppress(OSError):  # the new run is what was asked for; what is left of the old one is hidden
            if (directory / name).exists():
                remove(directory / name)


def _bring_back(directory: Path) -> None:
    """Put the former run where it was, in place of one that has left nothing to continue."""
    moving = directory / MOVING
    for entry in _in_order(directory):
        remove(entry)
    os.replace(directory / FORMER, moving)
    for entry in reversed(_in_order(moving)):
        os.replace(entry, directory / entry.name)
    moving.rmdir()


@contextlib.contextmanager
def former_run_kept(directory: Path, *, main_process: bool, begun: Callable[[Path], bool]) -> Iterator[None]:
    """While the new run is made: if it fails before it has left anything, the former one is brought back.

    Args:
        begun: whether it has left something to go on from.
    """
    try:
        yield
    except BaseException:
        if main_process and (directory / FORMER).exists() and not begun(directory):
            with contextlib.suppress(OSError):  # the failure is what is told
                _bring_back(directory)
        raise
    if main_process:
        discard_former(directory)


def has_checkpoint(directory: Path) -> bool:
    """Whether a training run has left something to go on from."""
    return any(directory.glob(CHECKPOINTS))


def has_work(directory: Path) -> bool:
    """Whether any other run has."""
    return any(entry.name != PLAN for entry in _in_order(directory))


def _in_order(directory: Path) -> list[Path]:
    """Results, checkpoints, the plan, all else."""
    checkpoints = set(directory.glob(CHECKPOINTS))
    entries = [entry for entry in contents(directory) if entry.name not in (FORMER, MOVING)]
    return sorted(
        entries,
        key=lambda entry: (entry.name != RESULTS, entry not in checkpoints, entry.name != PLAN, entry.name),
    )
