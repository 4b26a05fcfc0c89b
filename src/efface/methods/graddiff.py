"""What is gradient difference, and what do its relatives share? A forget term on y- and a retain term on y+.

    L = w_forget * L_forget + w_retain * L_retain
    L_forget = mean over the tokens of y- of log f(token | context)                 gradient ascent
    L_retain = mean over the tokens of y+ of KL( f0 || f )                          retain=kl
               mean over the tokens of y+ of -log f(token | context)                retain=nll
               nothing: gradient ascent alone                                       retain=none

Gradient difference: Liu et al. 2022 (arXiv 2203.12817), under this name in TOFU (Maini et al. 2024, arXiv 2401.06121).
NPO (`npo.py`) and SimNPO (`simnpo.py`) have another L_forget and the same rest.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from efface.checks import not_negative, one_of, positive
from efface.data.batch import PairBatch, ReferenceStates
from efface.model.forward import Forward
from efface.training.config import PairConfig, check_config
from efface.training.trainer import Counts, PairTrainer

RETAIN = ("kl", "nll", "none")


@dataclass
class GradDiffConfig(PairConfig):
    """Settings of gradient difference."""

    learning_rate: float = field(
        default=1e-5,
        metadata={"help": "Peak learning rate; the default is that of TOFU, for 7B models and longer runs."},
    )
    w_forget: float = field(default=1.0, metadata={"help": "Weight of the forget term on rejected continuations."})
    retain: str = field(
        default="nll",
        metadata={"help": "Retain term on chosen continuations: kl (to the reference), nll (no reference), or none."},
    )
    w_retain: float = field(default=1.0, metadata={"help": "Weight of the retain term."})

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("w_forget", self.w_forget)
        one_of("retain", self.retain, RETAIN)
        not_negative("w_retain", self.w_retain)

    @property
    def retains(self) -> str | None:
        """Which retain term is in force: kl, nll, or None."""
        return self.retain if self.retain != "none" and self.w_retain else None


class GradDiffTrainer(PairTrainer):
    """Train with gradient difference. Arguments as `PairTrainer`; settings as `GradDiffConfig`.

    A subclass with another forget term overrides `forget_loss`, and `needs_reference` if that term asks it.
    """

    config_class = GradDiffConfig
    args: GradDiffConfig
    sides: tuple[str, ...] = ("chosen", "rejected")

    def __init__(
        self, model: str | PreTrainedModel, args: GradDiffConfig | None = None, *others: Any, **keywords: Any
    ):
        if args is not None:
            check_config(self, args)
        if args is not None and args.retains is None:
            self.sides = ("rejected",)
        super().__init__(model, args, *others, **keywords)

    def needs_reference(self, args: Any, has_passages: bool) -> bool:
        return args.retains == "kl" or (has_passages and args.w_retain_text > 0)

    def loss(
        self, policy: Forward, reference: ReferenceStates, batch: PairBatch, counts: Counts
    ) -> tuple[Tensor, dict[str, float]]:
        args = self.args
        forget, metrics = self.forget_loss(policy, reference, batch, counts)
        kl_weight = args.w_retain if args.retains == "kl" else 0.0
        retain, retain_metrics = self.retain_loss(policy, reference, batch, counts, kl_weight)
        if args.retains == "nll":
            nll = -self.log_probabilities(policy.hidden, self.head, batch, "chosen").sum() / counts.chosen
            retain = retain + args.w_retain * nll
            retain_metrics["nll_loss"] = nll.item()
        return args.w_forget * forget + retain, metrics | {"forget_loss": forget.item()} | retain_metrics

    def forget_loss(
        self, policy: Forward, reference: ReferenceStates, batch: PairBatch, counts: Counts
    ) -> tuple[Tensor, dict[str, float]]:
        """L_forget, and what else is to be logged; arguments and division by `counts` as with `loss`."""
        return self.log_probabilities(policy.hidden, self.head, batch, "rejected").sum() / counts.rejected, {}
