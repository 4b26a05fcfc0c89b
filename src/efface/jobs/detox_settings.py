"""What can be chosen of `efface detox`, and how much is done with a budget?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from efface.checks import one_or_more
from efface.errors import UserError
from efface.evaluation.budget import UtilityBounds
from efface.methods import PLAIN


@dataclass(frozen=True)
class Effort:
    """How much is done with a budget."""

    n_pairs: int
    learning_rates: tuple[float, ...]
    """The strengths that are tried."""
    text_tokens: int
    """Of ordinary text, for what an edit costs."""
    repo: Mapping[str, Any]
    """Settings of REPO that are no defaults."""
    minutes: str
    """Of SmolLM2-135M on two cores."""


EFFORTS = {
    "quick": Effort(
        n_pairs=160, learning_rates=(1e-4, 2e-4), text_tokens=3_000, repo=PLAIN, minutes="reckoned at 45 minutes"
    ),
    "standard": Effort(
        n_pairs=320,
        learning_rates=(5e-5, 1e-4, 2e-4, 4e-4),
        text_tokens=6_000,
        repo={},
        minutes="reckoned at six hours",
    ),
}


@dataclass(frozen=True)
class DetoxSettings:
    """What can be chosen."""

    pairs: str | None = None
    """What `efface train` takes for pairs; None builds them from the model."""
    source: str = "antiexpert"
    """Who writes the toxic side of pairs that are built: a name in `efface.pairs.SOURCES`."""
    prompts: str = "shipped:prompts"
    """To choose on and to report, apart from each other and from what the training pairs hold: what `load_prompts`
    takes."""
    text: str = "shipped:text"
    """Ordinary text, on which the cost is measured."""
    scorers: tuple[str, ...] = ("alt-profanity-check",)
    """The first chooses."""
    bounds: UtilityBounds = field(default_factory=UtilityBounds)
    """What the edit may cost."""
    budget: str = "quick"
    """A name in EFFORTS, and the audit's budget."""
    max_steps: int | None = None
    """Of REPO; None takes what `budget` says, and then REPO's default."""
    audited: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.budget not in EFFORTS:
            raise UserError(f"budget={self.budget!r} is unknown. There are: {', '.join(EFFORTS)}.")
        if not self.scorers:
            raise UserError("scorers: name at least one judge.")
        one_or_more("max_steps", self.max_steps)

    @property
    def effort(self) -> Effort:
        return EFFORTS[self.budget]

    @property
    def of_repo(self) -> dict[str, Any]:
        """Settings of REPO."""
        return {**self.effort.repo, **({} if self.max_steps is None else {"max_steps": self.max_steps})}
