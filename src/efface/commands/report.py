"""`efface report DIR... -o FILE`"""

import argparse
from pathlib import Path
from typing import Any

from efface.commands.printing import sayer, show
from efface.errors import UserError
from efface.report import CLICK, MASKS


def add(commands: Any) -> None:
    command = commands.add_parser(
        "report",
        help="one page that decides: claim, attackers, counter-evidence, verdict",
        description="Write one self-contained HTML page about what any mixture of `efface evaluate`, `train`, "
        "`attack`, `audit`, `sweep`, `analyze`, `demo` and `detox` has left: the claim with its scope, what each "
        "attacker achieved, what speaks against it, what is left open, and the verdict against limits that you state; "
        "behind it all tables and figures. Exit code 1 if a limit is not met, or was not measured.",
    )
    command.add_argument("directories", nargs="+", metavar="DIR", help="of results, or a file of them")
    command.add_argument("-o", "--output", required=True, metavar="FILE", help="the page")
    command.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="LIMITS",
        help="what must hold, for example 'share<=0.1,perplexity<=+3%%,relearn:20<=0.2'; several times, or by commas. "
        "share (by every judge), invalid, perplexity, kl, attacks (the worst), weights, gradients, black box, or an "
        "attack, with :STEPS up to so many; share.upper, attacks.upper, ...: the upper end of the interval",
    )
    command.add_argument(
        "--about",
        nargs="+",
        default=[],
        metavar="NAME",
        help="the models that claim and limits are about (default: all edited ones, and of sweeps the entry that "
        "others are judged against)",
    )
    command.add_argument(
        "--mask",
        choices=MASKS,
        default=CLICK,
        help="offensive words: masked until the reader clicks, always, or never; with always they are not in the file",
    )
    command.add_argument("--title", default="", help="of the page")
    command.add_argument("--overwrite", action="store_true", help="replace the report that is there")
    command.set_defaults(run=run, refuse=refuse)


def refuse(options: argparse.Namespace) -> None:
    for name in options.directories:
        if not Path(name).exists():
            raise UserError(f"{name} is not there. Pass a directory, or a file, of results.")


def run(options: argparse.Namespace) -> None:
    from efface.errors import RunError
    from efface.report.dossier import write_report
    from efface.terminal.table import Table

    rulings = write_report(
        options.directories,
        options.output,
        require=options.require,
        models=options.about,
        mask=options.mask,
        title=options.title,
        overwrite=options.overwrite,
    )
    if rulings:
        rows = [[one.limit.text, one.model, one.found or "-", one.verdict] for one in rulings]
        show(Table(rows, ["limit", "model", "found", "verdict"], prose=(2,)))
    sayer(options)(f"written: {options.output}")
    unmet = [f"{one.limit.text} of {one.model} ({one.verdict})" for one in rulings if not one.met]
    if unmet:
        raise RunError(f"{len(unmet)} of {len(rulings)} limits are not met: {'; '.join(unmet)}.")
