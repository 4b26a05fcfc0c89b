"""Do two real processes train as one does? Half of the pairs each, over gloo; what, is in `two_processes.py`.

Of: training/processes.py
"""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model
from two_processes import CASES, SECONDS, trained

from efface.methods import METHODS


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes has; started once, for a process takes seconds to start."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    processes, logs = [], []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        script, log = Path(__file__).parents[1] / "support" / "two_processes.py", folder / f"{rank}.log"
        command = [sys.executable, str(script), str(folder / f"{rank}.pt")]
        with log.open("w") as stderr:
            processes.append(subprocess.Popen(command, env=os.environ | shared | own, stderr=stderr))
        logs.append(log)
    try:
        codes = [process.wait(timeout=SECONDS * len(CASES)) for process in processes]
    finally:
        for process in processes:  # one that has failed leaves the other waiting
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_every_method_that_takes_steps_is_tried() -> None:
    assert {name for name, method in METHODS.items() if method.cost is not None} <= set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case: str, of_two: list[dict[str, Any]], tmp_path: Path) -> None:
    first, second = (results[case] for results in of_two)
    one = trained(case, tmp_path / "one", 1)
    assert first.keys() == second.keys() == one.keys() and one
    start = dict(tiny_model("llama").named_parameters())
    moved = [(one[name] - start[name]).abs().max() for name in one if name in start]
    moved += [one[name].abs().max() for name in one if name.endswith("lora_B.default.weight")]
    assert max(moved) > 1e-4  # ten times what they may differ by
    for name, weight in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
        assert torch.isfinite(weight).all(), name


def test_a_process_with_a_loss_that_is_no_number_takes_the_others_along(of_two: list[dict[str, Any]]) -> None:
    first, second = (results["broken"] for results in of_two)
    assert first.startswith("the loss is ") and "on another process it is not finite" in first
    assert second.startswith("the loss is nan")


def test_nothing_that_shares_gradients_is_left_after_a_training(of_two: list[dict[str, Any]]) -> None:
    """It would end the process group while it is freed, and wait for ever now and then (`processes.py`)."""
    assert [results["wrapped"] for results in of_two] == [0, 0]
