"""What do all figures look like, on a screen of any width, in the dark and on paper?

Drawn with matplotlib's object interface: no pyplot, hence no global state and no display. A figure of the page is
narrow, so that its text can be read where it is as wide as a phone; what is beside it there stands below it.
"""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

GREY, BLUE, ORANGE, GREEN = "#8a9099", "#0072b2", "#c8500a", "#00805f"
BASE, EDITED = GREY, BLUE
"""The models, by their colour, in every figure."""
INK, LINE, PAPER = "#2b2f36", "#e4e7eb", "#ffffff"
DASHES = ("-", "--", ":", "-.")
DASHED = (0, (5, 3))
CSS = {
    INK: "currentColor",
    "#000000": "currentColor",
    PAPER: "var(--paper)",
    LINE: "var(--line)",
    GREY: "var(--base)",
    BLUE: "var(--edited)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
}
"""What a colour becomes on the page, whose stylesheet defines these for light, dark and paper."""
SIZE = (4.4, 3.0)
"""Inches, at 72 units of the picture each: 317 units, which is about what a phone has pixels beside its margins."""
TEXT, SMALL = 12, 11


def narrow() -> tuple[Figure, Axes]:
    """A figure of the page, with one panel."""
    figure = Figure(figsize=SIZE, layout="constrained", facecolor=PAPER)
    return figure, figure.add_subplot()


def plain(axes: Axes, title: str | None = None, label: str | None = None) -> None:
    """The frame of a panel: no box, lines to read values by."""
    if title is not None:
        axes.set_title(title, fontsize=TEXT, color=INK)
    if label is not None:
        axes.set_ylabel(label, fontsize=SMALL, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL, colors=INK)
