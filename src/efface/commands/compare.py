"""`efface compare DIR...`"""

import argparse
from pathlib import Path
from typing import Any

from efface.commands.early import check_file
from efface.commands.printing import sayer, show
from efface.files.results import RESULTS


def add(commands: Any) -> None:
    command = commands.add_parser(
        "compare",
        help="tables and figures of sweeps",
        description="Print the tables of sweeps: cost, toxicity, steps to base and to half, ratios of "
        "drops, what survives rounding, paired tests with Holm's correction. With -o also as markdown, with two "
        "figures of each, and the rows of all figures as JSON.",
    )
    command.add_argument("directories", nargs="+", metavar="DIR", help="of `efface sweep`")
    command.add_argument("-o", "--output", default=None, metavar="DIR", help="where page, figures and rows go")
    command.add_argument("--overwrite", action="store_true", help="replace the page that is there")
    command.set_defaults(run=run, refuse=refuse)


def refuse(options: argparse.Namespace) -> None:
    for directory in options.directories:
        check_file(Path(directory) / RESULTS, "sweep")


def run(options: argparse.Namespace) -> None:
    from efface.comparison.pages import check_page_dir, read_sweeps, write_pages
    from efface.comparison.table import comparison_page

    results = read_sweeps(options.directories)
    if options.output is not None:
        check_page_dir(options.output, overwrite=options.overwrite, inputs=options.directories)
    show(comparison_page(results))
    if options.output is not None:
        written = write_pages(results, options.output, overwrite=options.overwrite)
        sayer(options)(f"written: {', '.join(map(str, written))}")
