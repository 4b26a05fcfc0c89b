"""SHOW: figures and the self-contained HTML report. Nothing heavy is imported here: the command line starts fast.

A new figure is one file and one entry here: a function `draw(findings: Findings) -> matplotlib Figure | None`, see
`figures.py`. Every page shows all figures that have something to show.
"""

from dataclasses import dataclass

from efface.registry import Entry


@dataclass(frozen=True)
class Drawing(Entry):
    """`what` is the line below the figure; text between backticks is shown as code."""

    file: str = ""
    """What its PNG is called in the run directory."""
    alt: str = ""
    """For who cannot see it."""


FIGURES = {
    "training": Drawing(
        "efface.report.plots:training_figure",
        "An adversary at ln 2 can no longer tell toxic from benign tokens by their hidden states. It is judged while "
        "it trains: only a fresh probe (`efface analyze`) shows what was erased.",
        file="figure.png",
        alt="Bars of the toxic share and the perplexity of both models, and curves of the training: the numbers are "
        "in the tables of this page.",
    ),
}
