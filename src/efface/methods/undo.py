"""How is a detoxified model made robust? Its weights are damaged, and what it says is distilled back into them.

    UNDO: Unlearn (any method), Noise, Distil on Outputs (Lee et al. 2025, arXiv 2506.06278)
    theta = (1 - alpha) * theta_0 + alpha * beta * N,    N Xavier-uniform for matrices, 0 for vectors
    L     = w_retain * KL( f_0 || f ) on y+ + w_retain_text * KL( f_0 || f ) on ordinary passages

The teacher f_0, with the weights theta_0, is the model as it was given; the student f is the damaged one. The loss is
the retain term alone (`retain.py`): what differs is where training starts.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from efface.checks import not_negative
from efface.errors import UserError
from efface.methods.retain import RetainConfig, RetainTrainer

NO_LORA = "undo damages the weights themselves, which must be trained to be repaired. Train without LoRA."


@dataclass
class UNDOConfig(RetainConfig):
    """Settings of UNDO. The authors take an alpha of 0.6 where training goes on until the damage is repaired, and 0.25
    (beta 0) for 3000 steps of 110 long sequences; their learning rates are 9e-4 (0.1B weights) and 2e-5 (2B weights).
    Alpha and rate here are ours, untuned: less damage, as 48 small steps are to repair it."""

    learning_rate: float = field(default=3e-4, metadata={"help": "Peak learning rate of the student."})
    alpha: float = field(
        default=0.1,
        metadata={"help": "Damage, 0 to 1: more of it is more robust, and takes more --max_steps to repair."},
    )
    beta: float = field(default=0.1, metadata={"help": "Size of the noise; 0 only shrinks the weights."})
    w_retain: float = field(default=1.0, metadata={"help": "Weight of the KL on chosen continuations."})
    w_retain_text: float = field(default=1.0, metadata={"help": "Weight of the KL on the passages of --retain_text."})
    retain_text_per_pair: float = field(default=1.0, metadata={"help": "Passages for each pair in a batch."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha={self.alpha}: it must be between 0 (no damage) and 1 (nothing is left).")
        not_negative("beta", self.beta)
        if self.lora_r is not None:
            raise UserError(f"lora_r={self.lora_r}: {NO_LORA}")


class UNDOTrainer(RetainTrainer):
    """Noise and distil. Arguments as `PairTrainer`; settings as `UNDOConfig`. An adapter of the model is merged first.

    Args:
        ref_model: another teacher than `model` as it is given.
    """

    config_class = UNDOConfig
    args: UNDOConfig

    merges_adapter = True

    def set_up_(self) -> None:
        if hasattr(self.model, "peft_config"):  # by a peft_config
            raise UserError(f"the model has an adapter: {NO_LORA}")
        # Only now, as the teacher has been copied, or asked for all it will be asked.
        shrink_and_perturb_(self.model, self.args.alpha, self.args.beta, self.args.seed)  # type: ignore[arg-type]
        if self.neurons is not None:
            self.neurons.restore_()  # only what is trained is damaged


@torch.no_grad()
def shrink_and_perturb_(model: nn.Module, alpha: float, beta: float, seed: int) -> None:
    """weights <- (1 - alpha) * weights + alpha * beta * N, in place, of the parameters that are trained.

    N is Xavier-uniform (Glorot and Bengio 2010) for matrices, drawn on the CPU, and 0 for vectors (biases, gains of
    norms), as in the authors' code. A tied weight is one parameter and stays so; buffers are not parameters.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.mul_(1 - alpha)
            if parameter.ndim > 1:
                noise = nn.init.xavier_uniform_(torch.empty(parameter.shape), generator=generator)
                parameter.add_(noise.to(parameter), alpha=alpha * beta)
