"""Is every result what it was, to the bit? For a change that must not show: files moved, code taken apart.

    python scripts/digests.py record DIR     with the old code: make everything, keep the digests and the JSON in DIR
    python scripts/digests.py compare DIR    with the new code: make it again elsewhere; exit 1 if anything differs
    python scripts/digests.py compare DIR --only 'attack-gcg*'

Only the command is used (`efface.cli.main`), on tiny random models: every method, attack and kind of pairs, the
figures of an evaluation, an audit, the scorers, the demo and its page, and the flags with their defaults. `record`
also interrupts some work half-way; `compare` continues copies of it: what old code has begun, new code must finish
alike. What is made stands in digests_cases.py; here is how it is made, written down and compared.

DIR holds `inputs/` (models and data, of which `compare` uses the same), `half/` (the interrupted work),
`json/NAME.json` (what each entry was, for people) and `digests.json` (name -> sha256). Left out of the JSON are times,
rates, versions, commands and paths, and marks of what wrote a cache; all else, floats too, is exact.
"""

# ruff: noqa: E402 (the environment comes before what reads it)

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import re
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
from safetensors.torch import load_file
from transformers.trainer_callback import CallbackHandler
from transformers.utils import logging as transformers_logging

from efface.cli import main as efface

LEFT_OUT = re.compile(
    "environment|(.*_)?versions?|command|available|made_by|_name_or_path|.*seconds|.*runtime|.*per_(second|minute)"
)
TIMES = re.compile(r"\d+(\.\d+)? ?(s|seconds|minutes?|pairs a minute)\b")
OPAQUE = {".pt", ".pth", ".bin", ".tmp", ".part", "plan.json"}
"""Files of which only the name is noted; whether a plan is that of another run, the resumed cases tell."""


@dataclass
class Place:
    """Where one pass works: `home` is DIR, `work` a folder of this pass alone."""

    home: Path
    work: Path

    def told(self, text: str) -> str:
        """Without paths and times."""
        text = text.replace(str(self.work), "WORK").replace(str(self.home), "DIR")
        return TIMES.sub(r"N \2", text)

    def run(self, argv: list[str], cache: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a command, in a known state and with a cache of its own."""
        os.environ["EFFACE_CACHE"] = str(self.work / "cache" / cache)
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
            code = efface(argv)
        return code, out.getvalue(), error.getvalue()


def normalised(value: Any, place: Place) -> Any:
    if isinstance(value, dict):
        found = {key: normalised(each, place) for key, each in value.items() if not LEFT_OUT.fullmatch(key)}
        if isinstance(found.get("target_modules"), list):  # a set of peft's, whose order is that of hashes
            found["target_modules"].sort()
        return found
    if isinstance(value, list):
        return [normalised(each, place) for each in value]
    return place.told(value) if isinstance(value, str) else value


def content(file: Path, place: Place) -> Any:
    """What a file says, as JSON."""
    if {file.suffix, file.name} & OPAQUE:
        return "(not read)"
    if file.suffix == ".json":
        found = json.loads(file.read_text())
        return digest_of(found) if file.name == "tokenizer.json" else normalised(found, place)
    if file.suffix == ".jsonl":
        return [normalised(json.loads(line), place) for line in file.read_text().splitlines()]
    if file.suffix == ".safetensors":
        return {name: digest_of_tensor(tensor) for name, tensor in sorted(load_file(file).items())}
    try:
        return place.told(file.read_text()).splitlines()
    except UnicodeDecodeError:
        return hashlib.sha256(file.read_bytes()).hexdigest()


def contents(folder: Path, place: Place) -> dict[str, Any]:
    """All files of a folder; not what checkpoints hold, whose last one is the model itself."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    names = {file: file.relative_to(folder).as_posix() for file in files}
    return {name: content(file, place) for file, name in names.items() if "checkpoint-" not in name}


def digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_tensor(tensor: torch.Tensor) -> str:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(raw).hexdigest()}"


def make(case: Case, place: Place, *, recording: bool) -> dict[str, Any]:
    """Run the commands of a case, the interrupted one first, and tell what they printed and left."""
    folder, half = place.work / case.name, place.home / "half" / case.name
    if case.stop is not None:
        if recording:
            _interrupt(case, place, folder)
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(folder, half)
            shutil.rmtree(folder)
        shutil.copytree(half, folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {file: file.stat().st_mtime_ns for pattern in case.keeps for file in folder.glob(pattern)}
    entry: dict[str, Any] = {"exit": [], "stdout": []}
    for number, argv in enumerate(case.commands(folder)):
        code, out, error = place.run([*argv, *["--resume"] * (case.stop is not None and case.resumes)], case.name)
        entry["exit"].append(code)
        lines = [line for line in place.told(out).splitlines() if not line.startswith("{'")]  # of the Trainer's log
        entry["stdout"] += case.read(lines)
        if code != case.code:
            entry["error"] = place.told(error).splitlines()[-1:]
            print(f"{case.name}, command {number}: exit {code}: {error[-2000:]}", file=sys.stderr)
    entry["files"] = contents(folder, place)
    if case.stop is not None:  # what was there has been used, and not made again
        entry["kept"] = {file.relative_to(folder).as_posix(): _mtime(file) == was for file, was in kept.items()}
    shutil.rmtree(place.work / "cache", ignore_errors=True)
    return json.loads(json.dumps(entry))  # as it will be read back


def _mtime(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.exists() else None


def _interrupt(case: Case, place: Place, folder: Path) -> None:
    """Ctrl-C in the last command of a case, as soon as `case.stop` holds."""
    folder.mkdir(parents=True)
    *before, last = case.commands(folder)
    for argv in before:
        place.run(argv, case.name)
    with interrupted(lambda: case.stop(folder)):  # type: ignore[misc]
        code, _, error = place.run(last, case.name)
    if code != 130:
        raise SystemExit(f"{case.name} was not interrupted (exit {code}): {error[-2000:]}")
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


def difference(old: Any, new: Any, path: str = "") -> str | None:
    """Where two JSON values first differ, and how."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if key not in old or key not in new:
                return f"{path}.{key}: only in the {'old' if key in old else 'new'}"
            if found := difference(old[key], new[key], f"{path}.{key}"):
                return found
        return None
    if isinstance(old, list) and isinstance(new, list):
        for number, (one, other) in enumerate(zip(old, new, strict=False)):
            if found := difference(one, other, f"{path}[{number}]"):
                return found
        return None if len(old) == len(new) else f"{path}: {len(old)} and now {len(new)} long"
    return None if old == new and type(old) is type(new) else f"{path}: {str(old)[:300]!r} is now {str(new)[:300]!r}"


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
