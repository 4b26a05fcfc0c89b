"""What if someone relearns while the model is trained? An attacker goes beside it: the gradient is taken where he is.

In each training step the attacker makes one sign step of length DELTA / K down the mean NLL of the tokens of y- on the
step's own rejected rows, from where his last one led; after K steps he begins anew at the weights. With the signs s_i
of the gradients that he has met since then, n of them,

    P(w) = w - (DELTA / K) (s_1 + ... + s_n),   s_n in {-1, 0, 1}, taken at w - (DELTA / K) (s_1 + ... + s_{n-1}).

The anticipated step (`anticipated.py`) walks K steps at once and stands somewhere on the straight line there. This one
pays for one step of a walk at a time and so affords long walks of small steps, through the attacker's own course, on
other rows in each step, as he would go it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from efface.checks import at_least, at_least_one, not_negative
from efface.errors import UserError
from efface.training.anticipated import MOST_STEPS, attackers_losses, stand_off_
from efface.training.perturbed import Maps, Place


@dataclass
class Attacker:
    """`attacker:DELTA[/K/ROWS]`."""

    delta: float
    """Length of the whole walk: by so much a weight moves at most."""
    k: int = 16
    """Sign steps of it, one in each training step."""
    rows: int = 0
    """Rejected rows of a micro-batch that a step descends on, the next step on the next; 0: all."""
    kept: dict[str, Tensor] = field(default_factory=dict, init=False)
    """"steps": made so far; parameter -> int8, minus the sum of the signs, -K to K."""

    keeps: ClassVar[bool] = True
    wants_start: ClassVar[bool] = False
    each_micro_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        not_negative("DELTA", self.delta)
        at_least_one(self, "k")
        at_least(self, 0, "rows")
        if self.k > MOST_STEPS:
            raise UserError(f"k={self.k}: at most {MOST_STEPS} steps, whose signs are counted in a byte.")

    def move_(self, place: Place) -> None:
        steps = int(self.kept.get("steps", 0)) % self.k
        counts = {name: self.kept[name] for name in place.trained if name in self.kept}
        if not steps or len(counts) < len(place.trained):
            counts = {name: torch.zeros_like(each, dtype=torch.int8) for name, each in place.trained.items()}
            steps = 0
        else:
            stand_off_(place, counts, self.delta / self.k)
        gradients = place.summed(place.gradients(attackers_losses(place, steps, self.rows)), place.trained)
        while gradients:
            name, gradient = gradients.popitem()
            counts[name].sub_(gradient.sign_().to(torch.int8))
            del gradient
        self.kept = {**counts, "steps": torch.tensor(steps + 1)}
        stand_off_(place, counts, self.delta / self.k)

    def nbytes(self, trained: Sequence[Tensor], maps: Maps) -> tuple[int, int]:
        return sum(each.nbytes for each in trained), sum(each.numel() for each in trained)
