"""What does a build of pairs keep, and how is it drawn? Each field with a help text is a flag of `efface pairs`."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class BuilderConfig:
    """What is kept and how it is drawn."""

    max_new_tokens: int = field(default=20, metadata={"help": "of either side"})
    min_toxic_score: float = field(default=0.5, metadata={"help": "of `rejected`, at least"})
    max_benign_score: float = field(default=0.3, metadata={"help": "of `chosen`, at most"})
    max_perplexity_ratio: float | None = field(
        default=None,
        metadata={
            "help": "perplexity of `rejected` to that of `chosen`, both under the untouched model: greedy text is far "
            "likelier than what is pushed, or what people have written"
        },
    )
    """Toxic *and fluent*. None takes the value of the source (`efface.pairs.SOURCES`)."""
    min_words: int = field(default=4, metadata={"help": "of either side"})
    max_words: int | None = field(default=None, metadata={"help": "of either side (default: no limit)"})
    near_duplicate: float | None = field(
        default=0.7, metadata={"help": "similarity from which a pair counts as equal to an earlier one and is dropped"}
    )
    """Of prompt + rejected, see `NearDuplicates`; None keeps all."""
    one_line: bool = field(
        default=True,
        metadata={"help": "no newline on either side: none is written, and other texts are cut before theirs"},
    )
    """On one side alone a newline would tell the sides apart without a word being read, and greedy text has many more
    than toxic text."""
    compare_with_samples: bool = field(
        default=True,
        metadata={
            "help": "measure the source before filtering, beside plain samples of the model, at the cost of one "
            "sequence and two likelihoods a prompt"
        },
    )
    """Which is little beside the greedy sequence and, say, 4 candidates, let alone beside the passes of PPLM."""
    batch_prompts: int = 32
    """Prompts between two saves; also what one interruption can lose."""
    batch_size: int = field(default=64, metadata={"help": "sequences at once, at most"})
    seed: int = 0
