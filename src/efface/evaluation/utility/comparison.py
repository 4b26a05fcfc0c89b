"""What changed in a model's abilities? Base and edited side by side, paired over the rows where that can be."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from efface.errors import UserError
from efface.evaluation.utility.tasks import UtilityResult
from efface.files.shapes import fill


@dataclass
class UtilityDifference:
    """One figure of one task under both models."""

    task: str
    metric: str
    base: float
    edited: float
    difference: float
    """edited - base."""
    stderr: float | None
    """Of the difference. Over the differences of rows where `paired`; else as if the models had seen other rows, which
    is too large. None where neither can be had."""
    paired: bool
    n: int

    def to_dict(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, block: dict[str, Any]) -> "UtilityDifference":
        """As it was written to JSON."""
        return fill(cls, block)


def compare_utility(base: Sequence[UtilityResult], edited: Sequence[UtilityResult]) -> list[UtilityDifference]:
    """What changed between two models measured on the same rows, in the order of `base`.

    Raises:
        UserError: if the two do not have the same figures of the same rows.
    """
    others = {(result.task, result.metric): result for result in edited}
    missing = {(result.task, result.metric) for result in base} ^ others.keys()
    if missing:
        task, metric = min(missing)
        raise UserError(f"{metric} of task {task!r} is there for one model only: measure both on the same tasks.")
    return [_difference(result, others[result.task, result.metric]) for result in base]


def _difference(base: UtilityResult, edited: UtilityResult) -> UtilityDifference:
    if (base.n, base.fingerprint) != (edited.n, edited.fingerprint):
        raise UserError(
            f"task {base.task!r}: base ({base.n} rows) and edited ({edited.n} rows) were not measured on the same "
            "rows and prompts. Measure both with the same file, limit and delimiter."
        )
    paired = base.rows is not None and edited.rows is not None
    stderr = None
    if base.rows is not None and edited.rows is not None:
        changes = np.subtract(edited.rows, base.rows)
        stderr = float(changes.std(ddof=1) / math.sqrt(base.n)) if base.n > 1 else None
    elif base.stderr is not None and edited.stderr is not None:
        stderr = math.hypot(base.stderr, edited.stderr)
    return UtilityDifference(
        task=base.task,
        metric=base.metric,
        base=base.value,
        edited=edited.value,
        difference=edited.value - base.value,
        stderr=stderr,
        paired=paired,
        n=base.n,
    )
