"""Which figures does a run have? All of `FIGURES` that have something to show, as parts of a page.

What a figure means is said beside it, and that comes from the same numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape

from efface.registry import resolve
from efface.report import FIGURES, Drawing
from efface.report.svg import inline_svg

Logged = Mapping[str, Any]
"""A row of `trainer.state.log_history`."""
FORM = "package.module:function"


@dataclass(frozen=True)
class Findings:
    """What there is to draw of a run."""

    base: Mapping[str, Any]
    """What `efface evaluate` writes of the model before."""
    edited: Mapping[str, Any]
    """And after."""
    history: Sequence[Logged]
    erasure: Mapping[str, Any] = field(default_factory=dict)
    """What `efface.analysis.erasure.compare_erasure` gives; empty where it was not measured."""


@dataclass(frozen=True)
class Drawn:
    """A figure, ready for a page."""

    name: str
    svg: Markup
    caption: Markup
    sentence: Markup
    """What it means; empty where the caption is all."""
    section: str


def draw(findings: Findings, figures: Mapping[str, Drawing] = FIGURES) -> list[Drawn]:
    """Each figure that has something to show."""
    drawn = []
    for name, entry in figures.items():
        figure = resolve("figure", name, figures, FORM)(findings)
        if figure is None:
            continue
        sentence = resolve("sentence", entry.says, {}, FORM)(findings) if entry.says else ""
        drawn.append(
            Drawn(name, inline_svg(figure, name, entry.alt), marked_up(entry.what), marked_up(sentence), entry.section)
        )
    return drawn


def marked_up(text: str) -> Markup:
    """Escaped; what stands between backticks becomes code."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))
