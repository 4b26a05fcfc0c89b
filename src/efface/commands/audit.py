"""`efface audit MODEL... --base BASE -o DIR`"""

import argparse
from pathlib import Path
from typing import Any

from efface.audit.battery import BUDGETS
from efface.commands.options import MODEL_HELP, add_measurement, add_reuse, add_target, target_of
from efface.errors import RunError

TIMES = ", ".join(f"{name} {budget.minutes}" for name, budget in BUDGETS.items())


def add(commands: Any) -> None:
    command = commands.add_parser(
        "audit",
        help="measure models and attack them with everything, into one table",
        description="Measure each MODEL, make every attack of the battery on it, and print one table that ends with "
        "the worst case over attacks. An attack that fails does not lose the others.",
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
        help=f"which battery; minutes for each model, for SmolLM2-135M on 2 cores: {TIMES} (default: quick)",
    )
    command.add_argument(
        "--only",
        type=_names,
        default=[],
        metavar="A,B",
        help="only these of the battery; any other (`efface attacks`, package.module:function) with its defaults",
    )
    command.add_argument("--skip", type=_names, default=[], metavar="A,B", help="leave these out")
    add_target(command)
    # Not given, the number of prompts and of tokens is the budget's.
    add_measurement(command, text="shipped:text", max_text_tokens=None)
    command.set_defaults(run=run)


def _names(given: str) -> list[str]:
    found = [name.strip() for name in given.split(",") if name.strip()]
    if not found:  # the whole battery would be made, or nothing left out
        raise argparse.ArgumentTypeError(f"{given!r} names nothing: name attacks, separated by commas")
    return found


def run(options: argparse.Namespace) -> None:
    from efface.audit.run import audit, names_of
    from efface.audit.table import audit_table
    from efface.files.results import RESULTS

    models = names_of(options.models)
    minutes = BUDGETS[options.budget].minutes
    print(f"budget {options.budget}: about {minutes} minutes for each model (SmolLM2-135M on 2 cores)")
    try:
        results = audit(
            models,
            output=options.output,
            budget=options.budget,
            only=options.only,
            skip=options.skip,
            measurement={**target_of(options), "command": options.command_line, "progress": True},
            overwrite=options.overwrite,
            resume=options.resume,
            say=lambda line: print(line, flush=True),
        )
    except KeyboardInterrupt:
        print(f"What is finished, and begun, is kept in {options.output}: the same command with --resume goes on.")
        raise
    print(f"\n{audit_table(results)}\n")
    print(f"written: {Path(options.output) / RESULTS}")
    failed = [
        f"{model['name']}, {row['attack']}" for model in results["models"] for row in model["attacks"] if row["error"]
    ]
    failed += [model["name"] for model in results["models"] if model["error"]]
    if failed:
        raise RunError(f"failed: {'; '.join(failed)}. The rest is whole; --resume tries these again.")
