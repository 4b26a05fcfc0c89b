"""How did the training go? The adversary's accuracy, what was kept small, and some rows of the log.

An adversary that is trained along is no probe: it was judged while the model moved, on what it was trained on. What
its accuracy means is said by the numbers themselves, whichever way they went.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from efface.report.figures import Findings, Logged
from efface.report.numbers import number
from efface.report.style import DASHED, DASHES, GREEN, GREY, INK, ORANGE, SMALL, narrow, plain

ROWS = 12
KEYS = ("loss", "retain_loss", "retain_text_loss", "erase_loss", "npo_loss")
ACCURACY = "adversary/balanced_accuracy/"
PREFIXES = ("adversary/bce/", "adversary/distance/", ACCURACY, "norm_drift/")
KEPT_SMALL = {"retain_loss": ("Drift on benign text", "KL (nats)", GREEN), "loss": ("Training loss", "loss", ORANGE)}
"""The first that was logged is drawn."""
CHANCE = 0.5
APART = 0.05
"""So far above chance an adversary tells the two apart: its batches are small."""
SHARE = 4
"""The first and the last of so many equal parts of the log are compared."""


class Table(NamedTuple):
    """Some rows of the log, ready to print."""

    columns: list[str]
    rows: list[list[str]]


def adversary_figure(findings: Findings) -> Figure | None:
    """Balanced accuracy over the steps, a line a layer, and chance; None for a method without an adversary."""
    keys = _accuracies(findings.history)
    if not keys:
        return None
    figure, axes = narrow()
    for i, key in enumerate(keys):
        label = f"layer {key.removeprefix(ACCURACY)}"
        axes.plot(*series(findings.history, key), DASHES[i % len(DASHES)], color=ORANGE, linewidth=1.6, label=label)
    axes.axhline(CHANCE, color=INK, linestyle=DASHED, linewidth=1, label="chance")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.4), max(high, 1.0))
    axes.legend(fontsize=SMALL, frameon=False, ncols=2, loc="upper center", labelcolor=INK)
    plain(axes, "Adversary, while it learns", "balanced accuracy")
    _over_steps(axes)
    return figure


def adversary_sentence(findings: Findings) -> str:
    """How it ended, and what follows; empty for a method without an adversary."""
    keys = _accuracies(findings.history)
    if not keys:
        return ""
    ends = {key: _ends(series(findings.history, key)[1]) for key in keys}
    best = max(ends, key=lambda key: ends[key][1])
    begun, ended = ends[best]
    said = (
        f"Chance is 0.5. In the last quarter of the log its balanced accuracy is {ended:.2f} (layer "
        f"{best.removeprefix(ACCURACY)}), in the first it was {begun:.2f}."
    )
    if ended >= CHANCE + APART:
        better = ", and better than at first" if ended > begun + APART else ""
        return (
            f"{said} So it still tells toxic from benign tokens{better}: training pushed against what it reads, and "
            "did not push it out."
        )
    worse = ", which it could at first" if begun >= CHANCE + APART else ""
    rest = (
        "whether a fresh probe can is shown above."
        if findings.erasure
        else "whether a fresh probe can was not measured here."
    )
    return f"{said} So this adversary cannot tell toxic from benign tokens{worse}; {rest}"


def training_figure(findings: Findings) -> Figure | None:
    """What was kept small, or the loss; None where neither was logged."""
    if not any(series(findings.history, key)[0] for key in KEPT_SMALL):
        return None
    figure, axes = narrow()
    training_panel(axes, findings.history)
    return figure


def training_panel(axes: Axes, history: Sequence[Logged]) -> None:
    """The first of KEPT_SMALL that was logged, over the steps, or that none was."""
    key = next((key for key in KEPT_SMALL if series(history, key)[0]), None)
    if key is None:
        axes.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axes.transAxes, color=GREY)
        return
    title, label, colour = KEPT_SMALL[key]
    axes.plot(*series(history, key), color=colour, linewidth=1.6)
    axes.set_ylim(bottom=0)
    plain(axes, title, label)
    _over_steps(axes)


def training_table(history: Sequence[Logged]) -> Table:
    """At most ROWS rows of the log, evenly spread, first and last included; only columns that were logged."""
    columns = [key for key in KEYS if any(key in row for row in history)]
    for prefix in PREFIXES:
        columns += keys_starting(history, prefix)
    rows = [row for row in history if "step" in row and any(key in row for key in columns)]
    if len(rows) > ROWS:
        last = len(rows) - 1
        rows = [rows[round(i * last / (ROWS - 1))] for i in range(ROWS)]
    names = [column.replace("adversary/", "").replace("_", " ").replace("/", ", layer ") for column in columns]
    return Table(names, [[str(row["step"]), *(number(row.get(column), ".4g") for column in columns)] for row in rows])


def series(history: Sequence[Logged], key: str) -> tuple[list[float], list[float]]:
    """The steps and values of the rows that hold a finite number under `key`."""
    pairs = [(row["step"], row[key]) for row in history if "step" in row and _is_number(row.get(key))]
    return [float(step) for step, _ in pairs], [float(value) for _, value in pairs]


def keys_starting(history: Sequence[Logged], prefix: str) -> list[str]:
    """The keys with `prefix` that occur in `history`, by layer number: bce/8 before bce/16."""
    keys = {key for row in history for key in row if key.startswith(prefix)}
    return sorted(keys, key=lambda key: (len(key), key))


def _accuracies(history: Sequence[Logged]) -> list[str]:
    return [key for key in keys_starting(history, ACCURACY) if series(history, key)[0]]


def _ends(values: list[float]) -> tuple[float, float]:
    """The means of the first and of the last part."""
    n = math.ceil(len(values) / SHARE)
    return sum(values[:n]) / n, sum(values[-n:]) / n


def _over_steps(axes: Axes) -> None:
    axes.set_xlabel("step", fontsize=SMALL, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
