"""What if someone relearns while the model is trained? An attacker goes beside it: the gradient is taken where he is.

In each training step the attacker makes one sign step of length DELTA / K down the mean NLL of the tokens of y- on the
step's own rejected rows, from where his last one led; after K steps he begins anew at the weights. With the signs s_i
of the gradients that he has met since then, n of them,

    P(w) = w - (DELTA / K) (s_1 + ... + s_n),   s_n in {-1, 0, 1}, taken at w - (DELTA / K) (s_1 + ... + s_{n-1}).

The anticipated step (`anticipated.py`) walks K steps at once and stands somewhere on the straight line there. This one
pays for one step of a walk at a time and so affords long walks of small steps, through the attacker's own course, on
other rows in each step, as he would go it.
"""

from dataclasses import dataclass

import torch

from efface.training.anticipated import SignWalk, descend_, no_steps, stand_off_
from efface.training.perturbed import Place


@dataclass
class Attacker(SignWalk):
    """`attacker:DELTA[/K/ROWS]`. It counts the "steps" since he began."""

    delta: float
    """Length of the whole walk: by so much a weight moves at most."""
    k: int = 16
    """Sign steps of it, one in each training step."""
    rows: int = 0
    """Rejected rows of the optimizer step that a step of his descends on, the next on the next ones; 0: all."""

    def __post_init__(self) -> None:
        self.check(self.delta, self.k, self.rows)

    def move_(self, place: Place) -> None:
        steps = int(self.kept.get("steps", 0)) % self.k
        counts = {name: self.kept[name] for name in place.trained if name in self.kept}
        if not steps or len(counts) < len(place.trained):
            counts, steps = no_steps(place), 0
        else:
            stand_off_(place, counts, self.delta / self.k)
        descend_(place, counts, steps, self.rows)
        self.kept = {**counts, "steps": torch.tensor(steps + 1)}
        stand_off_(place, counts, self.delta / self.k)
