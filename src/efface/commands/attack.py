"""`efface attack NAME MODEL -o OUT.json`"""

import argparse
from typing import Any

from efface.commands.options import (
    MODEL_HELP,
    add_file_reuse,
    add_loading,
    add_measurement,
    add_output_file,
    add_target,
    target_of,
)
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
    add_file_reuse(command, "result")
    command.add_argument("--list-flags", action="store_true", help="print every setting of the attack and stop")
    add_target(command)
    add_measurement(command)
    add_loading(command)
    command.set_defaults(run=run)


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

    from efface.attacks.finished import finished_result
    from efface.attacks.result import check_result_file
    from efface.attacks.target import Target

    check_result_file(options.output, overwrite=options.overwrite, resume=options.resume)
    target = Target.load(
        options.model,
        **target_of(options),
        output=options.output,
        resume=options.resume,
        command=options.command_line,
        progress=True,
    )
    described = target.described()
    found = finished_result(options.output, options.attack, settings, described) if options.resume else None
    result = attack(target, settings) if found is None else found
    print(evaluation_table(result.columns()))
    if left_out := result.found.get("left_out"):
        print(f"left out: {'; '.join(left_out)}")
    if result.judged is not None:
        print(_chosen(result.judged))
    print(f"written: {options.output}")


def _chosen(judged: dict[str, Any]) -> str:
    """What is left of the highest point on prompts that it was not chosen by."""
    low, high = judged["ci95"]
    versus = judged["versus_before"]
    points = ", ".join(f"{name} ({times} prompts)" for name, times in judged["chosen"].items())
    return (
        f"chosen on other prompts: toxic share {judged['share']:.3f} [{low:.3f}, {high:.3f}], "
        f"{versus['difference']:+.3f} [{versus['ci95'][0]:+.3f}, {versus['ci95'][1]:+.3f}] to before; {points}"
    )
