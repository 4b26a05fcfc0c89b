"""`efface train METHOD MODEL PAIRS -o DIR`"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from efface.commands.early import check_file, check_named
from efface.commands.options import MODEL_HELP, add_loading, add_reuse, add_settings_help
from efface.commands.printing import sayer, show
from efface.errors import UserError
from efface.methods import check_method, load_method
from efface.terminal.table import terminal_width


def add(commands: Any) -> None:
    command = commands.add_parser(
        "train",
        help="REPO or a baseline",
        description="Train METHOD on PAIRS. Every transformers.TrainingArguments flag and every setting of the method "
        "is a flag here too: `efface train METHOD --help` (or --list-flags, alone) prints them.",
        add_help=False,
    )
    command.add_argument("method", metavar="METHOD", help="see `efface methods`, or package.module:Class")
    add_arguments(command)
    add_settings_help(command, "method", list_flags)
    command.set_defaults(run=run, refuse=refuse, usage="efface train METHOD MODEL PAIRS -o DIR")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """What a training command takes beside the name of the method."""
    command.add_argument("model", metavar="MODEL", nargs="?", help=MODEL_HELP)
    command.add_argument(
        "pairs", metavar="PAIRS", nargs="?", help="JSON lines, a Hugging Face dataset id, or shipped:train"
    )
    command.add_argument("-o", "--output", type=Path, metavar="DIR", help="output directory")
    command.add_argument(
        "--eval-pairs",
        metavar="PAIRS",
        help="held-out pairs: the method's loss on them, at the end or as often as --eval-strategy says",
    )
    add_reuse(command)
    command.add_argument(
        "--config", metavar="FILE.yaml", help="settings, one `name: value` a line; flags override them"
    )
    command.add_argument("--list-flags", action="store_true", help="print every setting of the method and stop")
    add_loading(command, placed=False)


def refuse(options: argparse.Namespace) -> None:
    check_method(options.method)
    if options.list_flags:
        return
    for name in ("model", "pairs", "output"):
        if getattr(options, name) is None:
            raise UserError(f"`efface {options.command}` needs {name.upper()}: {options.usage}, then other flags.")
    if options.config is not None:
        check_file(options.config, "config file")
    check_named(options)


def list_flags(method: str) -> str:
    """Every setting of a method."""
    check_method(method)
    from efface.flags import flags_help  # on use: it imports transformers

    return flags_help(load_method(method).config_class, terminal_width())


def run(options: argparse.Namespace) -> None:
    from efface.files.results import RESULTS
    from efface.files.shapes import Maybe, check_shape
    from efface.training.run import train
    from efface.training.settings import parse_settings

    if options.list_flags:
        show(list_flags(options.method))
        return
    trainer_class = load_method(options.method)
    settings = parse_settings(trainer_class.config_class, options.config, options.rest)
    result = train(
        trainer_class,
        options.model,
        options.pairs,
        options.output,
        settings,
        method=options.method,
        overwrite=options.overwrite,
        resume=options.resume,
        command=options.command_line,
        inputs=(options.config,),
        eval_pairs=options.eval_pairs,
        say=sayer(options, sys.stderr),
    )
    check_shape(result, {"method": str, "steps": int, "seconds": Maybe(float)}, os.fspath(options.output / RESULTS))
    steps = f"{result['steps']} step{'s' * (result['steps'] != 1)}"
    spent = "" if result["seconds"] is None else f" in {result['seconds']:.0f} s"
    show(f"{options.output}: {result['method']} trained for {steps}{spent}")
