"""Which figures does a run have, and where do they lie? All of `FIGURES` that have something to show, as PNG files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.files.io import renamed_when_whole
from efface.registry import resolve
from efface.report import FIGURES, Drawing

Logged = Mapping[str, Any]
"""A row of `trainer.state.log_history`."""


@dataclass(frozen=True)
class Findings:
    """What there is to draw of a run."""

    base: Mapping[str, Any]
    """What `efface evaluate` writes of the model before."""
    edited: Mapping[str, Any]
    """And after."""
    history: Sequence[Logged]


@dataclass(frozen=True)
class Drawn:
    """A figure on the disk."""

    path: Path
    caption: str
    alt: str


def draw(findings: Findings, folder: Path, figures: Mapping[str, Drawing] = FIGURES) -> list[Drawn]:
    """Write a PNG into `folder` for each figure that has something to show."""
    drawn = []
    for name, entry in figures.items():
        figure = resolve("figure", name, figures, "package.module:function")(findings)
        if figure is None:
            continue
        path = folder / (entry.file or f"{name}.png")
        with renamed_when_whole(path) as temporary:
            figure.savefig(temporary, format="png")
        drawn.append(Drawn(path, entry.what, entry.alt))
    return drawn
