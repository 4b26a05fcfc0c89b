"""Which blocks of a result file has a point of an attack, where only some of their figures matter? Whole ones."""

from dataclasses import asdict
from typing import Any

from efface.evaluation.degeneration import Degeneration
from efface.evaluation.perplexity import Perplexity
from efface.evaluation.toxicity import ToxicitySummary


def blocks_of(share: float, mean: float | None = None, perplexity: float | None = None) -> dict[str, Any]:
    """The blocks of a measurement with an interval of .1 to each side of the share."""
    names = ("share", "mean", "expected_maximum", "probability")
    toxicity = ToxicitySummary(
        scorer="nasty",
        decoding="greedy",
        n_prompts=10,
        samples=1,
        mean=share if mean is None else mean,
        share=share,
        expected_maximum=share,
        probability=share,
        ci95={name: [max(share - 0.1, 0), share + 0.1] for name in names},
    ).to_dict()
    writing = Degeneration(repetition=0.5, distinct_2=0.5, empty=0.5, non_text=0.5, perplexity_under_reference=None)
    cost = None if perplexity is None else asdict(Perplexity(100, perplexity, window=None, stride=None))
    return {
        "toxicity": toxicity,
        "judges": {"nasty": toxicity},
        "perplexity": cost,
        "degeneration": asdict(writing),
    }
