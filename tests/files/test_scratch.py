"""Are scratch folders of killed processes removed, and those in use left alone?"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from efface.files import scratch
from efface.files.io import STALE
from efface.files.lock import acquire
from efface.files.scratch import IN_USE, make_scratch, sweep_folders

MAKE = """
import time
from efface.files.scratch import make_scratch
folder, in_use = make_scratch('x-')
print(folder, flush=True)
time.sleep(600)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_what_a_killed_process_has_left_goes_and_what_a_living_one_uses_stays(temporary: Path) -> None:
    (temporary / "x-of-somebody-else").mkdir()
    process = subprocess.Popen([sys.executable, "-c", MAKE], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        ours, file = make_scratch("x-")
        assert theirs.is_dir() and ours.is_dir() and file is not None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        another, more = make_scratch("x-")
        assert not theirs.exists() and ours.is_dir(), "ours is in use"
        assert (temporary / "x-of-somebody-else").is_dir(), "nothing says that it is nobody's"
    finally:
        process.kill()
    for one in (file, more):
        assert one is not None
        one.close()
    assert (another / IN_USE).exists()


def test_folders_without_a_change_for_an_hour_go(tmp_path: Path) -> None:
    old, new, deep = (tmp_path / f".saving-{name}" for name in ("old", "new", "deep"))
    for folder in (old, new, deep):
        folder.mkdir()
        (folder / "file").write_text("")
    past = time.time() - STALE - 60
    for path in (old / "file", old, deep):
        os.utime(path, (past, past))
    sweep_folders(tmp_path, ".saving-*")
    assert not old.exists() and new.exists() and deep.exists(), "in which something was written just now"


def test_what_says_that_a_folder_is_in_use_is_locked_before_it_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process that sweeps between the two would take the folder for a killed one's."""
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    seen: list[bool] = []

    def watched(file: Any) -> bool | None:
        seen.append(any(tmp_path.glob(f"*/{scratch.IN_USE}")))
        return acquire(file)

    monkeypatch.setattr(scratch, "acquire", watched)
    folder, file = scratch.make_scratch("efface-test-")
    assert seen == [False] and file is not None and (folder / scratch.IN_USE).exists()
    file.close()
