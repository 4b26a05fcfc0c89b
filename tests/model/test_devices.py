"""Is the accelerator taken that is there, whatever its make, and is nothing asked of it that it has not?"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from efface.model import devices
from efface.model.precision import is_fast_in_half

SOURCE = Path(devices.__file__).parents[1]
ON_THE_CPU = ("generation/warp.py", "analysis/conditional.py", "analysis/fits.py")


def accelerator(monkeypatch: pytest.MonkeyPatch, kind: str | None) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    found = None if kind is None else torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *args: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: int(kind is not None))


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu", None])
def test_the_accelerator_that_is_there(kind: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator(monkeypatch, kind)
    assert devices.default_device().type == (kind or "cpu")


def test_where_a_model_is_put_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator(monkeypatch, None)
    assert devices.whole_device() == "cpu"
    accelerator(monkeypatch, "cuda")
    assert devices.whole_device() == 0
    monkeypatch.setenv("LOCAL_RANK", "3")  # of torchrun
    assert devices.whole_device() == 3


def test_random_state_is_as_it_was() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with devices.keep_random_state():
        torch.manual_seed(8)
        torch.rand(5)
    assert torch.rand(2).equal(expected)


def test_the_state_of_every_accelerator_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    accelerator(monkeypatch, "xpu")
    monkeypatch.setattr(torch.random, "fork_rng", lambda **given: asked.update(given))
    devices.keep_random_state()
    assert list(asked["devices"]) == [0] and asked["device_type"] == "xpu"


def test_doubles_where_the_device_has_none() -> None:
    class OnMPS:
        device = torch.device("mps")

        def double(self) -> Any:
            raise TypeError("MPS has no float64")

        def cpu(self) -> torch.Tensor:
            return torch.ones(2)

    assert devices.doubled(OnMPS()).dtype == torch.float64  # type: ignore[arg-type]
    assert devices.doubled(torch.ones(2)).dtype == torch.float64


def test_nothing_else_asks_an_accelerator_for_doubles_or_for_its_make() -> None:
    for file in SOURCE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if file.name == "devices.py":
            continue
        assert not re.search(r"torch\.(cuda|mps|xpu)\.is_available", text), file
        if file.relative_to(SOURCE).as_posix() not in ON_THE_CPU:
            assert not re.search(r"(?<!\.cpu\(\))\.double\(\)", text), file


def test_free_memory_and_precision() -> None:
    cpu = torch.device("cpu")
    assert devices.free_memory(cpu) > 2**20
    assert devices.free_memory(torch.device("mps")) == pytest.approx(devices.free_memory(cpu), rel=0.2)
    assert is_fast_in_half(cpu) == devices.has_bfloat16(cpu) and not devices.has_bfloat16(torch.device("mps"))
