"""How does NPO forget? Gradient ascent on y- that fades where the model has moved away from the reference.

Negative preference optimization (Zhang et al. 2024, arXiv 2404.05868, eq. 3), with log f(y | x) a sum over tokens:

    L_forget = -2 / beta * mean over pairs of log sigmoid( -beta * (log f(y- | x) - log f0(y- | x)) )

Its gradient is that of gradient ascent times 2 f^beta / (f^beta + f0^beta); as beta -> 0 it is that of gradient ascent
(Proposition 1). The retain term and the weights are those of `graddiff.py`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from efface.checks import positive
from efface.data.batch import PairBatch, ReferenceStates
from efface.data.preferences import SIDES
from efface.methods.functional import sum_rows
from efface.methods.graddiff import GradDiffConfig, GradDiffTrainer
from efface.model.forward import Forward, Head
from efface.training.trainer import Counts, PairTrainer


def npo_loss(log_ratio: Tensor, beta: float) -> Tensor:
    """(pairs,) NPO's loss of each pair.

    Args:
        log_ratio: (pairs,) log f(y- | x) - log f0(y- | x).
        beta: inverse temperature, above 0.
    """
    return -2 / beta * F.logsigmoid(-beta * log_ratio)


def sequence_log_probabilities(
    trainer: PairTrainer, hidden: Tensor, head: Head, batch: PairBatch, *sides: str
) -> Tensor:
    """(rows,) log f(y | x), summed over the tokens of y; a row for each continuation of `sides`, chosen ones first.

    Args:
        trainer: whose `log_probabilities` are summed; `hidden` and `head` are as there.
    """
    n, mask = batch["n_pairs"], batch["continuation_mask"]
    rows = torch.cat([mask[i * n : (i + 1) * n] for i, side in enumerate(SIDES) if side in sides])
    return sum_rows(trainer.log_probabilities(hidden, head, batch, *sides), rows)


def log_ratios(
    trainer: PairTrainer, policy: Forward, reference: ReferenceStates, batch: PairBatch, *sides: str
) -> tuple[Tensor, Tensor]:
    """log f(y | x) - log f0(y | x), and log f(y | x) without its graph, for logs; (rows,) each.

    Rows as in `sequence_log_probabilities`. The arguments are what a trainer's `loss` is given.
    """
    assert trainer.reference_head is not None
    found = sequence_log_probabilities(trainer, policy.hidden, trainer.head, batch, *sides)
    with torch.no_grad():
        expected = sequence_log_probabilities(trainer, reference["hidden"], trainer.reference_head, batch, *sides)
    return found - expected, found.detach()


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

    def needs_reference(self, args: Any, has_passages: bool) -> bool:
        return True

    def forget_loss(
        self, policy: Forward, reference: ReferenceStates, batch: PairBatch, counts: Counts
    ) -> tuple[Tensor, dict[str, float]]:
        ratio, log_probability = log_ratios(self, policy, reference, batch, "rejected")
        loss = npo_loss(ratio, self.args.beta).sum() / counts.pairs
        return loss, {"logps/rejected": (log_probability.sum() / counts.pairs).item()}
