"""What do Ctrl-C and SIGTERM do to a training run? The step is finished, a checkpoint saved; a second stops at once.

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

from efface.terminal.signals import Terminated

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = b"\nstopping: this step is finished and a checkpoint saved. Again, and it stops at once.\n"


class _Stop(TrainerCallback):
    """Whether somebody has asked to stop; at the end of the step it is done."""

    def __init__(self) -> None:
        self.asked = 0
        """By which signal; 0: not yet."""

    def on_step_end(self, args: Any, state: "TrainerState", control: "TrainerControl", **given: Any) -> None:
        if self.asked and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


@contextlib.contextmanager
def interruptible(trainer: "Trainer") -> Iterator[None]:
    """While `trainer` trains inside, Ctrl-C, and SIGTERM, let it save first.

    Raises:
        KeyboardInterrupt: saying what is kept, and of which step; of SIGTERM a `Terminated`.
    """
    stop, before = _Stop(), {number: signal.getsignal(number) for number in SIGNALS}
    several = trainer.args.world_size > 1 or threading.current_thread() is not threading.main_thread()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = number
        _set(before)
        with contextlib.suppress(OSError):  # print() may be what was interrupted
            os.write(2, NOTICE)

    trainer.add_callback(stop)
    try:
        if not several:
            _set(dict.fromkeys(SIGNALS, ask))
        yield
        if stop.asked and trainer.state.global_step < trainer.state.max_steps:
            raise Terminated if stop.asked == signal.SIGTERM else KeyboardInterrupt
    except KeyboardInterrupt as error:
        raise type(error)(_kept(trainer)) from error
    finally:
        if not several:
            _set(before)
        trainer.remove_callback(stop)


def _set(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _kept(trainer: "Trainer") -> str:
    directory = Path(str(trainer.args.output_dir))
    last = get_last_checkpoint(str(directory)) if directory.is_dir() else None
    if last is None:
        return "interrupted before a checkpoint was saved: nothing of this run is kept."
    return f"interrupted. {last} is kept: the same command with --resume goes on there."
