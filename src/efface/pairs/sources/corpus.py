"""`--toxic corpus`: no model writes the toxic side; labelled sentences are split in two (`pairs/corpus.py`).

Short: a source has a file of its own.
"""

from dataclasses import dataclass, field

from efface.pairs.source import Build, Made


@dataclass(frozen=True)
class CorpusSource:
    """What is split; how short and how long its parts may be are settings of the build."""

    toxic_text: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "what corpus splits, which may also be parallel texts, `toxic` and `neutral`",
            "needed": "labelled or parallel texts to split",
        },
    )

    def make(self, build: Build) -> Made:
        from efface.pairs.corpus import load_corpus

        sizes = {"min_words": build.config.min_words, "max_tokens": build.config.max_new_tokens}
        corpus = load_corpus(self.toxic_text, build.loaded[1], build.scorer, **sizes)
        return Made(corpus.source, corpus.prompts, {"splits": dict(corpus.counts)}, corpus.given)
