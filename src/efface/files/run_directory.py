"""How does a job own its directory from its first line to its last? Alone, and without losing what was there.

Short: what `results.py` checks, `rerun.py` sets aside and `lock.py` holds, in the order that keeps it safe.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from efface.files.lock import held
from efface.files.rerun import former_run_kept, has_work, set_aside
from efface.files.results import check_output_dir, prepare_output_dir


@contextlib.contextmanager
def run_directory(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool | None = False,
    inputs: Iterable[Any] = (),
    shared: bool = False,
) -> Iterator[Path]:
    """A run directory that no other process works on inside the block.

    With `overwrite` the run that was there lies in a folder of it until the block ends well; if that fails before it
    has left anything to go on from, the former run is back.

    Args:
        overwrite, resume, inputs: as of `check_output_dir`.
        shared: several processes may work there, and share the work in a way of their own.

    Raises:
        UserError: as `check_output_dir` and `held`.
    """
    given = list(inputs)
    directory = check_output_dir(path, overwrite=overwrite, resume=resume, inputs=given)
    prepare_output_dir(directory, resume=True)  # made, and marked as ours; nothing in it is changed
    with contextlib.nullcontext() if shared else held(directory):
        # Whoever had it before may have left something meanwhile.
        check_output_dir(path, overwrite=overwrite, resume=resume, inputs=given)
        if overwrite:
            set_aside(directory)
        with former_run_kept(directory, main_process=True, begun=has_work):
            yield directory
