"""How toxic and how fluent is a source before anything is filtered, beside plain samples of the untouched model?

Filters can turn any source into a fine-looking file; these figures say how hard they had to work. Of each prompt the
first candidate counts, whatever its score, and one nucleus sample (0.9) of the untouched model.
"""

import math
from collections.abc import Sequence
from typing import Any

from efface.scoring.scorer import THRESHOLD

Measured = tuple[float, float, int]
"""A text's score, and -log p under the untouched model, summed over its tokens, and their number."""


def unfiltered_figures(source: Sequence[Measured], samples: Sequence[Measured]) -> dict[str, Any] | None:
    """The figures of both, and their ratios; None without any text (the comparison was switched off).

    `toxic` of `texts` score above 0.5, `share` is their quotient; `perplexity` is exp(mean -log p over all tokens).
    A ratio is None where the samples' figure is zero.
    """
    if not source or not samples:
        return None
    ours, theirs = _figures(source), _figures(samples)
    return {
        "source": ours,
        "samples": theirs,
        "toxic_share_ratio": ours["share"] / theirs["share"] if theirs["share"] else None,
        "perplexity_ratio": ours["perplexity"] / theirs["perplexity"],
    }


def _figures(measured: Sequence[Measured]) -> dict[str, Any]:
    toxic = sum(score > THRESHOLD for score, _, _ in measured)
    loss, tokens = sum(nll for _, nll, _ in measured), sum(count for _, _, count in measured)
    return {
        "texts": len(measured),
        "toxic": toxic,
        "share": toxic / len(measured),
        # Cut off at e^700, which is still a finite number.
        "perplexity": math.exp(min(loss / max(tokens, 1), 700.0)),
    }


def describe(figures: dict[str, Any] | None) -> list[str]:
    """The figures in words, a line each."""
    if figures is None:
        return []
    lines = ["before filtering:"]
    for name, what in (("source", "candidates (the first of each prompt)"), ("samples", "plain samples of the model")):
        of = figures[name]
        lines.append(
            f"  {of['toxic']:6d} of {of['texts']} {what} are toxic ({of['share']:.1%}), "
            f"perplexity {of['perplexity']:.1f}"
        )
    share = figures["toxic_share_ratio"]
    times = "no plain sample is toxic" if share is None else f"{share:.1f} times the toxic share"
    return [*lines, f"  {times}, {figures['perplexity_ratio']:.2f} times the perplexity of plain samples"]
