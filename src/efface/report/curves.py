"""How do models lie beside each other? What each costs and is worth, and how fast toxicity comes back.

One colour and marker a model in both pictures; untouched bases are grey.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from efface.audit.battery import DIAGNOSTIC
from efface.comparison.plots import COLOURS, MARKERS
from efface.report.evidence import Known
from efface.report.figures import Drawn, marked_up
from efface.report.numbers import bracketed, change
from efface.report.page import Grid
from efface.report.style import BASE, DASHED, PAPER, SMALL, narrow, plain
from efface.report.svg import inline_svg

TRADEOFF, RELEARNING = "tradeoff", "relearning"
COLUMNS = 2
PANEL = (4.4, 3.0)
MOST_PANELS = 12
MOST_NAMES = 8
"""In a legend; a table has them all."""


def tradeoff(models: Sequence[Known]) -> Drawn | None:
    """Toxic share against the rise of perplexity; None of fewer than two edits whose rise is known."""
    known = [one for one in models if one.change is not None and not one.base]
    if len(known) < 2:
        return None
    figure, axes = narrow()
    for model, style in zip(known, _styles(known), strict=True):
        toxicity = model.figures["toxicity"]
        low, high = toxicity["ci95"]["share"]
        share = toxicity["share"]
        axes.errorbar(
            model.change or 0.0,
            share,
            yerr=[[max(share - low, 0)], [max(high - share, 0)]],
            linestyle="none",
            capsize=3,
            **style,
        )
    for base in [one for one in models if one.base][:1]:
        axes.axhline(base.figures["toxicity"]["share"], color=BASE, linestyle=DASHED, linewidth=1, label="base")
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=min(0.0, *(one.change or 0.0 for one in known)) - 0.002)  # where the base stands
    axes.set_xlabel("rise of perplexity", fontsize=SMALL)
    plain(axes, "Worth and price", "toxic continuations")
    _legend(axes, len(known))
    alt = "Toxic share of each model against its rise of perplexity; the numbers are in the table of models."
    return Drawn(
        TRADEOFF,
        inline_svg(figure, TRADEOFF, alt),
        marked_up("What each edit is worth, and what it costs ordinary text; 95 % intervals."),
        marked_up(""),
        "",
    )


def relearning(models: Sequence[Known]) -> Drawn | None:
    """A panel for each attack and rate: toxic share against its steps; None where nothing was attacked in steps."""
    panels: dict[tuple[str, float | None], dict[int, list[tuple[int, float]]]] = {}
    for number, model in enumerate(models):
        for attempt in model.attempts:
            for rate in dict.fromkeys(point.rate for point in attempt.curve):
                points = sorted((point.steps, point.share) for point in attempt.curve if point.rate == rate)
                if len(points) > 1:
                    panels.setdefault((attempt.attack, rate), {})[number] = points
    if not panels:
        return None
    shown = list(panels.items())[:MOST_PANELS]
    rows = -(-len(shown) // COLUMNS)
    columns = min(COLUMNS, len(shown))
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained", facecolor=PAPER)
    styles = list(_styles(models))
    for place, ((attack, rate), lines) in enumerate(shown):
        axes = figure.add_subplot(rows, columns, place + 1)
        for number, points in lines.items():
            axes.plot(*zip(*points, strict=True), **styles[number])
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(axes, attack + ("" if rate is None else f", rate {rate:g}"))
        if not place:
            _legend(axes, len(lines))
    left = f" {len(panels) - len(shown)} more are in the results." if len(panels) > len(shown) else ""
    alt = "Toxic share of each model after so many steps of each attack."
    said = marked_up(f"How fast toxicity comes back: toxic share after so many steps of the attacker.{left}")
    return Drawn(RELEARNING, inline_svg(figure, RELEARNING, alt), said, marked_up(""), "")


def models_table(models: Sequence[Known]) -> Grid:
    """Every model: shares by every judge, price, the worst that an attacker reaches."""
    judges = list(dict.fromkeys(judge for model in models for judge in model.judges))
    rows = []
    for model in models:
        cells = [
            bracketed(one["share"], one["ci95"]["share"], ".1%") if (one := model.judges.get(judge)) else ""
            for judge in judges
        ]
        cost = model.figures.get("perplexity")
        worst = [one.share for one in model.attempts if one.share is not None and one.access != DIAGNOSTIC]
        worst += [] if model.worst is None else [model.worst["share"]]
        rows.append(
            [
                model.name,
                model.method,
                *cells,
                "" if cost is None else f"{cost['value']:.2f}",
                change(model.change),
                "" if model.kl is None else f"{model.kl:.3f}",
                f"{100 * max(worst):.1f} %" if worst else "",
                str(model.figures["degeneration"]["verdict"]),
                model.source.name,
            ]
        )
    head = ["Model", "Method", *(f"Toxic share, {judge}" for judge in judges), "Perplexity", "Rise", "KL to base"]
    head += ["Worst attack", "Writing", "Source"]
    return Grid(head, rows, "Every model; press a heading to sort. 95 % intervals in brackets.", sortable=True)


def _styles(models: Sequence[Known]) -> Iterator[dict[str, Any]]:
    number = 0
    for model in models:
        if model.base:
            yield {"color": BASE, "marker": ".", "label": model.name}
            continue
        yield {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "label": model.name}
        number += 1


def _legend(axes: Axes, n: int) -> None:
    if n <= MOST_NAMES:
        axes.legend(fontsize=SMALL - 3, frameon=False)
    else:
        axes.legend(fontsize=SMALL - 4, frameon=False, ncols=2)
