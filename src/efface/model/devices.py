"""Where does a model run that nobody has placed, and what of that device must be known? CUDA, XPU and MPS alike."""

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor


def default_device() -> torch.device:
    """The accelerator, if torch has one that works here; else the CPU."""
    if torch.accelerator.is_available():
        found = torch.accelerator.current_accelerator()
        if found is not None:
            return found
    return torch.device("cpu")


def whole_device() -> int | str:
    """Where transformers is to put a whole model itself: this process's accelerator by its number, or "cpu"."""
    return int(os.environ.get("LOCAL_RANK", "0")) if default_device().type != "cpu" else "cpu"


def doubled(tensor: Tensor) -> Tensor:
    """`tensor` in float64; on the CPU if its own device (MPS) has no such numbers."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()


def keep_random_state() -> contextlib.AbstractContextManager[None]:
    """Inside, random numbers may be drawn on CPU and accelerators; afterwards it is as if none had been."""
    kind = default_device().type
    if kind == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=range(torch.accelerator.device_count()), device_type=kind)


@contextlib.contextmanager
def as_many_threads(number: int | None) -> Iterator[None]:
    """Inside, torch works with so many threads as when something was made: sums are rounded otherwise with others, and
    a training ends at other weights. None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_memory(device: torch.device) -> int:
    """Bytes that are free where a model on `device` lives; of MPS, which shares it, those of the machine."""
    asked = getattr(getattr(torch, device.type, None), "mem_get_info", None)
    if asked is not None:
        return int(asked(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device itself computes in bfloat16, and faster than in float32."""
    if device.type == "cpu":  # its matrix unit (AMX)
        return bool(torch.cpu.get_capabilities().get("amx_bf16"))
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "xpu" and torch.xpu.is_bf16_supported()
