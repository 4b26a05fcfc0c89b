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
    command.add_argument("--overwrite", action="store_true", help="replace the page that is there")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from efface.comparison.pages import read_sweeps, write_pages
    from efface.comparison.table import comparison_page
    from efface.files.results import check_output_dir

    results = read_sweeps(options.directories)
    if options.output is not None:
        check_output_dir(options.output, overwrite=options.overwrite, resume=None, inputs=options.directories)
    print(comparison_page(results))
    if options.output is not None:
        written = write_pages(results, options.output, overwrite=options.overwrite)
        print(f"written: {', '.join(map(str, written))}")
