"""What does REPO's retain term do alone? The ablation without an adversary: REPO at `w_erase` 0, and nothing else.

    L = w_retain * mean over the tokens of y+ of KL( f0 || f )
      + w_retain_text * mean over the tokens of ordinary passages of KL( f0 || f )

Both are 0, their least, at the reference. Where that is the initial model, there is no gradient but rounding's: the
model should stay what it is, and what REPO does is its adversary's doing.
"""

from dataclasses import dataclass, field

from torch import Tensor

from efface.checks import positive
from efface.data.batch import PairBatch, ReferenceStates
from efface.methods.repo import REPOConfig
from efface.model.forward import Forward
from efface.training.config import PairConfig
from efface.training.trainer import Counts, PairTrainer


@dataclass
class RetainConfig(PairConfig):
    """Settings of the retain term; the defaults are REPO's."""

    retain_text: str | None = field(
        default=REPOConfig.retain_text,
        metadata={"help": "JSON lines with `text`, ordinary passages whose KL is kept low; none to do without."},
    )
    w_retain: float = field(
        default=REPOConfig.w_retain, metadata={"help": "Weight of the KL on chosen continuations."}
    )
    w_retain_text: float = field(
        default=REPOConfig.w_retain_text, metadata={"help": "Weight of the KL on the passages of --retain_text."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("w_retain", self.w_retain)


class RetainTrainer(PairTrainer):
    """Train with the retain term alone. Arguments as `PairTrainer`; settings as `RetainConfig`."""

    config_class = RetainConfig
    args: RetainConfig

    def loss(
        self, policy: Forward, reference: ReferenceStates, batch: PairBatch, counts: Counts
    ) -> tuple[Tensor, dict[str, float]]:
        return self.retain_loss(policy, reference, batch, counts, self.args.w_retain)
