"""Is every result what it was, to the bit? For a change that must not show: files moved, code taken apart.

    python scripts/digests.py record DIR     with the old code: make everything, keep the digests and the JSON in DIR
    python scripts/digests.py compare DIR    with the new code: make it again elsewhere; exit 1 if anything differs
    python scripts/digests.py compare DIR --only 'attack-gcg*'

Only the command is used (`efface.cli.main`), on tiny random models: every method, attack and kind of pairs, the
figures of an evaluation, an audit, the scorers, the demo and its page, and the flags with their defaults. `record`
also interrupts some work half-way; `compare` continues copies of it: what old code has begun, new code must finish
alike. What is made stands in digests_cases.py; here is how it is made, written down and compared.

DIR holds `inputs/` (models and data, of which `compare` uses the same), `half/` (the interrupted work),
`json/NAME.json` (what each entry was, for people) and `digests.json` (name -> sha256). It must stay where it is, for
paths are part of what a run is known by. Left out of the JSON are times, rates, versions, commands and paths, and
marks of what wrote a cache; all else, floats too, is exact.
"""

# ruff: noqa: E402 (the environment comes before what reads it)

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

# Before torch or a Hugging Face library reads them: one thread (sums in one order), no network.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(folder) for folder in (TESTS / "support", TESTS) if folder.is_dir()]  # tiny.py, stubs.py

import numpy as np
import torch
from digests_cases import Case, cases
from digests_inputs import write_inputs
from digests_json import contents, difference, digest_of, told
from transformers.trainer_callback import CallbackHandler
from transformers.utils import logging as transformers_logging

from efface.cli import main as efface


@dataclass
class Place:
    """Where one pass works: `home` is DIR, `work` a folder of this pass alone."""

    home: Path
    work: Path

    def paths(self) -> dict[str, str]:
        """What is told in place of a path."""
        return {str(self.work): "WORK", str(self.home): "DIR"}

    def run(self, argv: list[str], cache: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a command, in a known state and with a cache of its own."""
        os.environ["EFFACE_CACHE"] = str(self.work / "cache" / cache)
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
            code = efface(argv)
        return code, out.getvalue(), error.getvalue()


def make(case: Case, place: Place, *, recording: bool) -> dict[str, Any]:
    """Run the command of a case, or continue the interrupted one, and tell what it printed and left."""
    folder, half = place.work / case.name, place.home / "half" / case.name
    if case.stop is not None:
        if recording:
            _interrupt(case, place, folder)
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(folder, half)
            shutil.rmtree(folder)
        shutil.copytree(half, folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {file: file.stat().st_mtime_ns for file in folder.glob(case.keeps)}
    argv = case.command(folder) + ["--resume"] * (case.stop is not None and case.resumes)
    code, out, error = place.run(argv, case.name)
    paths = place.paths()
    lines = [line for line in told(out, paths).splitlines() if not line.startswith("{'")]  # of the Trainer's log
    entry: dict[str, Any] = {"exit": code, "stdout": case.read(lines)}
    if code != 0:
        entry["error"] = told(error, paths).splitlines()[-1:]
        print(f"{case.name}: exit {code}: {error[-2000:]}", file=sys.stderr)
    entry["files"] = contents(folder, paths)
    if case.stop is not None:  # what was there has been used, and not made again
        entry["kept"] = {file.relative_to(folder).as_posix(): _mtime(file) == was for file, was in kept.items()}
    shutil.rmtree(place.work / "cache", ignore_errors=True)
    return json.loads(json.dumps(entry))  # as it will be read back


def _mtime(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.exists() else None


def _interrupt(case: Case, place: Place, folder: Path) -> None:
    """Ctrl-C in the command of a case, as soon as `case.stop` holds."""
    folder.mkdir(parents=True)
    with interrupted(lambda: case.stop(folder)):  # type: ignore[misc]
        code, _, error = place.run(case.command(folder), case.name)
    if code != 130:
        raise SystemExit(f"{case.name} was not interrupted (exit {code}): {error[-2000:]}")
    shutil.rmtree(place.work / "cache", ignore_errors=True)  # `compare` has none of it either
    if case.spoil is not None:
        case.spoil(folder)


@contextlib.contextmanager
def interrupted(stop: Callable[[], bool]) -> Iterator[None]:
    """KeyboardInterrupt, once, after a file has reached the disk and `stop` holds."""
    places = [(os, "fsync"), (os, "replace"), (CallbackHandler, "on_save")]
    originals = [getattr(owner, name) for owner, name in places]
    raised = False

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*args: Any, **kwargs: Any) -> Any:
            nonlocal raised
            result = call(*args, **kwargs)
            if not raised and stop():
                raised = True
                raise KeyboardInterrupt
            return result

        return watching

    for (owner, name), original in zip(places, originals, strict=True):
        setattr(owner, name, watched(original))
    try:
        yield
    finally:
        for (owner, name), original in zip(places, originals, strict=True):
            setattr(owner, name, original)


def record(home: Path, only: list[str]) -> int:
    (home / "json").mkdir(parents=True, exist_ok=True)
    if not (home / "inputs" / "judge").exists():  # which is made last
        shutil.rmtree(home / "inputs", ignore_errors=True)
        write_inputs(home / "inputs", lambda argv: Place(home, home).run(argv, "inputs"))
        shutil.rmtree(home / "cache", ignore_errors=True)
    wrong = 0
    for name, entry in _made(home, only, recording=True):
        (home / "json" / f"{name}.json").write_text(json.dumps(entry, indent=1))
        wrong += "error" in entry
        print(f"{name}: {digest_of(entry)[:12]}{' FAILED' if 'error' in entry else ''}", flush=True)
    # From the files, so that several processes may each record a part.
    digests = {file.stem: digest_of(json.loads(file.read_text())) for file in sorted((home / "json").glob("*.json"))}
    (home / "digests.json").write_text(json.dumps(digests, indent=1))
    print(f"{len(digests)} entries; of those made now, {wrong} failed")
    return 1 if wrong else 0


def compare(home: Path, only: list[str]) -> int:
    digests = json.loads((home / "digests.json").read_text())
    missing = {name for name in digests if _chosen(name, only)}
    different = 0
    changed = Path(tempfile.mkdtemp(prefix="efface-digests-changed-"))
    for name, entry in _made(home, only, recording=False):
        missing.discard(name)
        if name not in digests:
            print(f"{name}: new", flush=True)
        elif digest_of(entry) == digests[name]:
            print(f"{name}: equal", flush=True)
        else:
            different += 1
            (changed / f"{name}.json").write_text(json.dumps(entry, indent=1))
            where = difference(json.loads((home / "json" / f"{name}.json").read_text()), entry)
            print(f"{name}: DIFFERENT at {where}", flush=True)
    for name in sorted(missing):
        print(f"{name}: missing")
    print(f"{different} different, {len(missing)} missing{f'; see {changed}' if different else ''}")
    if not different:
        changed.rmdir()
    return 1 if different or missing else 0


def _chosen(name: str, only: list[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in only)


def _made(home: Path, only: list[str], *, recording: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    work = Path(tempfile.mkdtemp(prefix="efface-digests-"))
    begun = time.monotonic()
    try:
        for case in cases(home / "inputs"):
            if _chosen(case.name, only):
                yield case.name, make(case, Place(home, work), recording=recording)
                shutil.rmtree(work / case.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{time.monotonic() - begun:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Digests of all results, before and after a change that must not show."
    )
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="PATTERN", help="names of entries, such as 'train-*'"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    return {"record": record, "compare": compare}[options.what](options.folder.resolve(), options.only)


if __name__ == "__main__":
    sys.exit(main())
