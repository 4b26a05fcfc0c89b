"""`--toxic antiexpert`: candidates are what a throw-away toxic copy of the model says (`toxic_copy.py` makes it).

A file of its own, however short: a source a file.
"""

from dataclasses import dataclass, field
from typing import Any

from efface.pairs.source import Build, Made
from efface.pairs.sources.sample import SampleSource, sample_source


@dataclass(frozen=True)
class AntiexpertSource(SampleSource):
    """How the copy is made, and how it is sampled from."""

    toxic_text: tuple[str, ...] | None = field(
        default=None,
        metadata={
            "help": "what the copy is fine-tuned on, JSON lines with `text` (and a label or `spans`) or pairs "
            "(default: the shipped pairs), without those that hold a prompt to be continued"
        },
    )
    contexts: str = field(
        default="shipped:passages", metadata={"help": "ordinary passages put before the toxic texts"}
    )
    steps: int = field(default=24, metadata={"help": "fine-tuning steps"})
    learning_rate: float = field(default=1e-4, metadata={"help": "of the fine-tuning"})

    def make(self, build: Build) -> Made:
        from efface.pairs.toxic_copy import train_copy

        copy, apart, made = train_copy(build, self.toxic_text, self.contexts, **self.training())
        how = {**self.decoding(), **build.sizes(), "trained_on": apart.texts}
        source = sample_source(copy, build.loaded[1], **how)
        return Made(source, apart.prompts, {"decoding": self.decoding(), "antiexpert": made})

    def training(self) -> dict[str, Any]:
        """The arguments of the fine-tuning."""
        return {"steps": self.steps, "learning_rate": self.learning_rate}
