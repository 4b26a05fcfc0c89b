"""`--toxic dexperts`: candidates are what the model says when it is pushed toward its toxic copy.

Short: a source has a file of its own, and the push itself is `pairs/dexperts.py`.
"""

from dataclasses import dataclass, field

from efface.pairs.source import Build, Made
from efface.pairs.sources.antiexpert import AntiexpertSource


@dataclass(frozen=True)
class DExpertsSource(AntiexpertSource):
    """How the copy is made, how far the model is pushed toward it, and how both are sampled from."""

    alpha: float = field(
        default=1.5, metadata={"help": "how far the model is pushed toward the copy (0: the model, 1: the copy)"}
    )

    def make(self, build: Build) -> Made:
        from efface.pairs.dexperts import dexperts_source
        from efface.pairs.toxic_copy import train_copy

        copy, apart, made = train_copy(build, self.toxic_text, self.contexts, **self.training())
        model, tokenizer = build.loaded
        how = {**self.decoding(), **build.sizes(), "trained_on": apart.texts}
        source = dexperts_source(model, copy, tokenizer, alpha=self.alpha, **how)
        return Made(source, apart.prompts, {"decoding": self.decoding(), "antiexpert": made, "alpha": self.alpha})
