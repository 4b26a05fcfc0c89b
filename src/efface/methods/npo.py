"""How does NPO forget? Gradient ascent on y- that fades where the model has moved away from the reference.

Negative preference optimization (Zhang et al. 2024, arXiv 2404.05868, eq. 3), with log f(y | x) a sum over tokens:

    L_forget = -2 / beta * mean over pairs of log sigmoid( -beta * (log f(y- | x) - log f0(y- | x)) )

Its gradient is that of gradient ascent times 2 f^beta / (f^beta + f0^beta); as beta -> 0 it is that of gradient ascent
(Proposition 1). The retain term and the weights are those of `graddiff.py`.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from efface.checks import positive
from efface.methods.graddiff import GradDiffConfig, GradDiffTrainer
from efface.training.step import Loss, Needs, Step


def npo_loss(log_ratio: Tensor, beta: float) -> Tensor:
    """(pairs,) NPO's loss of each pair.

    Args:
        log_ratio: (pairs,) log f(y- | x) - log f0(y- | x).
        beta: inverse temperature, above 0.
    """
    return -2 / beta * F.logsigmoid(-beta * log_ratio)


@dataclass
class NPOConfig(GradDiffConfig):
    """Settings of NPO; the defaults are those of the paper's TOFU runs, with the KL for retain term."""

    retain: str = field(
        default="kl", metadata={"help": "Retain term on chosen continuations: kl (to the reference), nll, or none."}
    )
    beta: float = field(
        default=0.1,
        metadata={"help": "Inverse temperature: the higher, the sooner forgetting fades; 0 would be ascent."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("beta", self.beta)


class NPOTrainer(GradDiffTrainer):
    """Train with NPO. Arguments as `PairTrainer`; settings as `NPOConfig`."""

    config_class = NPOConfig
    args: NPOConfig

    @classmethod
    def needs(cls, args: Any, n_blocks: int) -> Needs:
        return replace(super().needs(args, n_blocks), reference=True)

    def forget_loss(self, step: Step) -> Loss:
        losses = npo_loss(step.log_ratio("rejected"), self.args.beta)  # (B,)
        log_probability = step.sequence_log_probabilities("rejected").detach()
        return step.mean(losses, over="pairs"), {"logps/rejected": step.mean(log_probability, over="pairs").item()}
