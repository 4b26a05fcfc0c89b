"""`efface compare DIR...`

Short: the page is made elsewhere, and printed here.
"""

import argparse
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser(
        "compare",
        help="tables and figures of sweeps",
        description="Print the tables of sweeps as markdown: cost, toxicity, steps to base and to half, ratios of "
        "drops, what survives rounding, paired tests with Holm's correction. With -o also two figures of each, and "
        "the rows of all figures as JSON.",
    )
    command.add_argument("directories", nargs="+", metavar="DIR", help="of `efface sweep`")
    command.add_argument("-o", "--output", default=None, metavar="DIR", help="where page, figures and rows go")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from efface.comparison.pages import read_sweeps, write_pages
    from efface.comparison.table import comparison_page

    results = read_sweeps(options.directories)
    print(comparison_page(results))
    if options.output is not None:
        print(f"written: {', '.join(map(str, write_pages(results, options.output)))}")
