"""`efface audit MODEL... --base BASE -o DIR`"""

import argparse
from pathlib import Path
from typing import Any

from efface.audit.battery import BUDGETS, check_names, names_of
from efface.commands.early import check_named
from efface.commands.options import (
    MODEL_HELP,
    add_loading,
    add_measurement,
    add_reuse,
    add_target,
    several_names,
    target_of,
)
from efface.commands.printing import sayer, show
from efface.data.rows import check_source
from efface.errors import RunError
from efface.model.names import check_model

WHAT = "; ".join(f"{name}: {budget.what}, {budget.time}" for name, budget in BUDGETS.items())


def add(commands: Any) -> None:
    command = commands.add_parser(
        "audit",
        help="measure models and attack them with everything, into one table",
        description="Measure each MODEL, make every attack of the battery on it and on the attack's control, and "
        "print a table that ends with the worst case for each access (black box, gradients, weights). An attack that "
        "fails does not lose the others.",
    )
    command.add_argument(
        "models", metavar="[NAME=]MODEL", nargs="+", help=f"{MODEL_HELP}; NAME is what tables and directories call it"
    )
    command.add_argument(
        "-o", "--output", required=True, metavar="DIR", help="run directory: results.json, and a file for each attack"
    )
    add_reuse(command)
    command.add_argument(
        "--budget",
        choices=BUDGETS,
        default="quick",
        help=f"which battery, on what, and how long it takes at most for one model of the size of SmolLM2-135M and "
        f"its controls on 2 cores. {WHAT} (default: quick)",
    )
    command.add_argument(
        "--only",
        type=several_names,
        default=[],
        metavar="A,B",
        help="only these of the battery; any other (`efface attacks`, package.module:function) with its defaults",
    )
    command.add_argument("--skip", type=several_names, default=[], metavar="A,B", help="leave these out")
    command.add_argument(
        "--no-controls",
        action="store_true",
        help="do not make the attacks on the base, or on an edit known to fall to them: half of the time, but no row "
        "is then known to be evidence",
    )
    add_target(command)
    # Not given, the number of prompts and of tokens is the budget's.
    add_measurement(command, text="shipped:text", max_text_tokens=None, decoding_dtype="auto")
    add_loading(command)
    command.set_defaults(run=run, refuse=refuse, divided=True)


def refuse(options: argparse.Namespace) -> None:
    check_names(options.budget, options.only, options.skip)
    for model in names_of(options.models).values():
        check_model(model)
    check_named(options)
    if options.labelled is not None:
        check_source(options.labelled, "texts")


def run(options: argparse.Namespace) -> None:
    from efface.audit.run import audit_models
    from efface.audit.table import audit_page
    from efface.files.results import RESULTS

    models, say = names_of(options.models), sayer(options)
    budget = BUDGETS[options.budget]
    say(
        f"budget {options.budget}: {budget.what}; at most {budget.time} for one model and its controls (SmolLM2-135M "
        "on 2 cores), half of it for each other model"
    )
    if options.base is None and not options.no_controls:
        say("without --base there are no controls: no row will be known to be evidence")
    try:
        results = audit_models(
            models,
            output=options.output,
            budget=options.budget,
            only=options.only,
            skip=options.skip,
            controls=not options.no_controls,
            measurement={**target_of(options), "command": options.command_line, "progress": True},
            overwrite=options.overwrite,
            resume=options.resume,
            say=say,
        )
    except KeyboardInterrupt as error:
        kept = f"What is finished, and begun, is kept in {options.output}: the same command with --resume goes on."
        raise type(error)(f"interrupted. {kept}") from error
    show("", audit_page(results), "")
    say(f"written: {Path(options.output) / RESULTS}")
    failed = [
        f"{model['name']}, {row['attack']}" for model in results["models"] for row in model["attacks"] if row["error"]
    ]
    failed += [model["name"] for model in results["models"] if model["error"]]
    for control in results["controls"].values():
        failed += [f"control {control['name']}"] if control["error"] else []
        failed += [f"control {control['name']}, {row['attack']}" for row in control["attacks"] if row["error"]]
    if failed:
        raise RunError(f"failed: {'; '.join(failed)}. The rest is whole; --resume tries these again.")
