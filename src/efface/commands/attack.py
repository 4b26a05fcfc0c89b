"""`efface attack NAME MODEL -o OUT.json`"""

import argparse
from typing import Any

from efface.commands.options import MODEL_HELP, add_decoding, add_output_file, decoding_of
from efface.errors import UserError
from efface.report.table import evaluation_table

HINT = "`efface attack NAME --list-flags` prints every setting."


def add(commands: Any) -> None:
    command = commands.add_parser(
        "attack",
        help="try to bring toxicity back",
        description="Attack MODEL. Every setting of the attack is a flag here too: `efface attack NAME --list-flags` "
        "prints them.",
        allow_abbrev=False,  # a setting's flag may be the beginning of one of these
    )
    command.add_argument("attack", metavar="NAME", help="see `efface attacks`, or package.module:function")
    command.add_argument("model", metavar="MODEL", nargs="?", help=MODEL_HELP)
    add_output_file(command, required=False)  # not for --list-flags
    command.add_argument("--resume", action="store_true", help="continue an interrupted attack of the same settings")
    command.add_argument("--list-flags", action="store_true", help="print every setting of the attack and stop")
    command.add_argument(
        "--base", default=None, metavar="MODEL", help="untouched model, against which degeneration is judged"
    )
    command.add_argument(
        "--rows", default="shipped:heldout", help="held-out pairs to attack with (default: the shipped ones)"
    )
    command.add_argument("--seed", type=int, default=0, help="of the attack and of the generations")
    _add_measurement(command.add_argument_group("measurement, before and after (as in efface evaluate)"))
    command.set_defaults(run=run)


def _add_measurement(group: Any) -> None:
    add_decoding(group)
    group.add_argument("--text", default=None, help="JSON lines with `text`, for perplexity")
    group.add_argument("--max-text-tokens", type=int, default=20_000)


def run(options: argparse.Namespace) -> None:
    from efface.attacks import load_attack, settings_class
    from efface.flags import FlagParser, flags_help

    attack = load_attack(options.attack)
    its_settings = settings_class(attack)
    if options.list_flags:
        print(flags_help(its_settings))
        return
    for name in ("model", "output"):
        if getattr(options, name) is None:
            raise UserError(
                f"`efface attack` needs {name.upper()}: efface attack NAME MODEL -o FILE, then other flags."
            )
    settings = its_settings(**FlagParser(its_settings, HINT).given(options.rest))

    from efface.attacks.target import Target
    from efface.evaluation.protocols import decoding

    target = Target.load(
        options.model,
        base=options.base,
        prompts=options.prompts,
        limit=options.limit,
        rows=options.rows,
        scorer=options.scorer,
        decoding=decoding(**decoding_of(options)),
        text=options.text,
        max_text_tokens=options.max_text_tokens,
        max_batch_tokens=options.max_batch_tokens,
        seed=options.seed,
        output=options.output,
        resume=options.resume,
        command=options.command_line,
        progress=True,
    )
    result = attack(target, settings)
    print(evaluation_table(result.columns()))
    print(f"written: {options.output}")
