"""What can the model still do? Tasks of lm-evaluation-harness on the model in memory.

A task is one of lm-eval's own by name (its data come from the hub) or a file of rows (`task_files.py`). Either way
lm-eval scores (`harness.py`): `acc` takes the choice of highest likelihood after the query, `acc_norm` that of highest
likelihood per character. No chat template, no examples before the query but those a task of lm-eval has by itself.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from efface.errors import UserError
from efface.evaluation.utility.harness import run_harness
from efface.evaluation.utility.task_files import TaskFile, load_tasks
from efface.files.shapes import fill

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class UtilityResult:
    """One figure of one task."""

    task: str
    metric: str
    """As lm-eval calls it, with the filter behind a comma if the task has several."""
    value: float
    stderr: float | None
    """Standard error over rows; None where lm-eval has none."""
    n: int
    """Rows."""
    rows: list[float] | None = None
    """What each row contributes, if `value` is the mean over rows, else None."""
    fingerprint: str | None = None
    """Of the rows and their prompts, in order; None for a group of tasks."""

    def to_dict(self, *, rows: bool = False) -> dict[str, Any]:
        """For JSON; `rows` adds what a paired comparison with another model needs."""
        block = asdict(self)
        return block if rows else {name: block[name] for name in ("task", "metric", "value", "stderr", "n")}

    @classmethod
    def from_dict(cls, block: dict[str, Any]) -> "UtilityResult":
        """As it was written to JSON, with or without the rows."""
        return fill(cls, block)


def utility(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    tasks: Sequence[str | os.PathLike[str] | TaskFile],
    *,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> list[UtilityResult]:
    """The figures of each task, in the order of the tasks; those of groups come last.

    Args:
        tasks: names of lm-eval's tasks or groups, paths of task files, `read_task_file(path, delimiter=...)`.
        limit: only the first rows of each task, this many; None takes all.
        batch_size: sequences at once; fewer when their logits would exceed MAX_LOGITS.
        seed: of what a task of lm-eval draws (examples, samples). The global random states are left as they were.
        progress: show the progress bars, ours and lm-eval's.

    Raises:
        UserError: for tasks that cannot be loaded, settings that cannot work.
        RunError: if the model's output is not finite.
    """
    chosen = load_tasks(tasks)
    if batch_size < 1 or seed < 0 or (limit is not None and limit < 1):
        raise UserError(f"batch_size={batch_size}, limit={limit}, seed={seed}: at least 1, 1 and 0.")
    found = run_harness(
        model, processing_class, chosen, limit=limit, batch_size=batch_size, seed=seed, progress=progress
    )
    return [
        result
        for name, metrics in found["results"].items()
        for result in _results(name, metrics, found["samples"].get(name, []))
    ]


def _results(task: str, metrics: dict[str, Any], samples: list[dict[str, Any]]) -> list[UtilityResult]:
    results = []
    for key, value in metrics.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = metrics.get(f"{metric}_stderr,{chosen}")
        mine = [sample for sample in samples if sample["filter"] == chosen]
        results.append(
            UtilityResult(
                task=task,
                metric=metric if chosen == "none" else key,
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, int | float) else None,
                n=metrics["sample_len"],
                rows=_rows([sample.get(metric) for sample in mine], value),
                fingerprint=_fingerprint(mine) if mine else None,
            )
        )
    return results


def _rows(values: list[Any], mean: float) -> list[float] | None:
    """The values as numbers, if they are numbers and the figure is their mean."""
    if not values or not all(isinstance(value, int | float) for value in values):
        return None
    rows = [float(value) for value in values]
    return rows if math.isclose(sum(rows) / len(rows), mean, rel_tol=1e-9, abs_tol=1e-12) else None


def _fingerprint(samples: list[dict[str, Any]]) -> str:
    text = "".join(sample["doc_hash"] + sample["prompt_hash"] for sample in samples)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
