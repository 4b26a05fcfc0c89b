"""`efface evaluate MODEL -o OUT.json`"""

import argparse
from pathlib import Path
from typing import Any

from efface.commands.early import check_named
from efface.commands.options import MODEL_HELP, add_decoding, add_loading, add_output_file, decoding_of, seed
from efface.commands.printing import sayer, show


def add(commands: Any) -> None:
    command = commands.add_parser("evaluate", help="toxicity, perplexity and degeneration of a model")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_output_file(command)
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the evaluation that is there; generations that would be the same are taken from it",
    )
    add_decoding(command)
    command.add_argument(
        "--generator",
        choices=["efface", "vllm"],
        default="efface",
        help="who writes: efface's own decoder, or vLLM (`pip install 'efface[vllm]'`) from the checkpoint's files; "
        "results of the two are not compared by prompt (default: efface)",
    )
    command.add_argument("--seed", type=seed, default=0, help="of the generations")
    command.add_argument("--batch-size", type=int, default=None, help="continuations at once, at most")
    _add_cost(command)
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
        help="the untouched model's result: degeneration is judged against it, and toxicity compared prompt by prompt",
    )
    add_loading(command)
    command.set_defaults(run=run, refuse=refuse, divided=True)


def _add_cost(command: argparse.ArgumentParser) -> None:
    command.add_argument("--text", default=None, help="JSON lines with `text`, for perplexity")
    command.add_argument("--max-text-tokens", type=int, default=20_000, help="of the text, at most")
    command.add_argument("--window", type=int, default=1024, help="tokens of context in a perplexity window")
    command.add_argument(
        "--stride", type=int, default=None, help="from one perplexity window to the next (default: disjoint windows)"
    )
    command.add_argument(
        "--f1-text",
        default=None,
        metavar="FILE",
        help="JSON lines with `text`: how well does the model go on?",
    )
    command.add_argument("--f1-prompts", type=int, default=500, help="paragraphs of it, at most")
    command.add_argument(
        "--utility",
        nargs="+",
        default=None,
        metavar="TASK",
        help="tasks of lm-eval, or JSON lines with `query`, `choices` and `gold`",
    )
    command.add_argument(
        "--utility-limit", type=int, default=None, help="use only the first so many rows of each task, as lm-eval does"
    )
    command.add_argument(
        "--identity",
        nargs="?",
        const=True,
        default=False,
        metavar="FILE",
        help="likelihood of harmless text that names identity groups, and its change from --reference (default: the "
        "shipped texts)",
    )


def refuse(options: argparse.Namespace) -> None:
    check_named(options)
    if options.baseline is not None:
        from efface.evaluation.baseline import read_baseline  # on use: it imports numpy

        read_baseline(options.baseline)


def run(options: argparse.Namespace) -> None:
    from efface.evaluation.baseline import read_baseline
    from efface.evaluation.measure import evaluate
    from efface.evaluation.result import check_evaluation_file, generations_path
    from efface.evaluation.settings import OrdinaryText, PromptSet, RunSettings, UtilityTasks
    from efface.files.lock import held
    from efface.report.table import evaluation_table, versus_table

    with held(Path(options.output)):
        check_evaluation_file(options.output, overwrite=options.overwrite)
        baseline = None if options.baseline is None else read_baseline(options.baseline)
        evaluation = evaluate(
            options.model,
            PromptSet(options.prompts, options.limit, options.limit_seed),
            scorer=options.scorer,
            decoding=decoding_of(options),
            text=OrdinaryText(
                options.text,
                max_tokens=options.max_text_tokens,
                window=options.window,
                stride=options.stride,
                f1_text=options.f1_text,
                f1_prompts=options.f1_prompts,
            ),
            utility=None if options.utility is None else UtilityTasks(options.utility, options.utility_limit),
            identity=options.identity,
            reference=options.reference,
            baseline=baseline,
            run=RunSettings(
                batch_size=options.batch_size,
                max_tokens_at_once=options.max_tokens_at_once,
                generations_path=generations_path(options.output),
                command=options.command_line,
            ),
            progress=True,
        )
        evaluation.save(options.output)
    columns = {"": evaluation.to_dict()}
    if baseline is not None:
        columns = {"baseline": baseline.result, "this model": evaluation.to_dict()}
    show(evaluation_table(columns))
    if evaluation.versus_baseline is not None:
        show("", versus_table(evaluation.to_dict()))
    sayer(options)(f"written: {options.output}")
