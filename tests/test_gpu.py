"""Does the script that waits for a GPU run whole, on a small model of a CPU, and say what went wrong?"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from unpackaged import script

from efface.files.results import read_json


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("OUT", str(tmp_path))
    return script("benchmarks/gpu")


def run(gpu: Any, *flags: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *flags])
    code: int = gpu.main()
    return code


def test_every_part_runs_on_a_cpu(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(gpu, "--device", "cpu", "--tiny", monkeypatch=monkeypatch) == 0
    found = read_json(tmp_path / "gpu.json")
    assert found["device"] == "cpu" and list(found["parts"]) == list(gpu.PARTS)
    step = found["parts"]["step"]
    assert step["repo"]["seconds_median"] > 0 and len(step["repo"]["losses"]) == 4
    assert step.get("trl") == "not installed" or step["trl dpo"]["losses"][0] == pytest.approx(0.6931, abs=1e-3)
    assert found["parts"]["generation"]["tokens_a_second"] > 0 and found["parts"]["gcg"]["candidates_a_second"] > 0
    assert found["parts"]["parity"]["dpo"]["here"] != pytest.approx(0.6931, abs=1e-4)  # it has learnt something
    assert found["parts"]["attack"]["attack"] == "prefill"


def test_without_a_gpu_there_is_one_line(gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(gpu, monkeypatch=monkeypatch) == 1
    told = capsys.readouterr().err
    assert told == "gpu.py: torch finds no CUDA device here; --device cpu --tiny tries every part.\n"


def test_a_part_that_fails_or_comes_too_late_does_not_end_the_others(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any) -> Any:
        raise ValueError("no kernel")

    monkeypatch.setattr(gpu, "PARTS", ("gcg", "attack"))
    monkeypatch.setattr(gpu.Bench, "gcg", fail)
    monkeypatch.setattr(gpu.Bench, "attack", lambda self: {"attack": "x"})
    assert run(gpu, "--device", "cpu", "--tiny", monkeypatch=monkeypatch) == 1
    parts = read_json(tmp_path / "gpu.json")["parts"]
    assert parts["gcg"]["error"] == "ValueError: no kernel" and parts["attack"]["attack"] == "x"
    assert gpu.measure("cpu", True, budget=-1.0)["attack"]["error"].startswith("left out: ")


def test_losses_that_differ_are_an_error(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.7, 0.7001, 0.7, 0.7])
    monkeypatch.setattr(gpu.Bench, "_loss", lambda self, method, use_cpu: next(losses))
    with pytest.raises(gpu.RunError, match=r"the loss of repo is 0\.7 on cpu and 0\.7001 on the CPU"):
        gpu.Bench("cpu", True).parity()
