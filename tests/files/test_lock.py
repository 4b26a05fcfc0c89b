"""Is an output one process's at a time, whoever holds it named, and free again however that ends?

Of: files/run_directory.py
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from efface.errors import UserError
from efface.files.io import LOCK
from efface.files.lock import held
from efface.files.rerun import FORMER
from efface.files.results import RESULTS, contents, write_json
from efface.files.run_directory import run_directory

HOLD = """
import os, sys, time
from pathlib import Path
from efface.files.lock import held
with held(Path(sys.argv[1])):
    if len(sys.argv) > 2 and os.fork() == 0:  # a worker, which inherits the lock
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held_elsewhere(output: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", HOLD, str(output), *more]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("name", ["run", "evaluation.json"])
def test_who_comes_second_is_told_who_is_there(name: str, tmp_path: Path) -> None:
    output = tmp_path / name
    if name == "run":
        output.mkdir()
    with held_elsewhere(output) as process:
        start = time.monotonic()
        with (
            pytest.raises(UserError, match=f"is being written by process {process.pid} on .*Wait for it"),
            held(output),
        ):
            pass
        assert time.monotonic() - start < 5, "who holds it lives: there is nothing to wait for"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with held(output):
            pass
    assert not [entry for entry in tmp_path.rglob("*") if "lock" in entry.name], "it goes with who had it"


def test_files_whose_long_names_begin_alike_are_not_one(tmp_path: Path) -> None:
    """As those of several seeds do."""
    one, other = (tmp_path / f"smollm2-135m-instruct-repo-withstand-relearn-seed{seed}.json" for seed in (0, 1))
    with held_elsewhere(one), held(other), pytest.raises(UserError, match="seed0.json' is being written"), held(one):
        pass
    with held(tmp_path / ("é" * 120)):  # as long a name as a file can have, but for its ending
        assert [entry for entry in tmp_path.iterdir() if "lock" in entry.name]


def test_the_worker_of_a_killed_process_is_waited_for(tmp_path: Path) -> None:
    """It has inherited the lock, and ends soon after."""
    with held_elsewhere(tmp_path, "2") as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        start = time.monotonic()
        with held(tmp_path):
            assert 0.5 < time.monotonic() - start < 10


def test_a_lock_is_no_content_of_a_directory(tmp_path: Path) -> None:
    with held(tmp_path):
        assert (tmp_path / LOCK).exists() and contents(tmp_path) == []
        with pytest.raises(UserError, match="is being written by process"), held(tmp_path):
            pass
    with held(tmp_path):
        pass


def test_what_a_killed_process_was_writing_goes_at_once(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    theirs, ours = (tmp_path / f".efface.json.{pid}-0123abcd.tmp" for pid in (dead.pid, os.getpid()))
    for file in (theirs, ours):
        file.write_text("{")
    with held(tmp_path):
        assert not theirs.exists() and ours.exists(), "which may be in use"


def test_where_nothing_can_be_written_nobody_is_refused_for_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with held(tmp_path / "file" / "below"):
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def finished(folder: Path) -> None:
    versions = {"versions": {"efface": "0.1.0"}}
    write_json(folder / RESULTS, {"schema": 1, "environment": versions, "run": "former"})


def test_a_run_that_fails_at_once_costs_the_former_one_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with run_directory(folder):
        finished(folder)
    before = (folder / RESULTS).read_bytes()
    with pytest.raises(KeyError), run_directory(folder, overwrite=True):
        assert contents(folder) == [folder / FORMER]
        raise KeyError
    assert (folder / RESULTS).read_bytes() == before and contents(folder) == [folder / RESULTS]


def test_a_run_that_was_begun_is_gone_on_with_and_the_former_one_goes_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with run_directory(folder):
        finished(folder)
    with pytest.raises(KeyError), run_directory(folder, overwrite=True):
        (folder / "half").write_text("")
        raise KeyError
    assert (folder / FORMER).is_dir() and not (folder / RESULTS).exists()
    with run_directory(folder, resume=True):
        assert (folder / "half").exists()
        finished(folder)
    assert contents(folder) == [folder / "half", folder / RESULTS]


def test_what_another_has_left_meanwhile_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for the worker of a dead process sees what that had made."""
    folder = tmp_path / "run"

    @contextmanager
    def slow(output: Path) -> Iterator[None]:
        finished(output)
        yield

    monkeypatch.setattr("efface.files.run_directory.held", slow)
    with pytest.raises(UserError, match="already holds a run"), run_directory(folder):
        pytest.fail("it is there now")
