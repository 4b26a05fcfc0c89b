"""How does a command run in several processes? The first one does all that it does alone; the others help, unseen.

    torchrun --nproc-per-node 4 -m efface audit MODEL --base BASE -o DIR

All take the same steps, so that each knows which batches are its own (`generation/processes.py`). The others work on a
copy of the output, as it is at the start, in a temporary folder: they decide alike what of it is gone on with, and
write where nobody looks. To everything inside, a Trainer among it, each process is alone: the launcher's variables are
hidden, and of the machine's CUDA devices each sees its own. If one fails, all do.
"""

import argparse
import contextlib
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from efface.errors import RunError, UserError, described
from efface.evaluation.result import generations_path, utility_path
from efface.files.io import LOCK, is_regular_file, is_temporary
from efface.files.rerun import FORMER, MOVING
from efface.files.scratch import IN_USE, make_scratch
from efface.generation.group import Group, Parted
from efface.generation.processes import working_in
from efface.terminal.signals import Terminated

LAUNCHED = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE"),
)
PREFIXES = ("TORCHELASTIC_", "ACCELERATE_", "FSDP_")
"""Of what a launcher says to the processes that it starts."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
SCRATCH = "efface-helper-"


@contextlib.contextmanager
def together(options: argparse.Namespace) -> Iterator[None]:
    """Inside, the command whose `options` these are is one of those that the environment tells of.

    In all but the first process `options` says then that nothing is shown, and to write elsewhere.

    Raises:
        UserError: if it cannot run so.
        RunError: if another process has failed.
    """
    if getattr(options, "generator", None) == "vllm":
        raise UserError("--generator vllm works with one engine in one process: run it without a launcher.")
    with contextlib.ExitStack() as stack:
        group = Group.open()
        stack.callback(group.close)
        stack.enter_context(environment(_alone(options)))
        stack.enter_context(working_in(group))
        given, mirror = str(options.output), None
        try:
            if group.rank:
                mirror = stack.enter_context(_unseen(options))
            _copy_output(group, Path(os.path.abspath(given)), mirror, left=bool(getattr(options, "resume", True)))
            yield
            group.exchange("the end", None)
        except Parted as parted:
            group.fail(str(parted))
            goes_on = hasattr(options, "resume") and "resume" not in str(parted)
            kept = " What was finished is kept: the same command with --resume goes on." if goes_on else ""
            raise RunError(f"{parted}{kept}") from parted
        except BaseException as error:
            ours = isinstance(error, UserError | RunError | KeyboardInterrupt)
            says = str(error) if ours else described(error)
            if mirror is not None:
                says = says.replace(str(options.output), given)  # the user's place
            why = says.rstrip(".") or "stopped"
            group.fail(f"rank {group.rank} of this command, on {socket.gethostname()}, has failed: {why}.")
            if mirror is not None and ours and says:
                raise _as(error, says) from error
            raise


def _as(error: BaseException, says: str) -> BaseException:
    """An error like one of ours that says something else."""
    kinds: tuple[type[BaseException], ...] = (UserError, RunError, Terminated, KeyboardInterrupt)
    return next(kind for kind in kinds if isinstance(error, kind))(says)


@contextlib.contextmanager
def environment(changed: Mapping[str, str | None]) -> Iterator[None]:
    """Inside, these variables have other values, or with None none."""
    before = {name: os.environ.get(name) for name in changed}

    def put(values: Mapping[str, str | None]) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    put(changed)
    try:
        yield
    finally:
        put(before)


def _alone(options: argparse.Namespace) -> dict[str, str | None]:
    """The variables by which a process that has been launched with others looks alone, on devices of its own."""
    names = [name for name in os.environ if name in LAUNCHED or name.startswith(PREFIXES)]
    found: dict[str, str | None] = dict.fromkeys(names)
    if getattr(options, "device", None) is None:
        rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
        place, here = (
            int(os.environ.get(name, usual)) for name, usual in (("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", size))
        )
        devices = _devices()
        if devices:
            each = max(len(devices) // here, 1) if getattr(options, "device_map", None) is not None else 1
            first = place * each % len(devices)
            found[VISIBLE] = ",".join(devices[first : first + each])
    return found


def _devices() -> list[str]:
    """The CUDA devices of this machine, as CUDA_VISIBLE_DEVICES names them; CUDA itself, which reads the variable
    once, is not asked."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get(VISIBLE)
    return (list(map(str, range(count))) if named is None else named.split(","))[:count]


@contextlib.contextmanager
def _unseen(options: argparse.Namespace) -> Iterator[Path]:
    """Inside, `options` names an output in a folder of our own, which is yielded, and nothing is shown."""
    try:
        folder, in_use = make_scratch(SCRATCH)
    except OSError as error:
        raise RunError(f"no temporary folder can be made: {error.strerror or error}. Set TMPDIR.") from error
    output, quiet = options.output, options.quiet
    options.output, options.quiet = type(output)(folder / "output" / Path(os.path.abspath(output)).name), True
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield folder / "output"
    finally:
        options.output, options.quiet = output, quiet
        if in_use is not None:
            in_use.close()
        shutil.rmtree(folder, ignore_errors=True)


def _copy_output(group: Group, output: Path, mirror: Path | None, *, left: bool) -> None:
    """Copy what is there at `output` to where the other processes have theirs.

    Args:
        output: a whole path.
        mirror: of such a process, the folder for it; None in the first one.
        left: whether the command goes on with what is left in a directory.

    Raises:
        UserError: if a process does not find what the first one does.
    """
    there = _files(output, left=left) if mirror is None else []
    wanted: list[Any] = group.exchange("the output", there)[0]
    error = None
    if mirror is not None:
        mirror.mkdir()
        try:
            for name, size in wanted:
                file, copy = output.parent / name, mirror / name
                if not is_regular_file(file) or file.stat().st_size != size:
                    raise OSError(f"{str(file)!r} is not there, or another one")
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
        except OSError as failure:
            error = (
                f"rank {group.rank}, on {socket.gethostname()}, cannot copy what rank 0 has at {str(output)!r} "
                f"({failure}). Use a place that all processes see and that fits into TMPDIR, or a new one."
            )
    failures = [one for one in group.exchange("the copies", error) if one is not None]
    if failures:
        raise UserError(failures[0])


def _files(output: Path, *, left: bool) -> list[tuple[str, int]]:
    """What of an output that is there decides what is made anew: names from its parent, and sizes."""
    if output.is_dir():
        found = [
            Path(folder, name)
            for folder, _, names in os.walk(output)
            if left and not {FORMER, MOVING} & set(Path(folder).relative_to(output).parts)
            for name in names
            if name not in (LOCK, IN_USE) and not is_temporary(name)
        ]
    else:
        found = [output, output.with_name(f"{output.name}.part"), generations_path(output), utility_path(output)]
    return [(str(file.relative_to(output.parent)), file.stat().st_size) for file in found if is_regular_file(file)]
