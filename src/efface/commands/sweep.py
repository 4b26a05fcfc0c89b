"""`efface sweep CONFIG -o DIR`"""

import argparse
from pathlib import Path
from typing import Any

from efface.commands.options import add_reuse
from efface.errors import RunError


def add(commands: Any) -> None:
    command = commands.add_parser(
        "sweep",
        help="compare methods at one utility budget",
        description="Train the methods of CONFIG with each of their settings, scale every edit to exactly the utility "
        "budget, keep for each method the least toxic setting that fits, and report, relearn and round what was kept. "
        "What is finished is never made again: the same command with --resume goes on. `efface compare DIR` renders "
        "it.",
    )
    command.add_argument("config", metavar="CONFIG", help="YAML or JSON, see docs/comparison.md")
    command.add_argument("-o", "--output", required=True, metavar="DIR", help="run directory; processes may share it")
    add_reuse(command)
    command.add_argument("--list-arms", action="store_true", help="print the names of all arms, a line each, and stop")
    command.add_argument(
        "--arm",
        nargs="+",
        default=[],
        metavar="NAME",
        help="train and scale only these, and attack nothing: one machine's part of a sweep",
    )
    command.add_argument("--retry-failed", action="store_true", help="make arms again that have failed")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from efface.comparison.config import read_config
    from efface.comparison.run import list_arms, sweep
    from efface.comparison.table import comparison_page
    from efface.files.results import RESULTS

    config = read_config(options.config)
    if options.list_arms:
        print("\n".join(list_arms(config)))
        return
    results = sweep(
        config,
        output=options.output,
        only=options.arm,
        retry_failed=options.retry_failed,
        overwrite=options.overwrite,
        resume=options.resume,
        inputs=[options.config],
        command=options.command_line,
        say=lambda line: print(line, flush=True),
    )
    print(f"\n{comparison_page({'': results})}")
    if not options.arm:
        print(f"written: {Path(options.output) / RESULTS}")
    if results["arms"] and all(arm["error"] for arm in results["arms"]):
        raise RunError(f"every arm failed; the first: {results['arms'][0]['error']}")
