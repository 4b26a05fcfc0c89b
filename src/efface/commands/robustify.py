"""`efface robustify MODEL PAIRS -o DIR`: the same as `efface train undo MODEL PAIRS -o DIR`

Short: a command has a file of its own, and all that this one does is done by `train.py`.
"""

from typing import Any

from efface.commands import train
from efface.commands.options import add_settings_help


def add(commands: Any) -> None:
    command = commands.add_parser(
        "robustify",
        help="noise and distil a detoxified model",
        description="Damage the weights of MODEL, which any method has detoxified, and distil what it says back into "
        "them (UNDO, Lee et al. 2025): what the outputs do not show is not restored. The same as `efface train undo`, "
        "whose settings are flags here too: this and --list-flags print them.",
        add_help=False,
    )
    train.add_arguments(command)
    add_settings_help(command, "method", train.list_flags)
    command.set_defaults(
        run=train.run, refuse=train.refuse, method="undo", usage="efface robustify MODEL PAIRS -o DIR"
    )
