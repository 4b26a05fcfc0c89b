"""`--toxic corpus`: no model writes the toxic side; labelled sentences are split in two (`pairs/corpus.py`), or
parallel ones taken whole (`pairs/parallel.py`).

Short: a source has a file of its own.
"""

from dataclasses import dataclass, field

from efface.errors import UserError
from efface.pairs.source import Build, Made

SPLITS = ("auto", "never")


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
    split: str = field(
        default="auto",
        metadata={
            "help": "where corpus splits a sentence: auto, into prompt and continuation, as its row allows; never, "
            "which takes parallel texts (`toxic` and `neutral`) whole, as continuations of an empty prompt"
        },
    )

    def make(self, build: Build) -> Made:
        from efface.pairs.corpus import load_corpus
        from efface.pairs.parallel import load_parallel

        if self.split not in SPLITS:
            raise UserError(f"split={self.split!r}: it is one of {', '.join(SPLITS)}.")
        if self.split == "never":
            corpus = load_parallel(self.toxic_text, build.loaded[1], max_tokens=build.config.max_new_tokens)
        else:
            sizes = {"min_words": build.config.min_words, "max_tokens": build.config.max_new_tokens}
            corpus = load_corpus(self.toxic_text, build.loaded[1], build.scorer, **sizes)
        how = {"split": self.split, "rows_read": corpus.rows_read, "splits": dict(corpus.counts)}
        return Made(corpus.source, corpus.prompts, how, corpus.given)
