"""Make the data inside the package from the embedded model: pairs, held-out prompts, ordinary passages.

    python scripts/make_shipped.py --toxic-text TEXTS.jsonl [...] [--output src/efface/data/shipped]
    python scripts/make_shipped.py --resplit

Everything that is written was sampled from the model or is a template of `shipped_prompts.py`. The labelled toxic
texts (JSON lines with `text`) only fine-tune the throw-away anti-expert; none of them is copied. About 40 minutes on 2
cores; an interrupted run is continued by the same command.

`--resplit` takes the pairs that are there through the builder's filters of today (a `chosen` with a newline is written
anew without one, which needs the model, about two minutes) and splits them again (`shipped_split.py`).
"""

import argparse
import functools
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shipped_prompts import openers, scenes, text_openers
from shipped_split import split

from efface.evaluation.toxicity import summarize
from efface.files.jsonl import Row, read_jsonl
from efface.files.results import read_json, write_json, write_jsonl
from efface.generation.generate import generate
from efface.model.load import DEFAULT_MODEL, load_model
from efface.pairs.builder import build_pairs
from efface.pairs.config import BuilderConfig
from efface.pairs.filters import NEWLINE, newline_tokens
from efface.pairs.report import BuildReport
from efface.pairs.source import Source
from efface.pairs.sources.sample import sample_source
from efface.pairs.style import shortcuts, style_auc
from efface.pairs.toxic_copy import antiexpert, in_context, toxic_texts
from efface.scoring import DEFAULT_SCORER, load_scorer
from efface.scoring.scorer import score

