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

from efface.checks import not_negative, one_of, positive
from efface.data.preferences import SIDES
from efface.training.config import PairConfig
from efface.training.step import Loss, Needs, Step
from efface.training.trainer import PairTrainer

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

    A subclass with another forget term overrides `forget_loss`, and `needs` if that term asks for something else.
    """

    config_class = GradDiffConfig
    args: GradDiffConfig

    @classmethod
    def needs(cls, args: Any, n_blocks: int) -> Needs:
        return Needs(sides=SIDES if args.retains else ("rejected",), reference=args.retains == "kl")

    def loss(self, step: Step) -> Loss:
        args = self.args
        forget, metrics = self.forget_loss(step)
        retain, retain_metrics = step.retain(args.w_retain if args.retains == "kl" else 0.0)
        if args.retains == "nll":
            nll = -step.mean(step.log_probabilities("chosen"), over="chosen")
            retain = retain + args.w_retain * nll
            retain_metrics["nll_loss"] = nll.item()
        return args.w_forget * forget + retain, metrics | {"forget_loss": forget.item()} | retain_metrics

    def forget_loss(self, step: Step) -> Loss:
        """L_forget, and what else is to be logged; otherwise as `loss`."""
        return step.mean(step.log_probabilities("rejected"), over="rejected"), {}
