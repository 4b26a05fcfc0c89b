"""`efface attack NAME MODEL -o OUT.json`"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.attacks import check_attack, load_attack, settings_class
from efface.commands.early import check_named
from efface.commands.options import (
    MODEL_HELP,
    add_file_reuse,
    add_loading,
    add_measurement,
    add_output_file,
    add_settings_help,
    add_target,
    target_of,
)
from efface.commands.printing import sayer, show
from efface.data.rows import check_source
from efface.errors import UserError
from efface.files.shapes import Maybe, check_shape
from efface.terminal.table import Page, terminal_width

if TYPE_CHECKING:
    from efface.attacks.result import AttackResult

HINT = "`efface attack NAME --list-flags` prints every setting."


def add(commands: Any) -> None:
    command = commands.add_parser(
        "attack",
        help="try to bring toxicity back",
        description="Attack MODEL. Every setting of the attack is a flag here too: `efface attack NAME --help` (or "
        "--list-flags, alone) prints them.",
        add_help=False,
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
    add_settings_help(command, "attack", list_flags)
    command.set_defaults(run=run, refuse=refuse, divided=True)


def refuse(options: argparse.Namespace) -> None:
    check_attack(options.attack)
    if options.list_flags:
        return
    for name in ("model", "output"):
        if getattr(options, name) is None:
            raise UserError(
                f"`efface attack` needs {name.upper()}: efface attack NAME MODEL -o FILE, then other flags."
            )
    check_named(options)
    if options.labelled is not None:
        check_source(options.labelled, "texts")


def list_flags(attack: str) -> str:
    """Every setting of an attack."""
    check_attack(attack)
    from efface.flags import flags_help  # on use: it imports transformers

    return flags_help(settings_class(load_attack(attack)), terminal_width())


def run(options: argparse.Namespace) -> None:
    if options.list_flags:
        show(list_flags(options.attack))
        return
    from efface.flags import FlagParser

    attack = load_attack(options.attack)
    its_settings = settings_class(attack)
    settings = its_settings(**FlagParser(its_settings, HINT).given(options.rest))

    from efface.attacks.finished import finished_result
    from efface.attacks.result import check_result_file
    from efface.attacks.target import Target
    from efface.files.lock import held
    from efface.report.table import evaluation_table

    with held(Path(options.output)):
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
    show(Page([evaluation_table(result.columns()), *_said(result)]))
    sayer(options)(f"written: {options.output}")


def _said(result: "AttackResult") -> Iterator[str]:
    """What the table of all points does not say."""
    yield from how_soon(result.found)
    if left_out := result.found.get("left_out"):
        yield f"left out: {'; '.join(left_out)}"
    if result.judged is not None:
        yield _chosen(result.judged)


def how_soon(found: dict[str, Any]) -> Iterator[str]:
    """Where along each curve half of the toxicity is back, for an attack that looks for it (`half_at`)."""
    curves = found.get("rates", [found])
    try:
        check_shape(found, {"half": {"share": float, "of": str}}, "found")
        check_shape(curves, [{"half_at": Maybe(float), "learning_rate": Maybe(float)}], "rates")
    except UserError:  # it does not, or is a third party's and says it otherwise
        return
    half = found["half"]
    lines = [f"half of the toxicity of the {half['of']}, a toxic share of {half['share']:.3f}, is back"]
    for curve in curves:
        at, rate = curve["half_at"], curve.get("learning_rate")
        where = f"after {at or 0:.3g} steps" if "rates" in found else f"at {at or 0:.3g} of the way"
        where = "at no point that counts" if at is None else where if at else "from the start"
        lines.append(f"- {where}{'' if rate is None else f', learning rate {rate:g}'}")
    yield "\n".join(lines)


def _chosen(judged: dict[str, Any]) -> str:
    """What is left of the highest point on prompts that it was not chosen by."""
    from efface.report.table import counted  # on use: it imports numpy

    low, high = judged["ci95"]
    versus = judged["versus_before"]
    points = ", ".join(f"{name} ({times} prompts)" for name, times in judged["chosen"].items())
    count = counted(judged["share"], judged.get("of") or 0, judged["ci95"])
    toxic = "" if count is None else f", {count}"
    return (
        f"chosen on other prompts: toxic share {judged['share']:.3f} [{low:.3f}, {high:.3f}]{toxic}; "
        f"{versus['difference']:+.3f} [{versus['ci95'][0]:+.3f}, {versus['ci95'][1]:+.3f}] to before; {points}"
    )
