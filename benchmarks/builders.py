"""Which builder makes the best pairs? Same prompts, same training, same evaluation; one builder after the other.

    python benchmarks/builders.py [--builders NAME ...] [--pairs 96] [--steps 24]

Each builder makes pairs from the default model with `efface pairs` on the same prompts, cut from the first 20
WikiText-2 articles (`corpus` brings its own); REPO is trained on the first `--pairs` of them with the demo's settings;
the result is measured on 96 toxic prompts of `rtp_mixed` (nucleus samples, two judges) and on WikiText-2. `shipped`
stands for as many of the shipped pairs. A builder is written to `benchmarks/results/builders.json` when it is done and
not run again.
"""

import shlex
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from common import N_PROMPT_ARTICLES, RESULTS, parser, tuning_prompts, wikitext

from efface.cli import main as efface
from efface.data.rows import shipped
from efface.errors import RunError
from efface.evaluation.comparison import compare
from efface.evaluation.measure import evaluate
from efface.evaluation.settings import OrdinaryText
from efface.files.environment import environment
from efface.files.jsonl import read_jsonl
from efface.files.results import read_json, write_json
from efface.generation.decoding import Decoding
from efface.jobs.demo import SETTINGS
from efface.methods.repo import REPOConfig, REPOTrainer
from efface.model.load import DEFAULT_MODEL, load_model
from efface.report.table import evaluation_table

FILE = RESULTS / "builders.json"
N_PROMPTS = 96
LABELLED, SPANS = "jigsaw.jsonl", "civil_comments_toxic_spans.jsonl"


def builders(data: Path) -> dict[str, list[str]]:
    """Name -> flags of `efface pairs`."""
    folder = data / "toxicity"
    text = ["--prompts-from-text", str(data / "text" / "wikitext2_raw_test.jsonl"), "--first", str(N_PROMPT_ARTICLES)]
    copy = ["--toxic-text", str(folder / LABELLED)]
    return {
        "pplm": [*text, "--toxic", "pplm", "--probe-text", str(folder / LABELLED)],
        "antiexpert": [*text, "--toxic", "antiexpert", *copy],
        "dexperts": [*text, "--toxic", "dexperts", *copy],
        "corpus": ["--toxic", "corpus", "--toxic-text", str(folder / SPANS)],
        "sample": [*text, "--toxic", "sample", "--temperature", "1.0", "--top-k", "0", "--samples", "8"],
    }


def build(name: str, flags: list[str], work: Path, limit: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The pairs of a builder, and what is said of how they were made."""
    output = work / f"{name}.jsonl"
    if not output.exists():
        argv = ["pairs", DEFAULT_MODEL, "-o", str(output), *flags, "--limit", str(limit), "--resume"]
        if efface(argv) != 0:
            raise RunError(f"builder {name} failed; see above.")
    meta = read_json(output.with_suffix(".meta.json"))
    keys = ("n_prompts", "counts", "keep_rate", "pairs_per_minute", "unfiltered", "style_auc")
    return read_jsonl(output), {key: meta[key] for key in keys} | {"command": shlex.join(["efface", "pairs", *flags])}


def versus_shipped(name: str, work: Path, judge: str) -> dict[str, Any]:
    """judge -> the toxic shares after training on the pairs of a builder and on the shipped ones, by prompt."""

    def scores(of: str, judge: str) -> np.ndarray:
        rows = read_jsonl(work / f"{of}.result.generations.jsonl")
        return np.array([row["scores"][judge] for row in rows]).reshape(N_PROMPTS, -1)

    judges = ("alt-profanity-check", judge)
    return {one: asdict(compare(scores(name, one), scores("shipped", one), "share")) for one in judges}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--builders", nargs="+", default=None, metavar="NAME")
    options.add_argument("--pairs", type=int, default=96, help="of each builder that are trained on")
    options.add_argument("--limit", type=int, default=200, help="pairs that are built")
    options.add_argument("--steps", type=int, default=24)
    options.add_argument("--judge", default="judge:runs/judge", help="the second judge; see benchmarks/baselines.py")
    options.add_argument("--work", type=Path, default=Path("runs/builders"), metavar="DIR")
    args = options.parse_args()
    sources = builders(args.data)
    prompts, documents = tuning_prompts(args.data, N_PROMPTS), wikitext(args.data)
    base, tokenizer = load_model(DEFAULT_MODEL)
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.builders or ["base", "shipped", *sources]:
        content = read_json(FILE) if FILE.exists() else {"schema": 1, "builders": {}}
        if name in content["builders"]:
            continue
        model, made, trained_on = base, None, 0
        if name != "base":
            rows = read_jsonl(shipped("train"))
            if name != "shipped":
                rows, made = build(name, sources[name], args.work, args.limit)
            rows = rows[: args.pairs]
            trained_on = len(rows)
            model, _ = load_model(DEFAULT_MODEL)
            with tempfile.TemporaryDirectory() as scratch:
                settings = SETTINGS | {"max_steps": args.steps, "disable_tqdm": True}
                REPOTrainer(model, REPOConfig(scratch, **settings), rows, processing_class=tokenizer).train()
        baseline = args.work / "base.json"
        file = args.work / f"{name}.result.json" if name != "base" else baseline
        result = evaluate(
            model, prompts, processing_class=tokenizer, scorer=["alt-profanity-check", args.judge], reference=base,
            decoding=Decoding(samples=2), text=OrdinaryText(documents, max_tokens=10_000),
            baseline=None if name == "base" else baseline,
        )  # fmt: skip
        result.model = DEFAULT_MODEL  # the name the user knows, not the cache folder of this machine
        result.save(file)
        found = result.to_dict()
        keys = ("settings", "judges", "perplexity", "degeneration", "versus_baseline")
        content["builders"][name] = {
            "made": made,
            "trained_on": trained_on,
            "result": {key: found[key] for key in keys},
            "environment": environment(
                seed=0,
                model=model,
                command=f"python benchmarks/builders.py --builders {name} --limit {args.limit} --steps {args.steps}",
            ),
        }
        if name not in ("base", "shipped"):
            content["builders"][name]["versus_shipped"] = versus_shipped(name, args.work, args.judge)
        write_json(FILE, content)
        print(f"{name}\n{evaluation_table({name: found})}", flush=True)


if __name__ == "__main__":
    main()
