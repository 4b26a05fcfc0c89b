"""What does fine-tuning on the benign continuations alone do? The control for every method that looks at y-.

    L = - mean over the tokens of y+ of log f(token | context)

Short: it has no settings and no terms of its own.
"""

from dataclasses import dataclass, field
from typing import Any

from efface.training.config import PairConfig
from efface.training.step import Loss, Needs, Step
from efface.training.trainer import PairTrainer


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

    @classmethod
    def needs(cls, args: Any, n_blocks: int) -> Needs:
        return Needs(reference=False)

    def loss(self, step: Step) -> Loss:
        nll = -step.mean(step.log_probabilities("chosen"), over="chosen")
        text, metrics = step.retain()
        return nll + text, metrics | {"nll_loss": nll.item()}
