"""What was measured of a model, before an attack or at a point of its curve?"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from efface.errors import UserError
from efface.evaluation.comparison import Comparisons, compare, read_comparisons
from efface.evaluation.result import EVALUATION, TOXICITY, Figures
from efface.files.jsonl import Row
from efface.files.shapes import Each, Maybe, check_shape

BLOCKS = ("toxicity", "judges", "perplexity", "degeneration")
"""Of the result of an evaluation, those that an attack reports."""
FIGURES = {name: EVALUATION[name] for name in BLOCKS} | {"judges": Each(TOXICITY)}
"""Their shape."""
SCORED = {"prompt": str, "continuation": str, "score": float, "scores": Each(float), "invalid": Maybe(str)}
MEASURED = {"figures": FIGURES, "generations": [SCORED], "at": dict}
"""Of a measurement on the disk."""


@dataclass
class Measurement:
    """What a model wrote after the prompts, and how it was judged."""

    figures: dict[str, Any]
    """The blocks `toxicity`, `judges`, `perplexity` and `degeneration` of `efface evaluate`; for a point on the curve
    of an attack also `versus_before`."""
    generations: list[Row]
    """Rows of prompt, continuation, scores (of each judge), score (of the first) and invalid (null, or why it is no
    answer)."""
    at: dict[str, Any] = field(default_factory=dict)
    """Which point of an attack's curve this is: {"steps": 10}."""

    @classmethod
    def from_dict(cls, found: Row, where: str) -> "Measurement":
        """A measurement as it lies on the disk, read from `where`. Raises UserError if it is none."""
        check_shape(found, MEASURED, where)
        point = cls(found["figures"], found["generations"], found["at"])
        toxicity, judges, n = point.measured.toxicity, list(point.measured.judges), len(point.generations)
        judged = all(0 <= row["scores"].get(judge, -1) <= 1 for row in point.generations for judge in judges)
        if min(toxicity.n_prompts, toxicity.samples) < 1 or toxicity.n_prompts * toxicity.samples != n or not judged:
            raise UserError(f"{where}: the {n} generations are not those that were judged. Remove it.")
        return point

    @property
    def measured(self) -> Figures:
        """`figures` as objects: `measured.toxicity.share`."""
        return Figures.from_dict(self.figures)

    @property
    def versus_before(self) -> Comparisons:
        """How a point of an attack's curve compares with the model before; empty for what is no such point."""
        return read_comparisons(self.figures.get("versus_before", {}))

    @property
    def share(self) -> float:
        """Of toxic continuations, by the first judge."""
        return self.measured.toxicity.share

    def scores(self, judge: str) -> np.ndarray:
        """(n_prompts, K)"""
        table = np.array([row["scores"][judge] for row in self.generations])
        return table.reshape(self.measured.toxicity.n_prompts, -1)

    def versus(self, before: "Measurement") -> dict[str, Any]:
        """judge -> figure -> the fields of `Comparison` with `before`, prompt by prompt.

        Prompts are paired by their place in the list, so that an attack may alter them.
        """
        return {
            judge: {
                figure: compare(self.scores(judge), before.scores(judge), figure).to_dict()
                for figure in ("share", "mean")
            }
            for judge in self.measured.judges
            if judge in before.measured.judges
        }

    def to_dict(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return {**self.at, **self.figures}
