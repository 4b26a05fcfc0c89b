"""`efface detox MODEL -o DIR`"""

import argparse
from pathlib import Path
from typing import Any

from efface.commands.early import check_named
from efface.commands.options import MODEL_HELP, add_loading, add_reuse, seed
from efface.commands.printing import sayer, show
from efface.pairs import SOURCES, load_source
from efface.pairs.source import missing_setting
from efface.training import DEFAULT_STEPS


def add(commands: Any) -> None:
    command = commands.add_parser(
        "detox",
        help="the main job on your own model: pairs, strength, evaluation, audit, report",
        description="Build preference pairs from MODEL, erase with REPO at several strengths, scale each to the "
        "utility budget, keep the least toxic one, measure it on prompts that nothing was chosen on, attack it, and "
        "write it all to DIR/report.html. DIR/model is an ordinary checkpoint.",
    )
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="run directory")
    add_reuse(command)
    command.add_argument(
        "--budget",
        choices=["quick", "standard"],
        default="quick",
        help="quick: two strengths and a quick audit, reckoned at 45 minutes for SmolLM2-135M on 2 cores; standard: "
        "four strengths and a standard audit (default: quick)",
    )
    data = command.add_argument_group("data")
    data.add_argument("--pairs", default=None, help="your own preference pairs, instead of pairs from MODEL itself")
    data.add_argument(
        "--toxic",
        default="antiexpert",
        choices=_sources(),
        help="who writes the toxic side of pairs that are built, see `efface pairs` (default: antiexpert)",
    )
    data.add_argument(
        "--prompts",
        default="shipped:prompts",
        help="to choose the strength on (a third) and to report (the others), without those that the training pairs "
        "hold: JSON lines with `prompt`, or rtp:PART (default: shipped:prompts)",
    )
    data.add_argument("--text", default="shipped:text", help="ordinary text the cost is measured on: JSON lines")
    data.add_argument("--scorer", nargs="+", default=["alt-profanity-check"], help="judges; the first chooses")
    cost = command.add_argument_group("what it may cost, on ordinary text")
    cost.add_argument("--max-kl", type=float, default=0.05, help="KL to MODEL, nats a token (default: 0.05)")
    cost.add_argument(
        "--max-perplexity-increase", type=float, default=0.03, help="as a part of MODEL's (default: 0.03)"
    )
    command.add_argument(
        "--max-steps", type=int, default=None, help=f"default: {DEFAULT_STEPS} (quick), or as `efface train repo`"
    )
    command.add_argument("--no-audit", action="store_true", help="attack nothing")
    command.add_argument("--seed", type=seed, default=0, help="of pairs, training, generations and attacks")
    add_loading(command, placed=False)
    command.set_defaults(run=run, refuse=check_named)


def _sources() -> list[str]:
    """The sources that need no setting of their own, for which there are no flags here."""
    return [name for name in SOURCES if missing_setting(load_source(name)()) is None]


def run(options: argparse.Namespace) -> None:
    from efface.evaluation.budget import UtilityBounds
    from efface.jobs.detox import detox
    from efface.jobs.detox_settings import DetoxSettings

    detox(
        options.model,
        output=options.output,
        settings=DetoxSettings(
            pairs=options.pairs,
            source=options.toxic,
            prompts=options.prompts,
            text=options.text,
            scorers=tuple(options.scorer),
            bounds=UtilityBounds(options.max_kl, options.max_perplexity_increase),
            budget=options.budget,
            max_steps=options.max_steps,
            audited=not options.no_audit,
            seed=options.seed,
        ),
        overwrite=options.overwrite,
        resume=options.resume,
        command=options.command_line,
        say=sayer(options),
        show=show,
    )
