"""How does DPO prefer? It widens the gap between y+ and y- in how much likelier than under the reference they are.

Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290, eq. 7), log f(y | x) being a sum over tokens:

    margin = beta * (log f(y+ | x) - log f0(y+ | x)) - beta * (log f(y- | x) - log f0(y- | x))
    L = mean over pairs of -(1 - e) log sigmoid(margin) - e log sigmoid(-margin)                  loss_type=sigmoid
    L = mean over pairs of (-(1 - e) log sigmoid(margin) + e log sigmoid(-margin)) / (1 - 2e)     loss_type=robust

with e = label_smoothing. At e = 0 both are DPO; otherwise the first is conservative DPO (Mitchell 2023), the second
robust DPO (Chowdhury et al. 2024, arXiv 2403.00409), whose mean over labels swapped at the rate e is DPO's loss.
"""

from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from efface.checks import one_of, positive
from efface.data.preferences import SIDES
from efface.errors import UserError
from efface.training.config import PairConfig
from efface.training.step import Loss, Needs, Step
from efface.training.trainer import PairTrainer

LOSS_TYPES = ("sigmoid", "robust")


def dpo_loss(margin: Tensor, label_smoothing: float = 0.0, loss_type: str = "sigmoid") -> Tensor:
    """(pairs,) DPO's loss of each pair.

    Args:
        margin: (pairs,) reward of y+ less that of y-; a reward is beta * (log f(y | x) - log f0(y | x)).
        label_smoothing: e, in [0, 0.5).
        loss_type: sigmoid or robust.
    """
    as_labelled, swapped = F.logsigmoid(margin), F.logsigmoid(-margin)
    if loss_type == "robust":
        return (-(1 - label_smoothing) * as_labelled + label_smoothing * swapped) / (1 - 2 * label_smoothing)
    return -(1 - label_smoothing) * as_labelled - label_smoothing * swapped


@dataclass
class DPOConfig(PairConfig):
    """Settings of DPO, under TRL's names."""

    # TRL's 1e-6 is for runs of thousands of steps: in 48 it would leave a small model as it was. Chosen by a sweep on
    # the embedded model (benchmarks/rates.py).
    learning_rate: float = field(
        default=2e-5, metadata={"help": "Peak learning rate; TRL's default is 1e-6, for much longer runs."}
    )
    beta: float = field(default=0.1, metadata={"help": "The higher, the nearer to the reference the model stays."})
    loss_type: str = field(
        default="sigmoid",
        metadata={"help": "sigmoid, or robust; they treat label smoothing differently (conservative, robust DPO)."},
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "Share of pairs whose labels are taken to be swapped, below 0.5."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("beta", self.beta)
        one_of("loss_type", self.loss_type, LOSS_TYPES)
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                f"label_smoothing={self.label_smoothing}: it must be in [0, 0.5), as labels that are swapped half of "
                "the time say nothing."
            )


class DPOTrainer(PairTrainer):
    """Train with DPO. Arguments as `PairTrainer`; settings as `DPOConfig`; metrics have TRL's names."""

    config_class = DPOConfig
    args: DPOConfig

    @classmethod
    def needs(cls, args: Any, n_blocks: int) -> Needs:
        return Needs(sides=SIDES)

    def loss(self, step: Step) -> Loss:
        chosen, rejected = (self.args.beta * step.log_ratio(*SIDES)).chunk(2)  # (B,) each, rewards
        margin = chosen - rejected
        losses = dpo_loss(margin, self.args.label_smoothing, self.args.loss_type)
        text, metrics = step.retain()
        likely, unlikely = step.sequence_log_probabilities(*SIDES).chunk(2)
        of_pairs = {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": margin}
        of_pairs |= {"rewards/accuracies": margin > 0, "logps/chosen": likely, "logps/rejected": unlikely}
        metrics |= {name: step.mean(values.detach(), over="pairs").item() for name, values in of_pairs.items()}
        return step.mean(losses, over="pairs") + text, metrics
