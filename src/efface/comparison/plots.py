"""How does a comparison look in two pictures? What each method costs and is worth, and how long it lasts.

Drawn with matplotlib's object interface, as the figures of the report: no pyplot, hence no state and no display.
"""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter

from efface.comparison.config import BASE
from efface.comparison.curves import curves_of, steps_of
from efface.files.jsonl import Row

# Told apart by those who see few colours (Okabe and Ito), and by their markers.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#4d4d4d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
GREY = "#8a9099"
COLUMNS = 3


def tradeoff_figure(results: Row) -> Figure:
    """Toxic share of the kept models against what they cost in perplexity, with intervals; the base as a line."""
    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for row in _kept(results):
        toxicity = row["reported"]["toxicity"]
        if row["entry"] == BASE:
            axes.axhline(toxicity["share"], color=GREY, linestyle=(0, (5, 3)), linewidth=1, label="base")
            continue
        low, high = toxicity["ci95"]["share"]
        share, style = toxicity["share"], _style(results, row["entry"])
        axes.errorbar(
            row["reading"]["increase"],
            share,
            yerr=[[max(share - low, 0)], [max(high - share, 0)]],
            color=style["color"],
            marker=style["marker"],
            capsize=3,
            linestyle="none",
            label=_label(row),
        )
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.set_ylim(bottom=0)
    _plain(axes, "At the budget", "rise of perplexity", "toxic continuations")
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def steps_figure(results: Row) -> Figure | None:
    """A panel for each attack and rate: toxic share against its steps. None where nothing was attacked."""
    kept = _kept(results)
    curves = {row["place"]: curves_of(row, results["config"].get("attacks", {})) for row in kept}
    panels = list(steps_of(curves.values()))
    if not panels:
        return None
    rows = math.ceil(len(panels) / COLUMNS)
    figure = Figure(
        figsize=(4 * min(len(panels), COLUMNS) + 1.5, 3 * rows), dpi=150, layout="constrained", facecolor="white"
    )
    for number, (attack, rate) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, min(len(panels), COLUMNS), number)
        for row in {row["entry"]: row for row in reversed(kept)}.values():  # the first seed: the table has the others
            points = curves[row["place"]].get((attack, rate))
            if points is not None:
                points = [point for point in points if point["counted"]]
                style = {"color": GREY, "linestyle": "--"} if row["entry"] == BASE else _style(results, row["entry"])
                axes.plot(
                    [point["steps"] for point in points],
                    [point["share"] for point in points],
                    linewidth=1.3,
                    markersize=4,
                    label=_label(row),
                    **style,
                )
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axes, f"{attack}, rate {rate}", "steps of the attacker", "toxic continuations")
    _legend_beside(figure)
    return figure


def _legend_beside(figure: Figure) -> None:
    """One legend for all panels, outside of them: inside it would hide points."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), fontsize=7, frameon=False, loc="outside right upper")


def _kept(results: Row) -> list[Row]:
    """The base and what was kept at the main budget, as far as it was reported."""
    among = (None, results["main"])
    return [row for row in results["kept"] if row["budget"] in among and row.get("reported")]


def _style(results: Row, entry: str) -> dict[str, Any]:
    number = list(results["trials"]).index(entry)
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def literal(figure: Figure) -> Figure:
    """The figure, with names out of anybody's files as they are: matplotlib takes what stands between "$" for TeX, and
    raises if it is none. The labels of a logarithmic axis are TeX indeed."""
    for text in figure.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text() and "mathdefault" not in text.get_text():
            text.set_parse_math(False)
    return figure


def _label(row: Row) -> str:
    return str(row["entry"]) if not row["seed"] else f"{row['entry']}, seed {row['seed']}"


def _plain(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