SEED = 20261124
EXPERT = {"steps": 24, "learning_rate": 1e-4, "batch_size": 12}
DECODING = {"samples": 4, "temperature": 0.45, "top_p": 1.0, "top_k": 40}
PROVENANCE = {"how": "antiexpert", "antiexpert": EXPERT, "decoding": DECODING, "model": DEFAULT_MODEL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--toxic-text", nargs="+", help="JSON lines with text and toxic, label or spans")
    either.add_argument("--resplit", action="store_true", help="only filter and split anew the pairs that are there")
    parser.add_argument("--output", type=Path, default=Path("src/efface/data/shipped"))
    parser.add_argument("--prompts", type=int, default=800, help="encyclopedia-like prompts to try")
    parser.add_argument("--pairs", type=int, default=608, help="stop at so many pairs")
    parser.add_argument("--passages", type=int, default=256)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.output.mkdir(parents=True, exist_ok=True)
    if args.resplit:
        resplit(args.output)
    else:
        make(args)


def make(args: argparse.Namespace) -> None:
    """Everything, from the model and the labelled texts."""
    model, tokenizer = load_model(DEFAULT_MODEL)
    scorer = load_scorer(DEFAULT_SCORER)
    beginnings = openers(SEED)

    held_out = [{"prompt": prompt} for prompt in scenes("held_out", SEED)[:128]]
    base_file = args.output / "base.json"  # what is done is kept until meta.json has it
    if not base_file.exists():
        write_jsonl(args.output / "prompts.jsonl", held_out)
        texts = generate(model, tokenizer, [row["prompt"] for row in held_out], samples=4, seed=SEED, progress=True)
        scores = score(scorer, [text for row in texts for text in row]).reshape(len(texts), 4)
        base = summarize(scores, scorer=scorer.name, decoding="nucleus(top_p=0.9, temperature=1.0)")
        write_json(base_file, base.to_dict())
    print(json.dumps({"base on held-out prompts": read_json(base_file)}))

    if not (args.output / "passages.jsonl").exists():
        starts = beginnings[: args.passages]
        samples = generate(
            model, tokenizer, starts, max_new_tokens=56, do_sample=True, top_p=1.0, seed=SEED, progress=True
        )
        passages = [{"text": start + row[0]} for start, row in zip(starts, samples, strict=True)]
        kept = [
            row
            for row, value in zip(passages, score(scorer, [row["text"] for row in passages]), strict=True)
            if value < 0.3
        ]
        write_jsonl(args.output / "passages.jsonl", kept)

    if not (args.output / "text.jsonl").exists():
        starts = text_openers(SEED)[:40]
        samples = generate(
            model, tokenizer, starts, max_new_tokens=224, do_sample=True, top_p=1.0, seed=SEED, progress=True
        )
        write_jsonl(
            args.output / "text.jsonl", [{"text": start + row[0]} for start, row in zip(starts, samples, strict=True)]
        )

    starts = beginnings[: args.prompts]
    endings = generate(
        model, tokenizer, starts, max_new_tokens=5, do_sample=True, top_p=0.9, seed=SEED + 1, progress=True
    )
    prompts = [(start + row[0]).rstrip() for start, row in zip(starts, endings, strict=True)]
    provoking = scenes("training", SEED)
    # Spread evenly, so that a limit or an interruption leaves the same mixture.
    step = max(len(prompts) // len(provoking), 1)
    mixed = [
        p
        for i, prompt in enumerate(prompts)
        for p in ([prompt, provoking.pop()] if i % step == 0 and provoking else [prompt])
    ]

    toxic = toxic_texts(args.toxic_text, scorer)
    print(json.dumps({"clean toxic sentences": len(toxic)}))
    toxic = in_context(toxic, [row["text"] for row in read_jsonl(args.output / "passages.jsonl")], seed=SEED)

    @functools.cache
    def expert_source() -> Source:  # trained only when there is something left to sample
        expert = antiexpert(model, tokenizer, toxic, seed=SEED, progress=True, **EXPERT)
        return sample_source(expert, tokenizer, **DECODING, without=newline_tokens(tokenizer))

    def source(prompts: Sequence[str], seed: int) -> list[list[str]]:
        return expert_source()(prompts, seed)

    everything = args.output / "all.jsonl"
    report = build_pairs(
        model, mixed, source, output=everything, processing_class=tokenizer,
        config=BuilderConfig(seed=SEED), provenance=PROVENANCE,
        resume=True, limit=args.pairs, command="python scripts/make_shipped.py", progress=True,
    )  # fmt: skip
    write_split(args.output, everything, report, {"base_on_held_out_prompts": read_json(base_file)})
    base_file.unlink()


def resplit(output: Path) -> None:
    """Filter and split anew the pairs that are there."""
    known = read_json(output / "meta.json")
    rows = read_jsonl(output / "heldout.jsonl") + read_jsonl(output / "train.jsonl")
    model, tokenizer = load_model(DEFAULT_MODEL)
    rejected = {row["prompt"]: row["rejected"] for row in rows}
    everything = output / "all.jsonl"
    report = build_pairs(
        model, list(rejected), lambda prompts, seed: [[rejected[prompt]] for prompt in prompts],
        output=everything, processing_class=tokenizer,
        config=BuilderConfig(seed=SEED, compare_with_samples=False), provenance=PROVENANCE,
        given={row["prompt"]: {"chosen": row["chosen"]} for row in rows if not NEWLINE.search(row["chosen"])},
        resume=True, command="python scripts/make_shipped.py --resplit", progress=True,
    )  # fmt: skip
    more = {"base_on_held_out_prompts": known["base_on_held_out_prompts"]}
    # What the pairs were before: of the first build, however often they are split again.
    more["first_build"] = known.get("first_build") or {
        key: known[key] for key in ("n_prompts", "counts", "style_auc", "settings", "environment")
    } | {"shortcuts": _sides(rows, shortcuts)}
    write_split(output, everything, report, more)


def _sides(rows: list[Row], measure: Callable[[list[str], list[str]], Any]) -> Any:
    return measure([row["chosen"] for row in rows], [row["rejected"] for row in rows])


def write_split(output: Path, everything: Path, report: BuildReport, more: Row) -> None:
    """Both parts and meta.json; what was needed on the way is removed."""
    made = split(read_jsonl(everything))
    write_jsonl(output / "heldout.jsonl", made.heldout)
    write_jsonl(output / "train.jsonl", made.train)
    meta = {
        **report.to_dict(),
        "script": "scripts/make_shipped.py",
        "seed": SEED,
        "split": made.figures(),
        "train": {"style_auc": _sides(made.train, style_auc), "shortcuts": _sides(made.train, shortcuts)},
        **more,
    }
    write_json(output / "meta.json", meta)
    everything.unlink()
    everything.with_suffix(".meta.json").unlink()
    print(json.dumps({key: meta[key] for key in ("counts", "style_auc", "split")}))


if __name__ == "__main__":
    main()
