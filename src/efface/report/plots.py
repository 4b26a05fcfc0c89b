"""What does a training run look like in one picture? Toxicity, perplexity and the training of the adversary.

Drawn with matplotlib's object interface: no pyplot, hence no global state and no display.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from efface.report.figures import Findings, Logged

GREY, BLUE, ORANGE, GREEN = "#8a9099", "#0072b2", "#c8500a", "#00805f"
INK = "#2b2f36"
DASHES = ("-", "--", ":", "-.")
BCE = "adversary/bce/"


def training_figure(findings: Findings) -> Figure:
    """Three panels: toxic share and perplexity of both models, and the course of training.

    A training panel whose numbers are missing says so instead of failing: a baseline, for one, has no adversary.
    """
    figure = Figure(figsize=(11, 3.8), dpi=150, layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 3, width_ratios=[1, 1, 1.9], height_ratios=[1.7, 1])
    _share_panel(figure.add_subplot(grid[:, 0]), findings.base, findings.edited)
    _perplexity_panel(figure.add_subplot(grid[:, 1]), findings.base, findings.edited)
    upper = figure.add_subplot(grid[0, 2])
    lower = figure.add_subplot(grid[1, 2], sharex=upper)
    _training_panels(upper, lower, findings.history)
    return figure


def series(history: Sequence[Logged], key: str) -> tuple[list[float], list[float]]:
    """The steps and values of the rows that hold a finite number under `key`."""
    pairs = [(row["step"], row[key]) for row in history if "step" in row and _is_number(row.get(key))]
    return [float(step) for step, _ in pairs], [float(value) for _, value in pairs]


def keys_starting(history: Sequence[Logged], prefix: str) -> list[str]:
    """The keys with `prefix` that occur in `history`, by layer number: bce/8 before bce/16."""
    keys = {key for row in history for key in row if key.startswith(prefix)}
    return sorted(keys, key=lambda key: (len(key), key))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _share_panel(axes: Axes, base: Mapping[str, Any], edited: Mapping[str, Any]) -> None:
    shares = [float(side["toxicity"]["share"]) for side in (base, edited)]
    bounds = [side["toxicity"].get("ci95", {}).get("share") for side in (base, edited)]
    # An interval need not contain the estimate of a bootstrap's tail; matplotlib refuses negative lengths.
    below = [max(share - bound[0], 0.0) if bound else 0.0 for share, bound in zip(shares, bounds, strict=True)]
    above = [max(bound[1] - share, 0.0) if bound else 0.0 for share, bound in zip(shares, bounds, strict=True)]
    top = max(share + length for share, length in zip(shares, above, strict=True)) or 0.01
    title = "Toxic continuations\n(share, 95 % interval)" if any(bounds) else "Toxic continuations\n(share)"
    _bars(axes, shares, title, [f"{share:.1%}" for share in shares], top, above)
    if any(bounds):
        axes.errorbar([0, 1], shares, yerr=[below, above], fmt="none", ecolor=INK, elinewidth=1.4, capsize=5)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0 if top > 0.05 else 1))
    # What is not toxic need not be an answer.
    names = ("base", "edited")
    axes.set_xticks(
        [0, 1], [_with_rest(*both) for both in zip(names, (base["toxicity"], edited["toxicity"]), strict=True)]
    )


def _with_rest(name: str, toxicity: Mapping[str, Any]) -> str:
    invalid, clean = toxicity.get("invalid"), toxicity.get("clean")
    if invalid is None or clean is None:  # evaluated by an older version
        return name
    return f"{name}\ninvalid {invalid:.1%}\nclean {clean:.1%}"


def _perplexity_panel(axes: Axes, base: Mapping[str, Any], edited: Mapping[str, Any]) -> None:
    values = [float(side["perplexity"]["value"]) for side in (base, edited)]
    labels = [f"{value:.1f}" for value in values]
    _bars(axes, values, "Perplexity of ordinary text\n(lower is better)", labels, max(values), [0.0, 0.0])


def _bars(axes: Axes, heights: list[float], title: str, labels: list[str], top: float, lifts: list[float]) -> None:
    axes.bar([0, 1], heights, width=0.62, color=[GREY, BLUE])
    for x, (height, label, lift) in enumerate(zip(heights, labels, lifts, strict=True)):
        axes.text(x, height + lift + 0.025 * top, label, ha="center", va="bottom", fontsize=10, color=INK)
    axes.set_xticks([0, 1], ["base", "edited"])
    axes.set_xlim(-0.6, 1.6)
    axes.set_ylim(0, 1.17 * top)
    axes.set_title(title, fontsize=10, color=INK)
    _plain(axes)


def _training_panels(upper: Axes, lower: Axes, history: Sequence[Logged]) -> None:
    keys = [key for key in keys_starting(history, BCE) if series(history, key)[0]]
    for i, key in enumerate(keys):
        label = f"layer {key.removeprefix(BCE)}"
        upper.plot(*series(history, key), DASHES[i % len(DASHES)], color=ORANGE, linewidth=1.5, label=label)
    if keys:
        upper.axhline(math.log(2), linestyle=(0, (5, 3)), color=INK, linewidth=1, label="ln 2: cannot tell them apart")
        upper.legend(fontsize=8, frameon=False, ncols=2 if len(keys) < 3 else 3, loc="lower right")
        low, high = upper.get_ylim()
        upper.set_ylim(min(low, 0.45) - 0.15, max(high, 0.8))
        _plain(upper, "Adversary's BCE", "BCE (nats)")
    else:
        _line_or_note(upper, history, ["loss"], "Training loss", "loss", ORANGE)
    _line_or_note(lower, history, ["retain_loss"], "Drift on benign text", "KL (nats)", GREEN)
    lower.set_xlabel("step", fontsize=9)
    upper.tick_params(labelbottom=False)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))


def _line_or_note(axes: Axes, history: Sequence[Logged], keys: list[str], title: str, label: str, color: str) -> None:
    """Plot the first of `keys` that was logged, or write that none was."""
    found = next((key for key in keys if series(history, key)[0]), None)
    if found is None:
        axes.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axes.transAxes, color=GREY)
    else:
        axes.plot(*series(history, found), color=color, linewidth=1.5)
        axes.set_ylim(bottom=0)
    _plain(axes, title, label)


def _plain(axes: Axes, title: str | None = None, label: str | None = None) -> None:
    if title is not None:
        axes.set_title(title, fontsize=10, color=INK)
    if label is not None:
        axes.set_ylabel(label, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)
