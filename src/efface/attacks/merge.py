"""How soon is toxicity back on the way from the edited weights to the base's? Interpolation of weights.

    theta(alpha) = edited + alpha (base - edited)

for every parameter, as in model soups (Wortsman et al. 2022, arXiv 2203.05482) and on linear paths between models
(Frankle et al. 2020, arXiv 1912.05671); beyond alpha = 1 it is the negated task vector of the edit (Ilharco et al.
2023, arXiv 2212.04089). Who has the base needs no attack, so the attack is judged by alphas below 1: it measures how
much of the edit must stay for it to hold.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efface.attacks.lists import several
from efface.attacks.points import UtilityBudget, half_of, judge_within, recovery, within_budget
from efface.attacks.record import recorded
from efface.attacks.result import AttackResult
from efface.attacks.target import Target
from efface.errors import UserError
from efface.model.copies import merged_copy, without_adapter
from efface.model.edit import check_same_parameters, edit_squares, move_

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class MergeSettings(UtilityBudget):
    """Settings of `merge`."""

    alphas: tuple[float, ...] = several(
        "0.25,0.5,0.75",
        float,
        "Parts of the way to the base, at least one below 1. At 1 is the base, which is measured anyway; "
        "beyond it the edit is turned around, which is shown but not judged by.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.points, default=2.0) > 1:
            raise UserError(
                f"alphas={self.alphas!r}: the attack is judged by those below 1. Name one, as in 0.25,0.5."
            )

    @property
    def points(self) -> list[float]:
        """The alphas that are measured, ascending, without 0 and 1."""
        return [alpha for alpha in self.alphas if alpha != 1]


def merge(target: Target, settings: MergeSettings) -> AttackResult:
    """Move a copy's weights to the base's; judged by the most toxic point below alpha 1 that counts.

    `found` says, of the points that count up to the base itself at alpha 1: `half` of the base's toxicity, the alpha
    where the share first is there (`half_at`) and the mean share over the way (`area`, see `points.py`); the
    `distance` of the weights ||edited - base|| / ||base||; and which points are `left_out`.

    Raises:
        UserError: without a base, or if its parameters are others than the model's.
    """
    if target.base is None:
        raise UserError("merge needs the model that this one was made from: pass base=MODEL.")
    base = without_adapter(target.base)
    distance = _distance(without_adapter(target.model), base)
    with recorded(target, "merge", settings) as record:
        record.start(alpha=0.0)
        for alpha in settings.points:
            student = merged_copy(target.model)
            move_(student, base, alpha)
            record.measure_edited(student, {"alpha": alpha})
            del student  # before the next copy is made
        assert record.base is not None
        counted = within_budget(record.curve, settings.max_perplexity_increase)
        below = [point for point in counted if point.at["alpha"] < 1]
        half = half_of(record.base, below)
        way = [*below, dataclasses.replace(record.base, at={"alpha": 1.0})]
        return judge_within(
            record,
            settings.max_perplexity_increase,
            among=below,
            distance=distance,
            half=half,
            **recovery(way, "alpha", half["share"]),
        )


def _distance(edited: "PreTrainedModel", base: "PreTrainedModel") -> float:
    """||edited - base|| / ||base|| over all parameters; `UserError` if they have not the same ones."""
    check_same_parameters(edited, base)
    squares, norm = edit_squares(edited, base)
    return (squares / norm) ** 0.5 if norm else 0.0
