"""What of a training by steps is kept in the log book of its directory? Each log row and each checkpoint.

    {"event": "log", "step": 5, "of": 48, "seconds_left": 180.2, "terms": {"loss": 0.903, "learning_rate": 1e-4, ...}}
    {"event": "checkpoint saved", "step": 5, "checkpoint": "checkpoint-5"}

The same numbers that `live.py` tells a person, and `results.json` has in the end as `history`; here they are there
while the run goes on, and when it has been killed.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from efface.files.events import Journal

if TYPE_CHECKING:
    from transformers import TrainerState

NO_TERMS = ("epoch", "step", "total_flos")


class LogBook(TrainerCallback):
    """Adds to `journal`, which of several processes the first one writes."""

    def __init__(self, journal: Journal, clock: Callable[[], float] = time.monotonic):
        self.journal, self.clock = journal, clock
        self.began: tuple[int, float] = (0, 0.0)
        """Step and time of the start, or of going on."""

    def on_train_begin(self, args: Any, state: "TrainerState", control: Any, **given: Any) -> None:
        self.began = state.global_step, self.clock()

    def on_log(self, args: Any, state: "TrainerState", control: Any, logs: Any = None, **given: Any) -> None:
        terms = {name: value for name, value in (logs or {}).items() if name not in NO_TERMS}
        if terms:
            left = self._seconds_left(state)
            self.journal.add("log", step=state.global_step, of=state.max_steps, seconds_left=left, terms=terms)

    def on_save(self, args: Any, state: "TrainerState", control: Any, **given: Any) -> None:
        step = state.global_step
        self.journal.add("checkpoint saved", step=step, checkpoint=f"{PREFIX_CHECKPOINT_DIR}-{step}")

    def _seconds_left(self, state: "TrainerState") -> float | None:
        """As far as the steps since the start tell."""
        first, start = self.began
        made = state.global_step - first
        if made <= 0:
            return None
        return round((self.clock() - start) / made * (state.max_steps - state.global_step), 1)
