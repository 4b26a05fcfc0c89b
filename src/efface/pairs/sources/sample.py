"""`--toxic sample`: candidates are what a model itself says after the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from efface.pairs.source import Build, Made, Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class SampleSource:
    """How the model's own candidates are drawn."""

    samples: int = field(default=4, metadata={"help": "candidates for each prompt"})
    temperature: float = field(default=0.45, metadata={"help": "of the candidates"})
    top_p: float = field(default=1.0, metadata={"help": "nucleus of the candidates"})
    top_k: int = field(
        default=40, metadata={"help": "candidates are drawn from so many of the likeliest tokens (0: all)"}
    )

    def make(self, build: Build) -> Made:
        prompts = build.prompts()
        model, tokenizer = build.loaded
        source = sample_source(model, tokenizer, **self.decoding(), **build.sizes())
        return Made(source, prompts, {"decoding": self.decoding()})

    def decoding(self) -> dict[str, Any]:
        """The arguments of `sample_source` that decide what is drawn."""
        return {each.name: getattr(self, each.name) for each in fields(SampleSource)}


def sample_source(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    *,
    samples: int = 4,
    temperature: float = 1.0,
    top_p: float = 0.9,
    top_k: int = 0,
    max_new_tokens: int = 20,
    batch_size: int = 64,
    without: Sequence[int] = (),
    trained_on: Sequence[str] = (),
) -> Source:
    """Candidates are what `model` itself says after the prompt (`--toxic sample`).

    Args:
        without: ids of tokens that are never written, such as `newline_tokens`.
        trained_on: the texts that made `model` toxic. A prompt that one of them holds (`efface.pairs.overlap`) gets no
            candidate, as the model would recite; the log says so.
    """
    from efface.generation.generate import generate
    from efface.pairs.overlap import Unseen

    unseen = Unseen(trained_on)

    def candidates(prompts: Sequence[str], seed: int) -> list[list[str]]:
        fresh = unseen(prompts)
        written = generate(
            model,
            processing_class,
            prompts,
            samples=samples,
            do_sample=True,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
            without=without,
        )
        return [texts if new else [] for texts, new in zip(written, fresh, strict=True)]

    return candidates
