"""What every test run shares: no hub, one thread, a cache, the `--full` grid, shared data, `fails`, a polite model."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# The first example of a test pays for imports and warm-up, so a deadline per example says nothing.
hypothesis.settings.register_profile("efface", deadline=None)
hypothesis.settings.load_profile("efface")

# Before torch or a Hugging Face library is imported, for they read these once. One thread a process: the tests use
# tiny models, and xdist runs one process a core. OMP_NUM_THREADS does what torch.set_num_threads would, unimported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the tests marked `full` (the full grid, slower)")


def pytest_configure(config: pytest.Config) -> None:
    # Workers of xdist inherit the environment of the process that starts them, and so share its cache.
    if not hasattr(config, "workerinput"):
        os.environ["EFFACE_CACHE"] = tempfile.mkdtemp(prefix="efface-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["EFFACE_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(pytest.mark.skip(reason="part of the full grid: run with --full"))


def pytest_collection_finish(session: pytest.Session) -> None:
    from frozen import freeze  # in tests/support, which is found from here on

    freeze()
    # Each seed is kept, with a printed traceback, for devices that are set up later: here none is.
    torch = sys.modules.get("torch")
    for device in [] if torch is None else [torch.cuda, torch.xpu]:
        if not device.is_available():
            device.manual_seed_all = lambda seed: None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the data the project is measured on, which lies beside the checkout and is not part of it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data folder {folder}, which is not part of the repository")
    return folder


@pytest.fixture
def open_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that answers, and has every model, without interventions; nothing is asked of the real one."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    def absent(*args: Any, **given: Any) -> None:
        raise EntryNotFoundError("no such file")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **given: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command line, check exit code and that there is one line and no traceback, and return the line."""

    from efface.cli import main

    def run(code: int, *argv: Any) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in argv]) == code
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("efface: ")]
        assert len(lines) == 1 and error.endswith(lines[0] + "\n") and "Traceback" not in error, error
        return lines[0].removeprefix("efface: ")

    return run


@pytest.fixture(scope="session")
def polite() -> Any:
    """The model of `polite.py`; never changed."""
    from polite import polite_model

    return polite_model()


@pytest.fixture
def target(polite: Any) -> Any:
    """The polite model under attack."""
    from polite import target_of

    return target_of(polite)
