"""How is a model kept what it is? The retain term of REPO (`repo.py`), alone: the ablation without an adversary.

    L = w_retain * mean over the tokens of y+ of KL( f0 || f )
      + w_retain_text * mean over the tokens of ordinary passages of KL( f0 || f )

Both are 0, their least, at the reference. Where that is the initial model, there is no gradient but rounding's: the
model should stay what it is, and what REPO does is its adversary's doing.
"""

from dataclasses import dataclass, field

from efface.checks import positive
from efface.training.config import PairConfig
from efface.training.step import Loss, Step
from efface.training.trainer import PairTrainer


@dataclass
class RetainConfig(PairConfig):
    """Settings of the retain term, which are REPO's too."""

    retain_text: str | None = field(
        default="shipped:passages",
        metadata={"help": "JSON lines with `text`, ordinary passages whose KL is kept low; none to do without."},
    )
    w_retain: float = field(default=0.5, metadata={"help": "Weight of the KL on chosen continuations."})
    w_retain_text: float = field(default=20.0, metadata={"help": "Weight of the KL on the passages of --retain_text."})

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("w_retain", self.w_retain)


class RetainTrainer(PairTrainer):
    """Train with the retain term alone. Arguments as `PairTrainer`; settings as `RetainConfig`."""

    config_class = RetainConfig
    args: RetainConfig

    def loss(self, step: Step) -> Loss:
        return step.retain(self.args.w_retain)
