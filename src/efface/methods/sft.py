"""What does fine-tuning on the benign continuations alone do? The control for every method that looks at y-.

L = - mean over the tokens of y+ of log f(token | context)
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from efface.data.batch import PairBatch, ReferenceStates
from efface.model.forward import Forward
from efface.training.config import PairConfig
from efface.training.trainer import Counts, PairTrainer


@dataclass
class SFTConfig(PairConfig):
    """Settings of supervised fine-tuning on the chosen continuations."""

    learning_rate: float = field(
        default=2e-5, metadata={"help": "Peak learning rate; the default is that of TRL's SFTTrainer."}
    )


class SFTTrainer(PairTrainer):
    """Fine-tune on y+. Arguments as `PairTrainer`; settings as `SFTConfig`."""

    config_class = SFTConfig
    args: SFTConfig

    def needs_reference(self, args: Any, has_passages: bool) -> bool:
        return has_passages and args.w_retain_text > 0

    def loss(
        self, policy: Forward, reference: ReferenceStates, batch: PairBatch, counts: Counts
    ) -> tuple[Tensor, dict[str, float]]:
        nll = -self.log_probabilities(policy.hidden, self.head, batch, "chosen").sum() / counts.chosen
        text, metrics = self.retain_loss(policy, reference, batch, counts, 0.0)
        return nll + text, metrics | {"nll_loss": nll.item()}
