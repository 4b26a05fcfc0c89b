"""SHOW: figures and the self-contained HTML report. Nothing heavy is imported here: the command line starts fast.

A new figure is one file and one entry here: a function `draw(findings: Findings) -> matplotlib Figure | None`, see
`figures.py`. Every page shows all figures that have something to show.
"""

from dataclasses import dataclass

from efface.registry import Entry

MASKS = CLICK, ALWAYS, NEVER = "click", "always", "never"
"""Until when offensive words of a page are masked."""
NOT_MEASURED = "not_measured"
"""The only key of a block that there is not: why."""
SECTIONS = BEFORE, STATES, TRAINING = "before", "states", "training"
"""Of the page, that figures stand in."""


@dataclass(frozen=True)
class Drawing(Entry):
    """`what` is the first line of the caption; text between backticks is shown as code."""

    alt: str = ""
    """For who cannot see it."""
    says: str = ""
    """`package.module:function` of what the numbers mean, (findings: Findings) -> str: it stands beside the figure."""
    section: str = BEFORE
    """One of SECTIONS."""


FIGURES = {
    "toxicity": Drawing(
        "efface.report.plots:toxicity_figure",
        "How many continuations are toxic.",
        alt="Bars of the toxic share of both models with their intervals: the numbers are in the table of this page.",
    ),
    "perplexity": Drawing(
        "efface.report.plots:perplexity_figure",
        "What ordinary text costs.",
        alt="Bars of the perplexity of both models: the numbers are in the table of this page.",
    ),
    "erasure": Drawing(
        "efface.report.erasure:erasure_figure",
        "What a fresh probe reads off the hidden states beyond the token itself, before the edit and after it.",
        alt="Gain in AUC of both models at several layers, with intervals: the numbers are in the table below.",
        says="efface.report.erasure:erasure_sentence",
        section=STATES,
    ),
    "adversary": Drawing(
        "efface.report.training:adversary_figure",
        "How well the adversary of the training, which learns along, tells toxic from benign tokens.",
        alt="Balanced accuracy of the adversary over the steps, and chance: the numbers are in the table below.",
        says="efface.report.training:adversary_sentence",
        section=TRAINING,
    ),
    "training": Drawing(
        "efface.report.training:training_figure",
        "What training kept small, or its loss, over the steps.",
        alt="A curve over the steps of the training: the numbers are in the table below.",
        section=TRAINING,
    ),
}
