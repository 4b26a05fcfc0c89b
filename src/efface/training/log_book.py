"""What of a training by steps is kept in the log book of its directory? Each log row and each checkpoint.

    {"event": "log", "step": 5, "of": 48, "seconds_left": 180.2, "terms": {"loss": 0.903, "learning_rate": 1e-4, ...}}
    {"event": "checkpoint saved", "step": 5, "checkpoint": "checkpoint-5"}

and in each checkpoint `spent.json`, {"seconds": 41.5}: how long training up to there took, whoever did it.

The same numbers that `live.py` tells a person, and `results.json` has in the end as `history`; here they are there
while the run goes on, and when it has been killed.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from efface.errors import RunError, UserError
from efface.files.events import Journal
from efface.files.results import read_json, write_json

if TYPE_CHECKING:
    from transformers import TrainerState

NO_TERMS = ("epoch", "step", "total_flos")
SPENT = "spent.json"


class LogBook(TrainerCallback):
    """Adds to `journal`, which of several processes the first one writes."""

    def __init__(self, journal: Journal, clock: Callable[[], float] = time.monotonic):
        self.journal, self.clock = journal, clock
        self.began: tuple[int, float] = (0, 0.0)
        """Step and time of the start, or of going on."""
        self.before: float | None = 0.0
        """Seconds that are in the checkpoint that training goes on from; None if it does not say."""

    def go_on_from(self, checkpoint: Path, step: int) -> None:
        """Training begins with what was made before."""
        self.journal.add("resumed", checkpoint=checkpoint.name, step=step)
        self.before = None
        with contextlib.suppress(UserError):  # one of an earlier version has no such file
            self.before = read_json(checkpoint / SPENT, {"seconds": float})["seconds"]

    def on_train_begin(self, args: Any, state: "TrainerState", control: Any, **given: Any) -> None:
        self.began = state.global_step, self.clock()

    def on_log(self, args: Any, state: "TrainerState", control: Any, logs: Any = None, **given: Any) -> None:
        terms = {name: value for name, value in (logs or {}).items() if name not in NO_TERMS}
        if terms:
            left = self._seconds_left(state)
            self.journal.add("log", step=state.global_step, of=state.max_steps, seconds_left=left, terms=terms)

    def on_save(self, args: Any, state: "TrainerState", control: Any, **given: Any) -> None:
        step = state.global_step
        name = f"{PREFIX_CHECKPOINT_DIR}-{step}"
        self.journal.add("checkpoint saved", step=step, checkpoint=name)
        folder = None if self.journal.file is None else self.journal.file.parent / name
        if folder is not None and folder.is_dir() and self.before is not None:
            with contextlib.suppress(RunError):  # the checkpoint is whole without it
                write_json(folder / SPENT, {"seconds": round(self.before + self.clock() - self.began[1], 1)})

    def _seconds_left(self, state: "TrainerState") -> float | None:
        """As far as the steps since the start tell."""
        first, start = self.began
        made = state.global_step - first
        if made <= 0:
            return None
        return round((self.clock() - start) / made * (state.max_steps - state.global_step), 1)
