"""In which precision is a model read? Its own, or half of it for a while, where the machine is faster at that."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from efface.model.devices import default_device, has_bfloat16


def is_fast_in_half(device: torch.device | None = None) -> bool:
    """Whether bfloat16 is the faster precision there: a GPU that has it, a CPU whose matrix unit (AMX) has it.

    Args:
        device: None takes the one that a model would be put on.
    """
    return has_bfloat16(default_device() if device is None else device)


def is_wide(model: nn.Module) -> bool:
    """Whether all weights are in float32, and so could be read in less."""
    return all(parameter.dtype == torch.float32 for parameter in model.parameters())


def is_half(model: nn.Module) -> bool:
    """Whether there are weights in half precision, so that a forward rounds to it with no autocast at all."""
    return any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in model.parameters())


@contextlib.contextmanager
def read_in(model: nn.Module, dtype: str | None) -> Iterator[None]:
    """Inside, the weights of a model in float32 are rounded to `dtype`; afterwards they are the very ones of before.

    The model itself is taken and no copy, so hooks and interventions are at work as they were; buffers (the
    frequencies of rotary positions) stay in float32. A model in half precision, or a quantised one, is left as it is,
    as all are with a `dtype` of None. It costs half of the model's memory.
    """
    if dtype is None or not is_wide(model):
        yield
        return
    held = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        for parameter, data in held:
            parameter.data = data.to(getattr(torch, dtype))
        yield
    finally:
        for parameter, data in held:
            parameter.data = data
