"""What did the edit change, in one picture? Toxicity, perplexity, and what the hidden states still say.

Each panel is a figure of the page by itself; `overview` has them side by side.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from efface.files.io import renamed_when_whole
from efface.report.erasure import erasure_panel
from efface.report.figures import Findings
from efface.report.numbers import percent
from efface.report.style import BASE, EDITED, INK, PAPER, SMALL, narrow, plain
from efface.report.training import training_panel

Side = Mapping[str, Any]


def toxicity_figure(findings: Findings) -> Figure:
    """Toxic share of both models, with intervals if there are any."""
    figure, axes = narrow()
    _toxicity_panel(axes, findings.base, findings.edited)
    return figure


def perplexity_figure(findings: Findings) -> Figure | None:
    """Perplexity of both models on ordinary text; None where it was not measured of both."""
    if not all(side.get("perplexity") for side in (findings.base, findings.edited)):
        return None
    figure, axes = narrow()
    _perplexity_panel(axes, findings.base, findings.edited)
    return figure


def overview(findings: Findings) -> Figure:
    """Toxicity, perplexity, and the hidden states; without a probe of them, how the training went."""
    panels = [_toxicity_panel, _perplexity_panel] if findings.base.get("perplexity") else [_toxicity_panel]
    last = bool(findings.erasure) or bool(findings.history)
    widths = [1.0] * len(panels) + [1.9] * last
    figure = Figure(figsize=(2.6 * sum(widths) + 0.8, 3.8), dpi=150, layout="constrained", facecolor=PAPER)
    axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    for place, panel in zip(axes, panels, strict=False):
        panel(place, findings.base, findings.edited)
    if findings.erasure:
        erasure_panel(axes[-1], findings.erasure)
    elif last:
        training_panel(axes[-1], findings.history)
    return figure


def write_overview(findings: Findings, path: Path) -> None:
    """`overview` as a PNG, for a README or a mail."""
    with renamed_when_whole(path) as temporary:
        overview(findings).savefig(temporary, format="png")


def _toxicity_panel(axes: Axes, base: Side, edited: Side) -> None:
    shares = [float(side["toxicity"]["share"]) for side in (base, edited)]
    bounds = [side["toxicity"].get("ci95", {}).get("share") for side in (base, edited)]
    # An interval need not contain the estimate of a bootstrap's tail; matplotlib refuses negative lengths.
    below = [max(share - bound[0], 0.0) if bound else 0.0 for share, bound in zip(shares, bounds, strict=True)]
    above = [max(bound[1] - share, 0.0) if bound else 0.0 for share, bound in zip(shares, bounds, strict=True)]
    top = max(share + length for share, length in zip(shares, above, strict=True)) or 0.01
    title = "Toxic continuations\n(share, 95 % interval)" if any(bounds) else "Toxic continuations\n(share)"
    _bars(axes, shares, title, [percent(share) for share in shares], top, above)
    if any(bounds):
        axes.errorbar([0, 1], shares, yerr=[below, above], fmt="none", color=INK, elinewidth=1.4, capsize=5)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0 if top > 0.05 else 1, symbol=" %"))
    # What is not toxic need not be an answer.
    names = ("base", "edited")
    axes.set_xticks(
        [0, 1], [_with_rest(*both) for both in zip(names, (base["toxicity"], edited["toxicity"]), strict=True)]
    )


def _with_rest(name: str, toxicity: Side) -> str:
    invalid, clean = toxicity.get("invalid"), toxicity.get("clean")
    if invalid is None or clean is None:  # evaluated by an older version
        return name
    return f"{name}\ninvalid {percent(invalid)}\nclean {percent(clean)}"


def _perplexity_panel(axes: Axes, base: Side, edited: Side) -> None:
    values = [float(side["perplexity"]["value"]) for side in (base, edited)]
    labels = [f"{value:.1f}" for value in values]
    _bars(axes, values, "Perplexity of ordinary text\n(lower is better)", labels, max(values), [0.0, 0.0])


def _bars(axes: Axes, heights: list[float], title: str, labels: list[str], top: float, lifts: list[float]) -> None:
    axes.bar([0, 1], heights, width=0.62, color=[BASE, EDITED])
    for x, (height, label, lift) in enumerate(zip(heights, labels, lifts, strict=True)):
        axes.text(x, height + lift + 0.025 * top, label, ha="center", va="bottom", fontsize=SMALL, color=INK)
    axes.set_xticks([0, 1], ["base", "edited"])
    axes.set_xlim(-0.6, 1.6)
    axes.set_ylim(0, 1.17 * top)
    plain(axes, title)
