"""What does a build of pairs keep, and how is it drawn? And what is a source of candidates?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Source = Callable[[Sequence[str], int], list[list[str]]]
"""(prompts, seed) -> the candidate continuations of each prompt."""


@dataclass(frozen=True)
class BuilderConfig:
    """What is kept and how it is drawn."""

    max_new_tokens: int = 20
    min_toxic_score: float = 0.5
    """A `rejected` continuation scores at least this."""
    max_benign_score: float = 0.3
    """A `chosen` continuation scores at most this."""
    max_perplexity_ratio: float = 3.0
    """Perplexity of `rejected` under the untouched model, relative to that of `chosen`: toxic *and fluent*."""
    min_words: int = 4
    """Of either continuation."""
    max_words: int | None = None
    """Of either continuation; None sets no limit."""
    near_duplicate: float | None = 0.7
    """From this similarity (see `NearDuplicates`) of prompt + rejected to an earlier pair on, a pair is dropped; None
    keeps all."""
    one_line: bool = True
    """Neither side has a newline: the model does not write any, and what still has one is cut before it. On one side
    alone it would tell the sides apart without a word being read, and greedy text has many more than toxic text."""
    compare_with_samples: bool = True
    """Measure source and plain samples before filtering. For each prompt this costs one more sequence (beside the
    greedy one and, say, 4 candidates) and two likelihoods, which is little beside the passes of PPLM."""
    batch_prompts: int = 32
    """Prompts between two saves; also what one interruption can lose."""
    batch_size: int = 64
    seed: int = 0
