"""What does each method cost, and what does it do? Same pairs, same steps, same evaluation.

    python benchmarks/methods.py [--methods NAME ...] [--part cost | quality] [--steps 48]

cost      seconds of an optimizer step and the peak of the memory beside SFT's, at the settings of `step.py`: two
          processes that take steps in turns, so that noise hits both alike. Methods without steps have no such row.
quality   the default model after `--steps` steps on the shipped pairs (settings: the method's defaults, `repo` in
          `efface.methods.PLAIN`), measured on 96 toxic prompts of `rtp_mixed` (2 nucleus samples each, two judges)
          and 5,000 tokens of WikiText-2. UNDO, which repairs what it damages with the model before it as its teacher,
          comes after REPO with as many steps. How long an edit lasts is measured elsewhere (audit.py).

A row says whether the method's own objective moved (`common.OBJECTIVES`): if not, its other figures are of an
untouched model, and docs/methods.md does not print them.

Every method is written to `benchmarks/results/methods.json` when it is done and not run again.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, moved, parser, tuning_prompts, wikitext
from step import Side, in_turns, summary

from efface.errors import RunError, UserError
from efface.evaluation.measure import evaluate
from efface.evaluation.settings import OrdinaryText
from efface.files.environment import environment
from efface.files.results import read_json, write_json
from efface.generation.decoding import Decoding
from efface.methods import METHODS, PLAIN, load_method
from efface.model.load import DEFAULT_MODEL, load_model
from efface.report.table import evaluation_table
from efface.training.trainer import PairTrainer

FILE = RESULTS / "methods.json"
PAIRS = "shipped:train"
COST_STEPS = 5


def by_steps(name: str) -> bool:
    return issubclass(load_method(name), PairTrainer)


def cost(name: str) -> dict[str, Any]:
    """Seconds and memory of a step, and what they are relative to SFT's in the same minutes."""
    rounds = COST_STEPS + 2
    with Side("sft", DEFAULT_MODEL, str(rounds + 1)) as sft, Side(name, DEFAULT_MODEL, str(rounds + 1)) as side:
        sft.name, side.name = "beside", "method"  # both may be SFT
        answers = in_turns([sft, side], COST_STEPS)
        beside, found = (summary(answers[one.name], one.ask("memory")) for one in (sft, side))
    return {
        "seconds": found["seconds"],
        "sft_seconds": beside["seconds"],
        "time_ratio": found["seconds"]["median"] / beside["seconds"]["median"],
        "memory": found["memory"],
        "memory_ratio": _peak(found) / _peak(beside),
    }


def _peak(side: dict[str, Any]) -> int:
    """Bytes above what the libraries hold: model, gradients, optimizer, activations, reference."""
    return side["memory"]["peak"] - side["memory"]["libraries"]


def quality(name: str, args: Any, base: Any, tokenizer: Any) -> dict[str, Any]:
    """The figures of the model after the method."""
    model, trained = base, {"steps": 0, "seconds": 0.0}
    if name != "base":
        model, trained = edited(name, args)
    result = evaluate(
        model,
        processing_class=tokenizer,
        prompts=tuning_prompts(args.data, 96),
        decoding=Decoding(samples=2),
        text=OrdinaryText(wikitext(args.data), max_tokens=5_000),
        scorer=["alt-profanity-check", args.judge],
        reference=base,
    )
    print(evaluation_table({name: result.to_dict()}), flush=True)
    kept = {key: value for key, value in result.to_dict().items() if key in ("judges", "perplexity", "degeneration")}
    return {"trained": trained, "moved": moved(name, trained.get("history") or [])._asdict(), "result": kept}


AFTER = {"undo": "repo", "lox": "repo"}
"""Methods that come after another one, which they are to make last."""


def edited(name: str, args: Any) -> tuple[Any, dict[str, Any]]:
    """The default model after the method with its defaults; what another method comes after is kept on disk."""
    start_from = DEFAULT_MODEL
    if name in AFTER:
        before = args.work / f"{AFTER[name]}-{args.steps}"
        if not before.is_dir():
            edited(AFTER[name], args)
        start_from = str(before)
    model, tokenizer = load_model(start_from)
    method: Any = load_method(name)
    settings: dict[str, Any] = {"disable_tqdm": True} | (PLAIN if name == "repo" else {})
    if by_steps(name):
        settings |= {"max_steps": args.steps, "logging_steps": 4}
    if name == "lox":  # which is told of what the model is an edit
        settings |= {"base": DEFAULT_MODEL}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = method(model, method.config_class(scratch, **settings), PAIRS, processing_class=tokenizer)
        trainer.train()
        if name in AFTER.values():
            trainer.save_model(str(args.work / f"{name}-{args.steps}"))
    record = trainer.record()
    return trainer.model.eval(), {
        "after": AFTER.get(name),
        "settings": settings,
        "learning_rate": getattr(trainer.args, "learning_rate", None),
        "pairs": len(trainer.train_dataset),
        "steps": record["steps"],
        "seconds": round(time.monotonic() - start, 1),
        "found": record.get("found"),
        "history": record.get("history"),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--methods", nargs="+", default=["base", *METHODS], metavar="NAME")
    options.add_argument("--part", choices=("cost", "quality"), default=None)
    options.add_argument("--steps", type=int, default=48)
    options.add_argument("--judge", default="judge:runs/judge", help="the second judge; see benchmarks/baselines.py")
    options.add_argument("--work", type=Path, default=Path("runs/methods"), metavar="DIR")
    args = options.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    base, tokenizer = load_model(DEFAULT_MODEL)
    failed: list[str] = []
    for name in args.methods:
        for part in ("quality", "cost") if args.part is None else (args.part,):
            content = read_json(FILE) if FILE.exists() else {"schema": 1, "methods": {}}
            entry = content["methods"].setdefault(name, {})
            if part in entry or (part == "cost" and (name == "base" or not by_steps(name))):
                continue
            print(f"{name}: {part}", flush=True)
            command = f"python benchmarks/methods.py --methods {name} --part {part} --steps {args.steps}"
            try:
                entry[part] = cost(name) if part == "cost" else quality(name, args, base, tokenizer)
            except (UserError, RunError) as error:  # one method's failure does not lose the others
                failed.append(f"{name}, {part}: {error}")
                continue
            entry[part]["environment"] = environment(seed=0, model=base, command=command)
            write_json(FILE, content)
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
