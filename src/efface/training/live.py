"""What does a person read of a run while it trains? One line for each log of the trainer, under the names of columns.

       step     loss    erase   retain    D bce  D right       lr  s a step     left
       5/48    0.903    0.684   0.0213    0.612    0.684  1.0e-04       3.9    3 min

The command line puts it in place of the dicts and the bar that transformers prints; a trainer in Python keeps those.
"""

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from efface.terminal.table import GAP, terminal_width

if TYPE_CHECKING:
    from transformers import Trainer, TrainerState

HEAD_EVERY = 20
"""Lines, after which their columns are named again."""
SHORT = {
    "retain_text_loss": "text",
    "adversary/bce": "D bce",
    "adversary/balanced_accuracy": "D right",
    "adversary/distance": "D apart",
    "rewards/margins": "margin",
    "rewards/accuracies": "right",
    "rejected_nll": "nll y-",
}
"""Terms of losses whose names are too long for a column; "D right": how often the discriminators are."""
LAST = ("rewards/chosen", "rewards/rejected", "logps/", "grad_norm")
"""How the names of those begin that are left out first where there is no room."""
NO_TERMS = ("loss", "learning_rate", "epoch", "step", "total_flos", "num_input_tokens_seen")


def speak_of(trainer: "Trainer", say: Callable[[str], None]) -> None:
    """Let `trainer` tell `say` how it goes, in the place of what it prints itself."""
    for printing in (DEFAULT_PROGRESS_CALLBACK, ProgressCallback, PrinterCallback):
        trainer.remove_callback(printing)
    trainer.add_callback(LiveLines(say))


class LiveLines(TrainerCallback):
    """Tells `say` a line of each log; of several processes in the first one."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self.say, self.clock = say, clock
        self.names: list[str] = []
        self.lines = 0
        self.began: tuple[int, float] = (0, 0.0)
        """Step and time of the start, or of going on."""
        self.last = self.began

    def on_train_begin(self, args: Any, state: "TrainerState", control: Any, **given: Any) -> None:
        self.began = self.last = state.global_step, self.clock()
        self.names, self.lines = [], 0

    def on_log(self, args: Any, state: "TrainerState", control: Any, logs: Any = None, **given: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        evaluated = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        if "loss" in logs:
            self._say(self._cells(state, logs))
        elif evaluated:
            terms = {"loss": evaluated.get("loss")} | terms_of(evaluated)
            said = ", ".join(f"{name} {figure(value)}" for name, value in terms.items() if value is not None)
            self.say(f"step {state.global_step}, held-out pairs: {said}")

    def _cells(self, state: "TrainerState", logs: dict[str, Any]) -> dict[str, str]:
        """Name of a column -> what stands there."""
        (first, start), (before, then), now = self.began, self.last, self.clock()
        self.last = state.global_step, now
        steps = state.global_step - before
        found = {"step": f"{state.global_step}/{state.max_steps}", "loss": figure(logs["loss"])}
        end = {
            "lr": f"{logs['learning_rate']:.1e}" if "learning_rate" in logs else "-",
            "s a step": f"{(now - then) / steps:.3g}" if steps > 0 else "-",
            "left": "-",
        }
        if state.global_step > first:
            end["left"] = duration((now - start) / (state.global_step - first) * (state.max_steps - state.global_step))
        room = terminal_width() - _width(found) - GAP - _width(end)
        for name, value in terms_of(logs).items():
            cell = {name: figure(value)}
            if name not in found and (room := room - GAP - _width(cell)) >= 0:
                found |= cell
        return found | end

    def _say(self, cells: dict[str, str]) -> None:
        if list(cells) != self.names or self.lines % HEAD_EVERY == 0:
            self.names, self.lines = list(cells), 0
            self.say(_line(self.names, self.names))
        self.lines += 1
        self.say(_line(self.names, list(cells.values())))


def terms_of(logs: dict[str, Any]) -> dict[str, float]:
    """Short name -> value of the terms of a loss, the most telling ones first; one that every layer has is their
    mean."""
    found: dict[str, list[float]] = {}
    names = [name for name in logs if name not in NO_TERMS and not name.endswith(("runtime", "per_second"))]
    for name in sorted(names, key=lambda name: (name.startswith(LAST), not name.endswith("_loss"))):
        if isinstance(logs[name], int | float):
            found.setdefault(_short(name), []).append(logs[name])
    return {name: sum(values) / len(values) for name, values in found.items()}


def _short(name: str) -> str:
    whole, _, layer = name.rpartition("/")
    name = whole if layer.lstrip("-").isdigit() else name
    return SHORT.get(name, name.removesuffix("_loss").replace("_", " "))


def figure(value: Any) -> str:
    """A number in the seven columns that there are for it."""
    if not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value) or value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}" if abs(value) >= 1 else f"{value:.3g}"
    return f"{value:.0e}"


def duration(seconds: float) -> str:
    """About how long: "40 s", "3 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _wide(name: str) -> int:
    return max(len(name), 7)


def _width(cells: dict[str, str]) -> int:
    return sum(map(_wide, cells)) + GAP * (len(cells) - 1)


def _line(names: list[str], cells: list[str]) -> str:
    return (" " * GAP).join(cell.rjust(_wide(name)) for name, cell in zip(names, cells, strict=True))
