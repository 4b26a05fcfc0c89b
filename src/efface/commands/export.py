"""`efface export DIR --format NAME -o OUT`"""

import argparse
import os
from pathlib import Path
from typing import Any

from efface.commands.printing import sayer
from efface.errors import UserError
from efface.export import FORMATS, check_format, load_format

MOST_NAMED = 4
"""Files that are named one by one; more are counted."""


def add(commands: Any) -> None:
    command = commands.add_parser(
        "export",
        help="results and checkpoints in the formats of others",
        description="Hand on what was made: "
        + "; ".join(f"{name} ({entry.source}) is {entry.what}" for name, entry in FORMATS.items())
        + ".",
    )
    command.add_argument(
        "directory",
        metavar="DIR",
        help="of an evaluation, an attack, an audit, a demo or detox run, or the file of one of its results; "
        "for gguf a checkpoint",
    )
    command.add_argument(
        "--format", required=True, metavar="NAME", help=f"{', '.join(FORMATS)}, or package.module:function"
    )
    command.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="the file or folder that is written, as the format says"
    )
    command.add_argument("--overwrite", action="store_true", help="replace an earlier export that is there")
    command.set_defaults(run=run, refuse=refuse)


def refuse(options: argparse.Namespace) -> None:
    check_format(options.format)
    if not os.path.exists(options.directory):
        raise UserError(
            f"{options.directory!r} cannot be exported: there is no such file or directory. Pass what an efface "
            "command has written."
        )


def run(options: argparse.Namespace) -> None:
    say, output = sayer(options), Path(options.output)
    written = load_format(options.format)(Path(options.directory), output, overwrite=options.overwrite, say=say)
    named = ", ".join(map(str, written)) if len(written) <= MOST_NAMED else f"{len(written)} files under {output}"
    say(f"written: {named}")
