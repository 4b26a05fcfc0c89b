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

from dataclasses import asdict, dataclass, field
from typing import Any

from efface.checks import all_finite, one_of
from efface.data.tokens import Truncation
from efface.errors import UserError

BFLOAT16 = "bfloat16"
OWN, VLLM = "efface", "vllm"

PROTOCOLS: dict[str, dict[str, Any]] = {
    "lee": {"samples": 1, "max_new_tokens": 20, "max_prompt_tokens": 32, "truncation": "first"},
    "gehman": {"samples": 25, "do_sample": True, "max_new_tokens": 20, "top_p": 0.9, "temperature": 1.0},
}


@dataclass(frozen=True)
class Decoding:
    """What decides which text is written after a prompt: greedy for one sample, nucleus sampling for several."""

    samples: int = 1
    """Continuations of each prompt."""
    do_sample: bool | None = None
    """Whether tokens are drawn, rather than the likeliest taken; None means `samples > 1`."""
    max_new_tokens: int = 20
    top_p: float = 0.9
    """Of the nucleus: the smallest set of the likeliest tokens with so much probability; 1 leaves it out."""
    temperature: float = 1.0
    max_prompt_tokens: int | None = None
    """A longer prompt is cut to so many tokens, with the BOS before them; None keeps all, and a prompt that leaves no
    room for `max_new_tokens` is an error. With `chat`, it is the message that is cut."""
    truncation: Truncation = "last"
    """Whether the "last" or the "first" tokens of a prompt that is cut are kept."""
    chat: bool = False
    """The prompt is a user's message in the tokenizer's chat template; the answer is what is written."""
    seed: int = 0
    """Of the draws. The global random state is neither used nor changed."""
    top_k: int = 0
    """Only so many of the likeliest tokens are drawn from; 0 for no such limit."""
    without: tuple[int, ...] = ()
    """Ids of tokens that are never written."""
    dtype: str | None = None
    """"bfloat16": the weights of a model in float32 are rounded to it while text is written (`model.precision`), as
    most models are deployed, and as is twice as fast where the machine has it. None: the model is read as it is."""
    generator: str = OWN
    """Who writes: "efface", its own decoder, or "vllm", which reads checkpoints and no models in memory
    (`generation.vllm`). Sampled text of the two is drawn with other random numbers."""
    protocol: str | None = field(default=None, compare=False)
    """Which defaults these were made from, for the record."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "without", tuple(self.without))
        if self.dtype not in (None, BFLOAT16):
            raise UserError(f"dtype={self.dtype!r}: text is written in {BFLOAT16!r}, or None for the model as it is.")
        one_of("generator", self.generator, (OWN, VLLM))
        all_finite(self)  # before the model is loaded; the ranges are checked where it is decoded

    @classmethod
    def by_protocol(cls, protocol: str | None = None, **explicit: Any) -> "Decoding":
        """The settings of `protocol` (None: the defaults), overridden by those of `explicit` that are not None.

        Raises:
            UserError: if there is no such protocol.
        """
        if protocol is not None and protocol not in PROTOCOLS:
            raise UserError(f"protocol {protocol!r} is unknown. There are: {', '.join(PROTOCOLS)}.")
        named = PROTOCOLS[protocol] if protocol is not None else {}
        given = {name: value for name, value in explicit.items() if value is not None}
        return cls(**{**named, **given, "protocol": protocol})

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn, rather than the likeliest taken."""
        return self.samples > 1 if self.do_sample is None else self.do_sample

    def to_dict(self) -> dict[str, Any]:
        """As it is recorded, None for what has no effect: where two are equal, the same is decoded."""
        unused = [] if self.sampled else ["top_p", "temperature", "seed"]
        unused += [] if self.max_prompt_tokens is not None else ["truncation"]
        recorded = asdict(self) | {"do_sample": self.sampled, "without": list(self.without)} | dict.fromkeys(unused)
        del recorded["protocol"]
        # These are there only where they have an effect: records are compared with those of before they were settings.
        if not (self.sampled and self.top_k):
            del recorded["top_k"]
        if not self.without:
            del recorded["without"]
        if self.dtype is None:
            del recorded["dtype"]
        if self.generator == OWN:
            del recorded["generator"]
        return recorded

    def __str__(self) -> str:
        how = f"nucleus(top_p={self.top_p}, temperature={self.temperature})" if self.sampled else "greedy"
        return how if self.generator == OWN else f"{how}, by {self.generator}"
