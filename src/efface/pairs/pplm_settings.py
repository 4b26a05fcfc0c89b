"""How hard does PPLM push a model, and how are its tokens drawn? The settings of `perturbation.py`."""

from dataclasses import dataclass, field, fields

from efface.errors import UserError


@dataclass(frozen=True)
class PPLMSettings:
    """How hard a model is pushed. The defaults are ours for toxicity; `paper` has those of Dathathri et al.

    On SmolLM2-135M-Instruct and Wikipedia prompts theirs hardly write toxic text and ours do, near the model's own
    perplexity: `steer_current` is what it takes. A larger `kl_scale` keeps the push fluent: without it, the probe is
    satisfied by asterisks and broken words.
    """

    stepsize: float = field(default=0.1, metadata={"help": "length of a gradient step"})
    num_iterations: int = field(default=3, metadata={"help": "gradient steps on the keys and values, for each token"})
    horizon_length: int = field(
        default=1, metadata={"help": "steps into the future whose states the attribute model sees"}
    )
    window_length: int = field(
        default=0, metadata={"help": "only the last so many cached positions are pushed (0: all)"}
    )
    gamma: float = field(
        default=1.0,
        metadata={
            "help": "exponent of the gradient's norm by which the gradient is divided; 1 makes every step equally long"
        },
    )
    gm_scale: float = field(
        default=0.8,
        metadata={"help": "weight of the pushed distribution in the geometric mean (0: the model itself)"},
    )
    kl_scale: float = field(default=0.02, metadata={"help": "weight of staying near the model's distribution"})
    top_k: int = field(
        default=10, metadata={"help": "candidates are drawn from so many of the likeliest tokens (0: all)"}
    )
    temperature: float = field(default=1.0, metadata={"help": "of the candidates"})
    steer_current: bool = True
    """The gradient also flows through the state at x_t, from which the next token is read, and not only through the
    future; their program stops it there."""

    def __post_init__(self) -> None:
        if min(self.stepsize, self.gamma, self.kl_scale, self.num_iterations, self.window_length, self.top_k) < 0:
            values = ", ".join(f"{each.name}={getattr(self, each.name)!r}" for each in fields(PPLMSettings))
            raise UserError(f"PPLMSettings({values}): none of these may be negative.")
        if not (0 <= self.gm_scale <= 1 and self.temperature > 0 and self.horizon_length >= 1):
            raise UserError(
                f"PPLM: gm_scale={self.gm_scale}, temperature={self.temperature}, horizon_length="
                f"{self.horizon_length}: the first must be within 0 and 1, the second above 0, the third at least 1."
            )

    @classmethod
    def paper(cls) -> "PPLMSettings":
        """The defaults of Dathathri et al.'s own program."""
        return cls(stepsize=0.02, gamma=1.5, gm_scale=0.9, kl_scale=0.01, steer_current=False)
