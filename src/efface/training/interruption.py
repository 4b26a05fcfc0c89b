"""What does Ctrl-C do to a training run? The step is finished and a checkpoint saved; a second one stops at once.

With several processes the first one does: each would finish another step, and wait for the others for ever.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState

NOTICE = b"\nstopping: this step is finished and a checkpoint saved. Again, and it stops at once.\n"


class _Stop(TrainerCallback):
    """Whether somebody has asked to stop; at the end of the step it is done."""

    def __init__(self) -> None:
        self.asked = False

    def on_step_end(self, args: Any, state: "TrainerState", control: "TrainerControl", **given: Any) -> None:
        if self.asked and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


@contextlib.contextmanager
def interruptible(trainer: "Trainer") -> Iterator[None]:
    """While `trainer` trains inside, Ctrl-C lets it save first.

    Raises:
        KeyboardInterrupt: saying what is kept, and of which step.
    """
    stop, before = _Stop(), signal.getsignal(signal.SIGINT)
    several = trainer.args.world_size > 1 or threading.current_thread() is not threading.main_thread()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        signal.signal(signal.SIGINT, before)
        with contextlib.suppress(OSError):  # print() may be what was interrupted
            os.write(2, NOTICE)

    trainer.add_callback(stop)
    try:
        if not several:
            signal.signal(signal.SIGINT, ask)
        yield
        if stop.asked and trainer.state.global_step < trainer.state.max_steps:
            raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(_kept(trainer)) from error
    finally:
        if not several:
            signal.signal(signal.SIGINT, before)
        trainer.remove_callback(stop)


def _kept(trainer: "Trainer") -> str:
    directory = Path(str(trainer.args.output_dir))
    last = get_last_checkpoint(str(directory)) if directory.is_dir() else None
    if last is None:
        return "interrupted before a checkpoint was saved: nothing of this run is kept."
    return f"interrupted. {last} is kept: the same command with --resume goes on there."
