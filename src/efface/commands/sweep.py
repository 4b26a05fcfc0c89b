"""`efface sweep CONFIG -o DIR`"""

import argparse
from pathlib import Path
from typing import Any

from efface.commands.early import check_scorers
from efface.commands.options import add_reuse
from efface.commands.printing import sayer, show
from efface.errors import RunError
from efface.evaluation.prompt_sets import check_prompts
from efface.methods import check_method
from efface.model.names import check_model


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
    command.set_defaults(run=run, refuse=refuse)


def refuse(options: argparse.Namespace) -> None:
    from efface.comparison.config import read_config  # on use: it imports yaml

    config = read_config(options.config)
    for plan in config.methods:
        check_method(plan.method)
    if not options.list_arms:
        check_model(config.base)
        for part in (config.tuning, *config.reported, config.attacked):
            if part is not None:
                check_prompts(part.prompts)
        check_scorers(config.scorers)


def run(options: argparse.Namespace) -> None:
    from efface.comparison.config import read_config
    from efface.comparison.run import list_arms, sweep
    from efface.comparison.table import comparison_page
    from efface.files.results import RESULTS

    config, say = read_config(options.config), sayer(options)
    if options.list_arms:
        show("\n".join(list_arms(config)))
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
        say=say,
    )
    show("", comparison_page({"": results}))
    if not options.arm:
        say(f"written: {Path(options.output) / RESULTS}")
    if results["arms"] and all(arm["error"] for arm in results["arms"]):
        raise RunError(f"every arm failed; the first: {results['arms'][0]['error']}")
