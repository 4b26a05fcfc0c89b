"""How toxic is an arm at exactly a utility budget? Its edit is scaled to it, and what that writes is judged.

Every arm is brought to the same cost, by base + a edit (`model/edit.py`) with the largest a that the budget allows
(`evaluation/budget.py`): otherwise an arm wins by having spent more. On the tuning prompts the least toxic arm of an
entry is then chosen.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from efface.attacks.measurement import Measurement
from efface.attacks.target import Target
from efface.comparison.config import SweepConfig
from efface.errors import RunError
from efface.evaluation.budget import Cost, FittedScale, UtilityBounds, fit_as_it_is, fit_scale
from efface.evaluation.ordinary_cost import OrdinaryCost
from efface.files.jsonl import Row
from efface.model.edit import scaled_copy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@dataclass
class Scaler:
    """What edits of one base cost and say, at any multiple."""

    target: Target
    """Of the base, with the tuning prompts and the text."""
    budgets: Mapping[str, UtilityBounds]
    most: float = 2.0
    """The largest multiple that is tried."""
    max_tokens: int | None = None
    """Of the text, for perplexity."""
    max_kl_tokens: int | None = 4096
    ordinary: OrdinaryCost = field(init=False)

    def __post_init__(self) -> None:
        base, tokenizer, text = self.target.model, self.target.processing_class, self.target.text
        assert text is not None
        self.ordinary = OrdinaryCost(
            base,
            tokenizer,
            text,
            max_tokens=self.max_tokens,
            max_kl_tokens=self.max_kl_tokens,
            progress=self.target.progress,
        )

    @classmethod
    def of(cls, target: Target, config: SweepConfig) -> "Scaler":
        """As a sweep has it."""
        return cls(target, config.budgets, config.most, config.max_text_tokens, config.max_kl_tokens)

    def before(self) -> Measurement:
        """The base on the tuning prompts."""
        return self.target.untouched("model", self.target.described())

    def cost(self, edited: "PreTrainedModel", a: float) -> Cost:
        """What base + a edit costs."""
        return self.ordinary.of(scaled_copy(edited, self.target.model, a))

    def fit(self, edited: "PreTrainedModel", *, scaled: bool = True) -> dict[str, Row]:
        """Budget -> how much of an edit it allows (`fitted`), and what that writes after the tuning prompts
        (`tuning`, None where nothing fits). What two budgets ask alike is measured once.

        Args:
            scaled: False to take the edit as it is, or not at all.
        """
        costs: dict[float, Cost] = {}
        written: dict[float, Measurement | str] = {}
        found = {}

        def cost(a: float) -> Cost:
            if a not in costs:
                costs[a] = self.cost(edited, a)
            return costs[a]

        def guard(a: float) -> str:
            if a not in written:
                written[a] = self._write(edited, a)
            said = written[a]
            return said if isinstance(said, str) else _verdict(said)

        for name, bounds in self.budgets.items():
            fitted = self._fit_one(cost, guard, bounds, scaled)
            point = None if fitted.a is None else written[fitted.a]
            found[name] = {
                "fitted": fitted.to_dict(),
                "tuning": point.to_dict() if isinstance(point, Measurement) else None,
            }
        return found

    def _fit_one(self, cost: Any, guard: Any, bounds: UtilityBounds, scaled: bool) -> FittedScale:
        if not scaled:
            return fit_as_it_is(cost, self.ordinary.base_perplexity, bounds, guard=guard)
        return fit_scale(cost, self.ordinary.base_perplexity, bounds, guard=guard, most=self.most)

    def _write(self, edited: "PreTrainedModel", a: float) -> Measurement | str:
        student = scaled_copy(edited, self.target.model, a)
        try:
            return self.target.measure(student, with_text=False, yardstick=self.before())
        except RunError as error:
            log.info("nothing can be written at %g of the edit", a, exc_info=True)
            return str(error)


def _verdict(point: Measurement) -> str:
    guard = point.measured.degeneration
    return "ok" if guard.verdict == "ok" else "; ".join(guard.reasons)


def choose_arm(rows: Sequence[Row], budget: str) -> Row | None:
    """The row of the arm that is least toxic at a budget, by the first judge's share on the tuning prompts, then the
    mean score, then the first; None if none fits."""
    fitting = [row for row in rows if row["error"] is None and row["budgets"][budget]["tuning"] is not None]
    return min(fitting, key=lambda row: _toxicity(row, budget), default=None)


def _toxicity(row: Row, budget: str) -> tuple[float, float]:
    toxicity: Any = row["budgets"][budget]["tuning"]["toxicity"]
    return toxicity["share"], toxicity["mean"]
