"""How long does each method last, in one picture? `docs/comparison.png`, drawn from the rows of `comparison.json`.

    python scripts/comparison_figure.py

Left an attacker with pairs of the training pairs' make, right one with sentences of another source, both at 1e-4.
Lines are means of an entry's seeds, shades their range. What was drawn is written into the picture, so that a stale
one fails a test.
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from sweep_tables import Figures

from efface.comparison.plots import COLOURS, GREY, MARKERS
from efface.files.digests import digest

PICTURE = Path(__file__).parent.parent / "docs" / "comparison.png"
PANELS = {
    "pairs 0.0001": "fine-tuned on held-out pairs, 1e-4",
    "paradetox 0.0001": "fine-tuned on ParaDetox, 1e-4",
}
PLAIN = ["dpo", "circuit_breakers", "rmu", "npo", "repnoise", "repo"]
LASTING = ["dpo-withstand", "npo-withstand", "repo-rows", "repo-withstand"]
KEY = "Source"
"""Under which the picture says what it was drawn from."""
LAST = 20
"""Steps; further than this only the best were attacked."""


Line = list[tuple[int, float, float, float]]
"""Steps; mean, lowest and highest share of the seeds."""


def points() -> dict[str, dict[str, Line]]:
    """Panel -> what the legend says -> its line. A point at which a seed costs too much perplexity to count is left
    out."""
    figures = Figures("comparison.json")
    labels = {name: _label(figures, name) for name in ("base", *PLAIN, *LASTING)}
    return {curve: {label: _line(figures, name, curve) for name, label in labels.items()} for curve in PANELS}


def _line(figures: Figures, name: str, curve: str) -> Line:
    seeds = [model for model in figures.models if model[0] == name]
    line = []
    for step in (0, 5, 10, LAST):
        shares = [share for model in seeds if (share := figures.get(model, f"{curve}/share at {step}")) is not None]
        if seeds and len(shares) == len(seeds):
            line.append((step, sum(shares) / len(shares), min(shares), max(shares)))
    return line


def drawn(panels: dict[str, dict[str, Line]]) -> Figure:
    figure = Figure(figsize=(9.5, 3.6), dpi=130, layout="constrained", facecolor="white")
    for axes, (curve, lines) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        for label, line in lines.items():
            if line:
                steps, means, lows, highs = zip(*line, strict=True)
                (drawn_line,) = axes.plot(steps, means, label=label, **_style(label.partition(",")[0]))
                axes.fill_between(steps, lows, highs, color=drawn_line.get_color(), alpha=0.15, linewidth=0)
        axes.set(title=PANELS[curve], xlabel="steps of the attacker", ylim=(0, 1))
        axes.title.set_fontsize(10)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xticks([0, 5, 10, 15, 20])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
        axes.tick_params(labelsize=8)
    figure.axes[0].set_ylabel("toxic continuations", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside right center")
    return figure


def _label(figures: Figures, name: str) -> str:
    seeds = sum(model[0] == name for model in figures.models)
    return f"{name}, {seeds} seed{'s' * (seeds > 1)}" if name in LASTING else name


def _style(name: str) -> dict[str, Any]:
    """The base grey, the plain methods thin and dashed, what was trained with an attacker in the loop thick."""
    if name == "base":
        return {"color": GREY, "linewidth": 2.5}
    group, strong = (LASTING, True) if name in LASTING else (PLAIN, False)
    number = group.index(name)
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    line = {"linewidth": 2.2} if strong else {"linewidth": 1.0, "linestyle": "--", "alpha": 0.8}
    return {"color": colour, "marker": marker, "markersize": 5, **line}


def is_current() -> bool:
    """Whether the picture shows what the rows say."""
    return PICTURE.exists() and Image.open(PICTURE).info.get(KEY) == _drawn_from(points())


def draw() -> None:
    panels = points()
    drawn(panels).savefig(PICTURE, metadata={KEY: _drawn_from(panels)})


def _drawn_from(panels: dict[str, dict[str, Line]]) -> str:
    return digest(json.loads(json.dumps(panels)))


if __name__ == "__main__":
    draw()
    print(f"written: {PICTURE}")
