"""`efface analyze [NAME=]MODEL... --base BASE -o DIR`"""

import argparse
from pathlib import Path
from typing import Any

from efface.audit.battery import names_of
from efface.commands.early import check_scorers
from efface.commands.options import MODEL_HELP, add_loading, add_reuse, seed, several_names
from efface.commands.printing import sayer, show
from efface.data.rows import check_source
from efface.errors import RunError
from efface.jobs.analyze import NAMES, check_blocks
from efface.jobs.erasure import HELD_OUT
from efface.model.names import check_model


def add(commands: Any) -> None:
    command = commands.add_parser(
        "analyze",
        help="what edits have done to a model: states, neurons, weights, modules",
        description="Look at each edited MODEL beside its base: what a fresh probe still reads, how far the states "
        "have drifted, which neurons write less toxicity, where the change of the weights lies and how concentrated "
        "it is, whether it lies where an attacker will go, and with --patch which modules are enough and needed.",
    )
    command.add_argument(
        "models", metavar="[NAME=]MODEL", nargs="+", help=f"edited, {MODEL_HELP}; NAME is what tables call it"
    )
    command.add_argument("--base", required=True, metavar="MODEL", help="what they were made from")
    command.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="DIR",
        help="run directory: results.json, a file for each block, and pictures",
    )
    add_reuse(command)
    command.add_argument("--pairs", default=HELD_OUT, help="preference pairs that nothing was trained on")
    command.add_argument("--n-pairs", type=int, default=200, metavar="N", help="the first so many are read")
    command.add_argument("--text", default="shipped:text", help="ordinary text")
    command.add_argument(
        "--patch",
        type=int,
        default=0,
        metavar="N",
        help="patch modules and neurons, each read on N pairs: with SmolLM2-135M and 16 pairs a quarter of an hour "
        "on 2 cores "
        "(default: 0, no patching)",
    )
    command.add_argument(
        "--scorer",
        default=None,
        help="judges what models write that have the edit of one module, see `efface scorers`",
    )
    command.add_argument("--attack-steps", type=int, default=10, metavar="N", help="of the attacker that is looked at")
    command.add_argument(
        "--attack-rate", type=float, default=1e-4, metavar="RATE", help="the attacker's learning rate"
    )
    command.add_argument(
        "--only", type=several_names, default=[], metavar="A,B", help=f"only these blocks, of {', '.join(NAMES)}"
    )
    command.add_argument("--seed", type=seed, default=0, help="of controls, resamples and the attacker")
    add_loading(command)
    command.set_defaults(run=run, refuse=refuse)


def refuse(options: argparse.Namespace) -> None:
    check_blocks(options.only, options.patch)
    for model in [*names_of(options.models).values(), options.base]:
        check_model(model)
    check_source(options.pairs, "pairs")
    check_scorers(options.scorer)


def run(options: argparse.Namespace) -> None:
    from efface.files.results import RESULTS
    from efface.jobs.analyze import analyze
    from efface.report.analysis_figures import write_figures
    from efface.report.analysis_table import analysis_page

    say = sayer(options)
    results = analyze(
        names_of(options.models),
        options.base,
        output=options.output,
        pairs=options.pairs,
        text=options.text,
        n_pairs=options.n_pairs,
        patched_pairs=options.patch,
        attack_steps=options.attack_steps,
        attack_rate=options.attack_rate,
        scorer=options.scorer,
        only=options.only,
        seed=options.seed,
        overwrite=options.overwrite,
        resume=options.resume,
        command=options.command_line,
        say=say,
    )
    pictures = write_figures(results, Path(options.output) / "figures")
    show("", analysis_page(results), "")
    say(f"written: {Path(options.output) / RESULTS}, and {len(pictures)} pictures under figures")
    failed = [f"{model['name']}, {block}" for model in results["models"] for block in model["failed"]]
    if failed:
        raise RunError(f"failed: {'; '.join(failed)}. The rest is whole; --resume tries these again.")
