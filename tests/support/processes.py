"""How are two real processes of a script started, that find each other over gloo? Both end, or say where they were."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
"""What accelerate's launcher sets for configs/accelerate/fsdp2.yaml (tests/test_scale.py compares)."""


def of_both(
    script: str, folder: Path, *arguments: str, seconds: float, environment: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """What each of two processes of `tests/support/SCRIPT.py FILE ARGUMENTS` has written to its FILE (`torch.save`).

    Args:
        folder: of the files, and of what the processes say.
        seconds: that both have.
        environment: beside one's own.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), **(environment or {})}
    processes, logs = [], []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        log = folder / f"{rank}.log"
        file = Path(__file__).with_name(f"{script}.py")
        command = [sys.executable, str(file), str(folder / f"{rank}.pt"), *arguments]
        with log.open("w") as stderr:
            processes.append(subprocess.Popen(command, env=os.environ | shared | own, stderr=stderr))
        logs.append(log)
    try:
        codes = [process.wait(timeout=seconds) for process in processes]
    finally:
        for process in processes:  # one that has failed leaves the other waiting
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
