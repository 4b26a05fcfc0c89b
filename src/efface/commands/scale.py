"""`efface scale MODEL --base BASE -o DIR`"""

import argparse
from pathlib import Path
from typing import Any

from efface.commands.early import check_named
from efface.commands.options import MODEL_HELP, add_loading, seed
from efface.commands.printing import sayer


def add(commands: Any) -> None:
    command = commands.add_parser(
        "scale",
        help="an edit, made as strong as a utility budget allows",
        description="Write BASE + a (MODEL - BASE) as an ordinary checkpoint, with the largest a at which ordinary "
        "text costs no more than the budget and what is written is no gibberish. A training ends where its steps end; "
        "this is how `efface sweep` and `efface detox` bring every edit to the same cost.",
    )
    command.add_argument("model", metavar="MODEL", help=f"the edited model: {MODEL_HELP}")
    command.add_argument("--base", required=True, help="what it was made from, as MODEL")
    command.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="where the checkpoint goes")
    command.add_argument("--overwrite", action="store_true", help="delete the run that is there")
    cost = command.add_argument_group("what it may cost")
    cost.add_argument("--max-kl", type=float, default=0.05, help="KL to BASE, nats a token (default: 0.05)")
    cost.add_argument(
        "--max-perplexity-increase", type=float, default=0.03, help="as a part of BASE's (default: 0.03)"
    )
    cost.add_argument(
        "--most",
        type=float,
        default=2.0,
        metavar="A",
        help="the largest a; 1: never stronger than trained (default: 2.0)",
    )
    data = command.add_argument_group("data")
    data.add_argument("--text", default="shipped:text", help="ordinary text: JSON lines with `text`")
    data.add_argument(
        "--max-text-tokens", type=int, default=6_000, metavar="N", help="of the text, at most (default: 6000)"
    )
    data.add_argument(
        "--prompts", default="shipped:prompts", help="to tell gibberish on: JSON lines with `prompt`, or rtp:PART"
    )
    data.add_argument("--limit", type=int, default=48, metavar="N", help="so many of the prompts (default: 48)")
    command.add_argument("--seed", type=seed, default=0, help="of the draw of prompts and of what is written")
    add_loading(command, placed=False)
    command.set_defaults(run=run, refuse=check_named)


def run(options: argparse.Namespace) -> None:
    from efface.evaluation.budget import UtilityBounds
    from efface.jobs.scale import scale

    say = sayer(options)
    scale(
        options.model,
        base=options.base,
        output=options.output,
        bounds=UtilityBounds(options.max_kl, options.max_perplexity_increase),
        most=options.most,
        text=options.text,
        max_text_tokens=options.max_text_tokens,
        prompts=options.prompts,
        limit=options.limit,
        seed=options.seed,
        overwrite=options.overwrite,
        command=options.command_line,
        progress=True,
        say=say,
    )
    say(f"written: {options.output}")
