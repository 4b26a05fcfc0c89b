"""Does SIGTERM end a command as Ctrl-C does: by its clean-up, in one line, with a code of its own?"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from efface import cli
from efface.terminal.signals import STOPPED, Terminated, terminable

SLOW = """
import sys, tempfile, time
from efface import cli
from efface.commands import lists

def slow(options):
    with tempfile.TemporaryDirectory(dir=sys.argv[1]):
        print("begun", flush=True)
        time.sleep(600)

lists.run = slow
sys.argv[1:] = [sys.argv[1], *sys.argv[2:]]
cli.main = lambda argv=None, main=cli.main: main(["methods"])
sys.exit(cli.entry())
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_stopped_cleans_up_and_says_so_in_a_line(number: int, code: int, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", SLOW, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        assert list(tmp_path.iterdir())
        os.kill(process.pid, number)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (code, "efface: interrupted.\n")
    assert list(tmp_path.iterdir()) == []


def test_the_handler_is_there_only_while_it_is_needed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert signal.getsignal(signal.SIGTERM) is before and STOPPED == 143
    own = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with terminable():  # somebody handles it already, a server, say
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, own)


def test_elsewhere_than_in_the_main_thread_nothing_is_handled() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(["methods"])))
    thread.start()
    thread.join()
    assert codes == [0]
