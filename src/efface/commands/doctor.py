"""`efface doctor`: is everything there? Prints what `efface/jobs/doctor.py` finds.

Short: a command has a file of its own.
"""

import argparse
from typing import Any

from efface.commands.printing import show


def add(commands: Any) -> None:
    command = commands.add_parser(
        "doctor",
        help="what is there, and what is missing",
        description="Look at versions, devices, memory, the cache, models, judges, optional packages and settings of "
        "the hub; nothing is downloaded and no connection is opened. Exit code 1 if something is missing without "
        "which efface does not work, with a line that says what to do.",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from efface.jobs.doctor import check_found, examine, page_of

    found = examine()
    show(page_of(found))
    check_found(found)
