"""What is a page made of, whatever it tells? A first line, and sections of paragraphs, tables, pictures and texts.

Blocks hold plain text, which `html.py` escapes, but for pictures and what `figures.marked_up` gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from efface.report.examples import Section as Examples
from efface.report.figures import Drawn
from efface.terminal import table as terminal

LONGEST = 500
"""Characters of a cell that are shown."""


@dataclass(frozen=True)
class Prose:
    """A paragraph; what stands between backticks is shown as code."""

    text: str
    warning: bool = False
    heading: bool = False
    kind: ClassVar[str] = "prose"


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    items: Sequence[str]
    kind: ClassVar[str] = "points"


@dataclass(frozen=True)
class Code:
    """Lines as they stand: a command."""

    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Card:
    """A figure that is to be seen at once."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Cards:
    """Some of them beside each other."""

    cards: Sequence[Card]
    kind: ClassVar[str] = "cards"


@dataclass(frozen=True)
class Grid:
    """A table; its first column says what a row is."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    look: str = "numbers"
    """Classes of the stylesheet: numbers, training, pairs."""
    meanings: Sequence[str] = ()
    """Below the first cell of each row."""
    notes: Sequence[str] = ()
    sortable: bool = False
    """Whether the reader may order the rows by a column; the script of the page does it."""
    kind: ClassVar[str] = "grid"


@dataclass(frozen=True)
class Pictures:
    """Figures beside each other; wide ones below each other."""

    figures: Sequence[Drawn]
    wide: bool = False
    kind: ClassVar[str] = "pictures"


@dataclass(frozen=True)
class Continuations:
    """What models wrote, masked or not."""

    sections: Sequence[Examples]
    total: int
    kind: ClassVar[str] = "continuations"


Block = Prose | Points | Code | Cards | Grid | Pictures | Continuations


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """All of it."""

    title: str
    lead: Sequence[Block]
    """Below the first line."""
    sections: Sequence[Section]
    first: str = ""
    """The largest line, `25.6 % -> 2.0 % (at most 3.1 %)`, and what it says of what."""
    of: str = ""
    warnings: Sequence[str] = field(default_factory=list)
    """Why the first line may not be taken at its word."""


def blocks_of(page: terminal.Page | terminal.Table | str, caption: str) -> list[Block]:
    """What the terminal shows, on a page; tables without a title are called `caption`."""
    if isinstance(page, str):
        text, heading = terminal.heading(page)
        return [Prose(text.replace("**", ""), heading=heading)] if page.strip() else []
    if isinstance(page, terminal.Table):
        rows = [[_short(cell) for cell in row] for row in page.rows]
        head = list(page.head) or [""] * len(rows[0] if rows else [])
        return [Grid(head, rows, page.title or caption, notes=list(page.notes))]
    found: list[Block] = []
    for one in page.blocks:
        if isinstance(one, terminal.Table) and found and isinstance(found[-1], Prose) and found[-1].heading:
            found[-1:] = blocks_of(one, found[-1].text)  # what stands above a table is what it is called
        else:
            found += blocks_of(one, caption)
    return found


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " […]"
