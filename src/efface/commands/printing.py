"""How does a command print? Tables in colour on a terminal, as plain text into a file; what happens not with --quiet.

`show` prints what a command is asked for, and what `say` gives prints what it does meanwhile. Of several processes the
first one prints.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any

from efface.errors import escaped
from efface.terminal.table import GAP, Block, Page, Table, heading, noted, paragraph, parts, plain, terminal_width

ALARMING = re.compile(r"\b(degenerate|failed|no evidence|every point wrecks)\b")


def show(*blocks: Block, file: IO[str] | None = None) -> None:
    """Print tables, pages, or lines as they are, to standard output unless told otherwise."""
    file = sys.stdout if file is None else file
    if file is None or os.environ.get("RANK", "0") != "0":
        return
    for block in blocks:
        if isinstance(block, str):  # a line is left to the terminal, which breaks nothing that is copied
            print(escaped(block), file=file, flush=True)
        elif file.isatty():
            _print_rich(block, file)
        else:
            print("\n\n".join("\n".join(plain(one, terminal_width())) for one in _flat(block)), file=file, flush=True)


def sayer(options: argparse.Namespace, file: IO[str] | None = None) -> Callable[[Block], None]:
    """What tells what happens: as `show`, and with --quiet nothing."""

    def say(block: Block) -> None:
        if not options.quiet:
            show(block, file=file)

    return say


def _flat(block: Table | Page) -> Iterator[Table | str]:
    yield from block.blocks if isinstance(block, Page) else [block]


def _print_rich(block: Table | Page, file: IO[str]) -> None:
    """rich knows what the terminal can do, and NO_COLOR."""
    from rich.console import Console  # on use: it costs a tenth of a second
    from rich.text import Text

    width = terminal_width()
    console = Console(file=file, width=width, highlight=False, markup=False, emoji=False)

    def put(line: str, style: str = "") -> None:
        text = Text(line, style=style, no_wrap=True, overflow="ignore")
        text.highlight_regex(ALARMING, "red")
        console.print(text, crop=False, soft_wrap=True)

    for number, one in enumerate(_flat(block)):
        if number:
            put("")
        if isinstance(one, str):
            text, head = heading(one)
            for line in paragraph(text, width):
                put(line, "bold" if head else "")
        else:
            for line in paragraph(one.title, width) if one.title else ():
                put(line, "bold")
            _print_parts(one, width, console)
            for line in noted(one, width):
                put(line, "dim")


def _print_parts(table: Table, width: int, console: Any) -> None:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    for number, part in enumerate(parts(table, width)):
        if number:
            console.print()
        how: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False}
        how |= {"padding": (0, GAP - 1, 0, 0)}  # the box itself stands in one column of each gap
        grid = Grid(show_header=bool(part.head), header_style="bold", **how)
        for i, to in enumerate(part.widths):
            head = Text("\n".join(part.head[i])) if part.head else ""
            grid.add_column(head, width=to, no_wrap=True, overflow="ignore")
        for row in part.rows:
            cells = [Text("\n".join(lines)) for lines in row]
            for cell in cells:
                cell.highlight_regex(ALARMING, "red")
            grid.add_row(*cells, style="bold" if row[0][0].startswith("= ") else None)
        console.print(grid)
