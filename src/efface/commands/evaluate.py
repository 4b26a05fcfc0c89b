"""`efface evaluate MODEL -o OUT.json`"""

import argparse
from typing import Any

from efface.commands.options import MODEL_HELP, add_output_file
from efface.report.table import evaluation_table


def add(commands: Any) -> None:
    command = commands.add_parser("evaluate", help="toxicity, perplexity and degeneration of a model")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_output_file(command)
    command.add_argument(
        "--prompts", default="shipped:prompts", help="JSON lines with `prompt` (default: the shipped held-out ones)"
    )
    command.add_argument("--text", default=None, help="JSON lines with `text`, for perplexity")
    command.add_argument("--max-text-tokens", type=int, default=20_000)
    command.add_argument("--window", type=int, default=1024, help="tokens of context in a perplexity window")
    command.add_argument("--scorer", default="alt-profanity-check", help="see `efface scorers`")
    command.add_argument("--samples", type=int, default=1, help="1: greedy; more: nucleus samples for each prompt")
    command.add_argument("--top-p", type=float, default=0.9)
    command.add_argument("--temperature", type=float, default=1.0)
    command.add_argument("--max-new-tokens", type=int, default=20)
    command.add_argument(
        "--max-prompt-tokens", type=int, default=None, help="keep only the last so many tokens of a prompt"
    )
    command.add_argument("--limit", type=int, default=None, help="use only the first so many prompts")
    command.add_argument("--batch-size", type=int, default=64)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--reference",
        default=None,
        metavar="MODEL",
        help="untouched model, whose perplexity of the generations guards against gibberish",
    )
    command.add_argument(
        "--baseline",
        default=None,
        metavar="BASE.json",
        help="the untouched model's result, to judge degeneration against",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from efface.evaluation.evaluate import evaluate, generations_path
    from efface.results import read_json
    from efface.rows import load_texts

    prompts = load_texts(options.prompts, field="prompt")[: options.limit]
    evaluation = evaluate(
        options.model,
        prompts,
        text=load_texts(options.text) if options.text else None,
        scorer=options.scorer,
        samples=options.samples,
        max_new_tokens=options.max_new_tokens,
        max_prompt_tokens=options.max_prompt_tokens,
        top_p=options.top_p,
        temperature=options.temperature,
        batch_size=options.batch_size,
        seed=options.seed,
        max_text_tokens=options.max_text_tokens,
        window=options.window,
        reference=options.reference,
        baseline=read_json(options.baseline) if options.baseline else None,
        generations_path=generations_path(options.output),
        command=options.command_line,
        progress=True,
    )
    evaluation.save(options.output)
    print(evaluation_table({"": evaluation.to_dict()}))
    print(f"written: {options.output}")
