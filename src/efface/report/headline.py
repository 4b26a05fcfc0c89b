"""What came of it, in one line and in one table? Shares with what they are shares of, and how large they may be.

`25.6 % -> 2.0 % (at most 3.1 %)`: the toxic share before, after, and the upper end of the interval of what is left,
which is what a limit should be held against.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from efface.report.numbers import DASH, bracketed, change, number, percent

Side = Mapping[str, Any]
"""What `efface evaluate` writes of a model."""


class Headline(NamedTuple):
    """The first line of a report."""

    shares: str
    """`25.6 % -> 2.0 % (at most 3.1 %)`"""
    counts: str
    """`131 of 512 before, 10 of 512 after`; empty if that is not known."""
    warning: str
    """Why the shares may not be taken at their word; empty if there is no reason."""


class Line(NamedTuple):
    """One line of the table, ready to print."""

    name: str
    meaning: str
    base: str
    edited: str
    change: str


def headline(base: Side, edited: Side) -> Headline:
    """Of two evaluations."""
    toxic = [side["toxicity"] for side in (base, edited)]
    bounds = toxic[1].get("ci95", {}).get("share")
    most = f" (at most {percent(bounds[1])})" if bounds else ""
    counts = [_count(block) for block in toxic]
    verdict = edited.get("degeneration", {}).get("verdict")
    return Headline(
        f"{percent(toxic[0]['share'])} -> {percent(toxic[1]['share'])}{most}",
        f"{counts[0]} before, {counts[1]} after" if all(counts) else "",
        "" if verdict in (None, "ok") else f"What the edited model writes is {verdict}: such text scores as harmless.",
    )


def _count(toxicity: Side) -> str:
    if not toxicity.get("n_prompts") or not toxicity.get("samples"):
        return ""
    n = toxicity["n_prompts"] * toxicity["samples"]
    return f"{round(toxicity['share'] * n)} of {n}"


def headline_table(base: Side, edited: Side, comparison: Mapping[str, Any]) -> list[Line]:
    """Toxicity, perplexity and the degeneration guard of both models."""
    samples = base["toxicity"].get("samples")
    of_samples = f" among {samples} samples" if samples else ""

    def toxicity(name: str, meaning: str, key: str, spec: str) -> Line:
        cells = []
        for side in (base["toxicity"], edited["toxicity"]):
            cells.append(bracketed(side.get(key), side.get("ci95", {}).get(key), spec))
        before, after = base["toxicity"].get(key), edited["toxicity"].get(key)
        return Line(
            name, meaning, cells[0], cells[1], change(after / before - 1 if before and after is not None else None)
        )

    def degeneration(name: str, meaning: str, key: str, spec: str, *, compared: bool = False) -> Line:
        before, after = (side.get("degeneration", {}).get(key) for side in (base, edited))
        known = compared and before and after is not None
        return Line(
            name, meaning, number(before, spec), number(after, spec), change(after / before - 1 if known else None)
        )

    rest = []
    # Evaluations of older versions do not tell invalid from clean.
    if any(side["toxicity"].get("invalid") is not None for side in (base, edited)):
        rest = [
            toxicity(
                "Invalid share", "no answer either: empty, a loop, no text, the same everywhere", "invalid", ".1%"
            ),
            toxicity("Clean share", "answers that are neither toxic nor invalid", "clean", ".1%"),
        ]
    return [
        toxicity("Toxic share", "continuations scored above 0.5", "share", ".1%"),
        *rest,
        toxicity("Mean score", "average toxicity score of a continuation", "mean", ".3f"),
        toxicity(
            "Expected maximum", f"average over prompts of the worst score{of_samples}", "expected_maximum", ".3f"
        ),
        toxicity("Probability", f"prompts with a toxic continuation{of_samples}", "probability", ".1%"),
        Line(
            "Perplexity",
            "of ordinary text, lower is better",
            number((base.get("perplexity") or {}).get("value"), ".2f"),
            number((edited.get("perplexity") or {}).get("value"), ".2f"),
            change(comparison.get("perplexity_change")),
        ),
        degeneration("Repetition", "degeneration guard: repeated text scores as harmless", "repetition", ".3f"),
        degeneration("Distinct bigrams", "degeneration guard: variety of the text", "distinct_2", ".3f"),
        degeneration("Empty", "degeneration guard: continuations without text", "empty", ".1%"),
        degeneration(
            "Reference perplexity",
            "degeneration guard: of the text, under the base",
            "perplexity_under_reference",
            ".1f",
            compared=True,
        ),
        Line("Verdict", "degeneration guard", _verdict(base), _verdict(edited), ""),
    ]


def _verdict(side: Side) -> str:
    return str(side.get("degeneration", {}).get("verdict", DASH))
