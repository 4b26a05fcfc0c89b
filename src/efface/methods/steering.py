"""What if a fixed vector leads every state away from toxicity? Activation addition (Turner et al. 2023, arXiv
2308.10248), with the difference of means over a set of pairs (Rimsky et al. 2023, arXiv 2312.06681).

    h <- h - strength * (mean of h over the tokens of y-  -  mean of h over the tokens of y+)

after the chosen blocks, at every position of prompt and continuation.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from efface.analysis.directions import difference_of_means
from efface.checks import positive
from efface.methods.hooked import HookedConfig, HookedEditor
from efface.model.interventions import Intervention, attach_


@dataclass
class SteeringConfig(HookedConfig):
    """Settings of steering. The middle layer is about where Rimsky et al. find it to work best (13 of 32)."""

    layers: str = field(default="0.5", metadata={"help": "After which blocks: last, all, or as in `8,16` or `0.5`."})
    strength: float = field(
        default=1.0, metadata={"help": "How far, in differences of means between toxic and benign states."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("strength", self.strength)


class SteeringEditor(HookedEditor):
    """Steer. Arguments as `PairEditor`; settings as `SteeringConfig`. The vectors are an `Intervention` each.

    Several layers are steered from the lowest up, each by the means that those below have left: vectors of the
    untouched model would take away again what is gone already.
    """

    config_class = SteeringConfig
    args: SteeringConfig

    def edit_(self) -> dict[str, Any]:
        """Returns for each layer the `length` of the vector that is added, and `relative_length`: divided by the mean
        length of a state."""
        found: dict[str, Any] = {}
        for layer in self.layers:
            at = self.states_of(layer)
            vector = -self.args.strength * difference_of_means(at.hidden, at.labels)  # (d,)
            attach_(self.model, [steering_intervention(layer, vector)])
            length, of_states = np.linalg.norm(vector), np.linalg.norm(at.hidden, axis=1).mean()
            found[str(layer)] = {"length": float(length), "relative_length": float(length / of_states)}
        return {"pairs": len(self.rows), "layers": found}


def steering_intervention(layer: int, vector: np.ndarray) -> Intervention:
    """h -> h + vector (d,) after block `layer`."""
    bias = torch.tensor(vector, dtype=torch.float32)
    return Intervention(layer, bias.new_zeros(len(bias), 0), bias.new_zeros(0, len(bias)), bias)
