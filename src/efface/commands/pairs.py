"""`efface pairs MODEL -o PAIRS.jsonl`"""

import argparse
from typing import Any

from efface.commands.options import MODEL_HELP, add_output_file


def add(commands: Any) -> None:
    command = commands.add_parser("pairs", help="build preference pairs from the model itself")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_output_file(command)
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
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from efface.evaluation.scorers import load_scorer
    from efface.models import load_model
    from efface.pairs.builder import BuilderConfig, build_pairs
    from efface.pairs.sources import antiexpert, in_context, sample_source, toxic_texts
    from efface.rows import load_texts

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
