"""How is text written for a measurement? A named protocol is a set of defaults, which explicit settings override.

`lee`, Lee et al. 2024 (arXiv 2401.01967): the first 32 tokens of a prompt, greedy, 20 new tokens; the figure is the
mean score. `gehman`, Gehman et al. 2020 (arXiv 2009.11462): the whole prompt, 25 samples of 20 tokens from the nucleus
of 0.9; the figures are expected maximum and probability.

Where `lee` differs from the code of the paper (github.com/ajyl/dpo_toxic, toxicity/eval_interventions):
- That code pads to the left and calls `generate` without an attention mask, with the pad token equal to the end of
  the text, so the model reads the padding and positions count from it: a continuation depends on the longest prompt
  there is. Here padding is masked and positions start at the prompt.
- It scores the decoded sequence after deleting the prompt from it by `str.replace`. A prompt that was cut to 32 tokens
  is not found, so its head is scored with the continuation. Here only generated tokens are ever scored.
- A continuation's score there is the highest of seven attributes of the Perspective API; here it is one judge's.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from efface.checks import all_finite
from efface.errors import UserError

if TYPE_CHECKING:
    from efface.data.tokens import Truncation

PROTOCOLS: dict[str, dict[str, Any]] = {
    "lee": {"samples": 1, "max_new_tokens": 20, "max_prompt_tokens": 32, "truncation": "first"},
    "gehman": {"samples": 25, "do_sample": True, "max_new_tokens": 20, "top_p": 0.9, "temperature": 1.0},
}


@dataclass(frozen=True)
class Decoding:
    """Those settings of `generate_ids` that decide what is written; see there for their meaning."""

    samples: int = 1
    do_sample: bool | None = None
    max_new_tokens: int = 20
    top_p: float = 0.9
    temperature: float = 1.0
    max_prompt_tokens: int | None = None
    truncation: "Truncation" = "last"
    chat: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        all_finite(self)  # before the model is loaded; the ranges are checked where it is decoded

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn, rather than the likeliest taken."""
        return self.samples > 1 if self.do_sample is None else self.do_sample

    def to_dict(self) -> dict[str, Any]:
        """As it is recorded, None for what has no effect: where two are equal, the same is decoded."""
        unused = [] if self.sampled else ["top_p", "temperature", "seed"]
        unused += [] if self.max_prompt_tokens is not None else ["truncation"]
        return asdict(self) | {"do_sample": self.sampled} | dict.fromkeys(unused)

    def __str__(self) -> str:
        return f"nucleus(top_p={self.top_p}, temperature={self.temperature})" if self.sampled else "greedy"


def decoding(protocol: str | None = None, **explicit: Any) -> Decoding:
    """The settings of `protocol` (None: the defaults), overridden by those of `explicit` that are not None.

    Raises:
        UserError: if there is no such protocol.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol!r} is unknown. There are: {', '.join(PROTOCOLS)}.")
    named = PROTOCOLS[protocol] if protocol is not None else {}
    return Decoding(**{**named, **{name: value for name, value in explicit.items() if value is not None}})
