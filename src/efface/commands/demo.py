"""`efface demo`: parses its flags; the work is `efface/jobs/demo.py`.

Short: a command has a file of its own.
"""

import argparse
from pathlib import Path
from typing import Any

from efface.commands.early import check_named
from efface.commands.options import MODEL_HELP, add_reuse
from efface.commands.printing import sayer, show
from efface.training import DEFAULT_STEPS


def add(commands: Any) -> None:
    command = commands.add_parser("demo", help="the main job on the embedded default model, from pairs to report")
    command.add_argument(
        "-o", "--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo"
    )
    command.add_argument("--model", default=None, help=f"another model ({MODEL_HELP})")
    command.add_argument("--max-steps", type=int, default=None, help=f"optimizer steps (default: {DEFAULT_STEPS})")
    add_reuse(command)
    command.set_defaults(run=run, refuse=check_named)


def run(options: argparse.Namespace) -> None:
    from efface.jobs.demo import run as run_demo

    run_demo(
        options.output,
        model_name=options.model,
        max_steps=options.max_steps,
        overwrite=options.overwrite,
        resume=options.resume,
        command=options.command_line,
        say=sayer(options),
        show=show,
    )
