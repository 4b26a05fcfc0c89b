"""How does NPO forget without a reference? Each y- fades by its own mean log-likelihood, whatever its length.

SimNPO (Fan et al. 2024, arXiv 2410.07163), after SimPO:

    L_forget = -2 / beta * mean over pairs of log sigmoid( -beta / |y-| * log f(y- | x) - gamma )

The retain term and the weights are those of `graddiff.py`.
"""

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from efface.checks import not_negative, positive
from efface.methods.graddiff import GradDiffConfig, GradDiffTrainer
from efface.training.step import Loss, Step


def simnpo_loss(log_probability: Tensor, lengths: Tensor, beta: float, gamma: float) -> Tensor:
    """(pairs,) SimNPO's loss of each pair.

    Args:
        log_probability: (pairs,) log f(y- | x), summed over tokens.
        lengths: (pairs,) tokens of y-.
        beta: inverse temperature, above 0.
        gamma: margin, 0 or more: the higher, the less likely y- must become before its gradient fades.
    """
    return -2 / beta * F.logsigmoid(-beta * log_probability / lengths - gamma)


@dataclass
class SimNPOConfig(GradDiffConfig):
    """Settings of SimNPO; beta and gamma are those of the authors' runs on MUSE Books."""

    # Not TOFU's 2.5 to 4.5: with them the gradient's weight, 2 sigmoid(beta * mean log-likelihood), is 1e-3 or less
    # at 3 nats a token. That suits text learned by heart, not continuations that the model merely might write.
    beta: float = field(
        default=0.7,
        metadata={"help": "Inverse temperature: the higher, the sooner forgetting of unlikely text fades."},
    )
    gamma: float = field(default=0.0, metadata={"help": "Margin inside the sigmoid, as in the paper's equation."})

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("beta", self.beta)
        not_negative("gamma", self.gamma)


class SimNPOTrainer(GradDiffTrainer):
    """Train with SimNPO. Arguments as `PairTrainer`; settings as `SimNPOConfig`."""

    config_class = SimNPOConfig
    args: SimNPOConfig

    def forget_loss(self, step: Step) -> Loss:
        log_probability = step.sequence_log_probabilities("rejected")  # (B,)
        losses = simnpo_loss(log_probability, step.lengths("rejected"), self.args.beta, self.args.gamma)
        logged = step.mean(log_probability.detach(), over="pairs").item()
        return step.mean(losses, over="pairs"), {"logps/rejected": logged}
