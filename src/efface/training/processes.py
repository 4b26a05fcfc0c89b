"""How do processes that have trained together part? The wrapper that shares gradients goes before what it sends by.

The end of a group of gloo processes waits for its threads, and a thread that lets go of a tensor waits for the
interpreter. Whoever ends the group as part of freeing an object, as `DistributedDataParallel` does if it is the last
to hold it, keeps the interpreter meanwhile: now and then both wait for ever. `destroy_process_group` lets go of it.

Short: the answer is the order in which two things end.
"""

import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Any

from torch.nn.parallel import DistributedDataParallel


@contextlib.contextmanager
def parting(trainer: Any) -> Iterator[None]:
    """What `trainer` wraps its model in lasts as long as the block; a later training wraps it anew."""
    try:
        yield
    finally:
        if isinstance(trainer.model_wrapped, DistributedDataParallel):
            models = trainer.accelerator._models
            models[:] = [model for model in models if model is not trainer.model_wrapped]
            trainer.model_wrapped = trainer.model
            gc.collect()  # the wrapper is part of a cycle


def leave_group() -> None:
    """Leave the process group, if there is one: what a program does last, when no model is at work."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        gc.collect()  # wrappers that an error has kept
        distributed.destroy_process_group()
