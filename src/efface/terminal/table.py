"""How do rows of cells become text that fits? Tables, and pages of them, as wide as a terminal and no wider.

Columns that do not fit beside each other stand in further parts below, each with the first ones again. What is too
long for a cell is a note below its table, by its number. `efface.commands.printing` prints them; `str` is plain text.
"""

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from efface.errors import escaped

WIDTH = 80
"""Columns, where nobody says how many there are."""
GAP = 2
"""Spaces between two columns of a table."""
LEAST = 5
"""A column of words is made no narrower than this part of the width, unless nothing else helps."""


@dataclass(frozen=True)
class Table:
    """Rows of cells, which may hold several lines."""

    rows: Sequence[Sequence[str]]
    head: Sequence[str] = ()
    title: str = ""
    notes: Sequence[str] = ()
    """Numbered from 1; a cell names one as `Notes.mark` says."""
    keys: int = 1
    """So many first columns say what a row is, and are repeated in each part."""
    prose: Sequence[int] = (0,)
    """The columns whose cells may be broken into lines; others hold figures. Heads may all be."""

    def __str__(self) -> str:
        return "\n".join(plain(self))


@dataclass(frozen=True)
class Page:
    """Tables, and paragraphs between them; one that begins with "#", as in markdown, is a heading."""

    blocks: Sequence[Table | str]

    def __str__(self) -> str:
        return "\n\n".join("\n".join(plain(block)) for block in self.blocks)


Block = Table | Page | str
"""What can be printed."""


class Notes(list[str]):
    """The notes of a table, in the order in which its cells name them."""

    def mark(self, note: str) -> str:
        """How a cell names this note: "(1)"."""
        if note not in self:
            self.append(note)
        return f"({self.index(note) + 1})"


@dataclass(frozen=True)
class Part:
    """Columns of a table that stand beside each other. Cells are lists of lines, none longer than its column."""

    widths: list[int]
    head: list[list[str]]
    """Empty without a head."""
    rows: list[list[list[str]]]


def terminal_width() -> int:
    """Columns of the terminal, or what COLUMNS says; else 80."""
    return max(shutil.get_terminal_size((WIDTH, 24)).columns, 20)


def plain(block: Table | str, width: int = WIDTH) -> Iterator[str]:
    """Its lines as text, of at most `width` columns."""
    if isinstance(block, str):
        yield from paragraph(heading(block)[0], width)
        return
    if block.title:
        yield from paragraph(block.title, width)
    for number, part in enumerate(parts(block, width)):
        if number:
            yield ""
        for cells in [part.head, *part.rows] if part.head else part.rows:
            yield from side_by_side(cells, part.widths)
    yield from noted(block, width)


def side_by_side(cells: Sequence[Sequence[str]], widths: Sequence[int]) -> Iterator[str]:
    """The lines of one row of a part."""
    for i in range(max(map(len, cells))):
        line = [cell[i] if i < len(cell) else "" for cell in cells]
        yield (" " * GAP).join(map(str.ljust, line, widths)).rstrip()


def noted(table: Table, width: int) -> Iterator[str]:
    """The lines of the notes below a table."""
    for number, note in enumerate(table.notes, 1):
        mark = f"({number}) "
        yield from textwrap.wrap(mark + _clean(note), width, subsequent_indent=" " * len(mark), **WHOLE)


def heading(text: str) -> tuple[str, bool]:
    """A paragraph without the mark of a heading, and whether it has one."""
    return re.sub(r"^#+ ", "", text), text.startswith("#")


def paragraph(text: str, width: int) -> Iterator[str]:
    """Its lines, broken where they are too long, but inside words; what follows is indented as the line itself, after
    the "- " of a list."""
    for line in _clean(text).split("\n"):
        indent = re.match(r" *(- )?", line)
        assert indent is not None
        yield from textwrap.wrap(line, width, subsequent_indent=" " * indent.end(), **WHOLE) or [""]


def parts(table: Table, width: int) -> list[Part]:
    """The columns in groups that fit into `width`."""
    head, *rows = [[_clean(cell) for cell in row] for row in (table.head, *table.rows)]
    columns = list(zip(*([head] if head else []), *rows, strict=True))
    natural = [max(1, *map(_longest_line, column)) for column in columns]
    broken = [max(width // LEAST, _longest_piece(column)) for column in columns]
    whole = [_whole(column, bool(head)) for column in columns]
    least = [min(of, (broken if i in table.prose else whole)[i]) for i, of in enumerate(natural)]
    keys = list(range(min(table.keys, len(columns))))
    groups = [[*keys]]
    for i in range(len(keys), len(columns)):
        if len(groups[-1]) > len(keys) and _total([least[j] for j in [*groups[-1], i]]) > width:
            groups.append([*keys])
        groups[-1].append(i)
    found = []
    for group in groups:
        widths = _shrunk([natural[i] for i in group], [least[i] for i in group], width)
        first, *lines = [_lines_of(cells, group, widths) for cells in (head, *rows)]
        found.append(Part(widths, first, lines))
    return found


def _lines_of(cells: Sequence[str], group: Sequence[int], widths: Sequence[int]) -> list[list[str]]:
    """Of a row, which is empty where a table has no head."""
    return [_broken(cells[i], to) for i, to in zip(group, widths, strict=True)] if cells else []


def _longest_piece(cells: Sequence[str]) -> int:
    """How narrow words may become: they are broken where they are joined."""
    return max((len(piece.strip()) for cell in cells for piece in _PIECES.findall(cell)), default=0)


def _whole(cells: Sequence[str], has_head: bool) -> int:
    """How narrow figures may become: they stay whole, the words of their head stand below each other."""
    head = cells[0].split() if has_head else []
    return max([1, *map(_longest_line, cells[has_head:]), *map(len, head)])


def _shrunk(natural: Sequence[int], least: Sequence[int], width: int) -> list[int]:
    """The widest columns give way until all fit, each to its least; where that is not enough, below it."""
    widths = list(natural)
    for floors in (least, [1] * len(least)):
        while _total(widths) > width:
            loose = [i for i, floor in enumerate(floors) if widths[i] > floor]
            if not loose:
                break
            widths[max(loose, key=lambda i: widths[i])] -= 1
    return widths


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _broken(cell: str, width: int) -> list[str]:
    return [part for line in cell.split("\n") for part in _Joined(width, **PIECEMEAL).wrap(line) or [""]]


class _Joined(textwrap.TextWrapper):
    """Breaks a word that is too long where it is joined, as in a_long_name."""

    def _split(self, text: str) -> list[str]:
        chunks = super()._split(text)
        return [piece for one in chunks for piece in (_PIECES.findall(one) if len(one) > self.width else [one])]


WHOLE: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
"""A path stays one that can be copied."""
PIECEMEAL: dict[str, Any] = {"break_long_words": True, "break_on_hyphens": False}
_PIECES = re.compile(r"[^\s_/:.,-]+[_/:.,-]*|[_/:.,-]+|\s+")


def _longest_line(cell: str) -> int:
    return max(map(len, cell.split("\n")))


def _clean(text: str) -> str:
    """Names and verdicts out of files of anybody's making do a terminal no harm."""
    return escaped(text).replace("\t", " ")
