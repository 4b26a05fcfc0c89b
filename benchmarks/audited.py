"""Which models does docs/robustness.md audit? DPO and REPO, each at the least toxic of a few settings of like utility.

    python benchmarks/audited.py

Every setting trains SmolLM2-135M-Instruct on the shipped pairs and is measured on 96 toxic prompts of `rtp_mixed` (2
nucleus samples each) and on WikiText-2. Of each method the setting of the lowest share is chosen whose perplexity has
risen by no more than 5 %. The models are kept under `runs/audited/`, beside the documents that audits measure
perplexity on; finished settings are in `benchmarks/results/audited.json` and not run again.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, command, parser, tuning_prompts, wikitext

from efface.evaluation.measure import evaluate
from efface.evaluation.settings import OrdinaryText
from efface.files.environment import environment
from efface.files.results import read_json, write_json, write_jsonl
from efface.generation.decoding import Decoding
from efface.methods import PLAIN, load_method
from efface.model.load import DEFAULT_MODEL, load_model

FILE = RESULTS / "audited.json"
PAIRS = "shipped:train"
MAX_INCREASE = 0.05
PASSAGES = {"retain_text": "shipped:passages", "w_retain_text": 20.0, "retain_text_tokens": 64}  # as in PLAIN
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "repo": {
        "default": PLAIN,
        "lr 2e-4": {**PLAIN, "learning_rate": 2e-4},
    },
    "retain": {"default": {}},
    "dpo": {
        "lr 1e-5": {"learning_rate": 1e-5},
        "lr 2e-5": {"learning_rate": 2e-5},
        "lr 5e-5, passages": {"learning_rate": 5e-5, **PASSAGES},
    },
}


def trained(method: str, settings: dict[str, Any], output: Path | None = None) -> tuple[Any, dict[str, Any]]:
    """The default model after the method, and what its training logged; saved to `output` if there is one."""
    model, tokenizer = load_model(DEFAULT_MODEL)
    kind: Any = load_method(method)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        given = {"max_steps": 48, "logging_steps": 4, "disable_tqdm": True} | settings
        trainer = kind(model, kind.config_class(scratch, **given), PAIRS, processing_class=tokenizer)
        trainer.train()
        if output is not None:
            trainer.save_model(str(output))
    record = trainer.record()
    return trainer.model.eval(), {
        "method": method,
        "settings": settings,
        "steps": record["steps"],
        "seconds": round(time.monotonic() - start, 1),
        "history": record.get("history"),
    }


def chosen(content: dict[str, Any], method: str) -> str | None:
    """The directory's name of the method's least toxic setting within the budget, None if there is none."""
    limit = content["models"]["base"]["result"]["perplexity"]["value"] * (1 + MAX_INCREASE)
    fitting = {
        name: entry["result"]["toxicity"]["share"]
        for name, entry in content["models"].items()
        if entry.get("method") == method and entry["result"]["perplexity"]["value"] <= limit
    }
    return min(fitting, key=lambda name: fitting[name]) if fitting else None


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--text-tokens", type=int, default=20_000)
    options.add_argument("--arms", nargs="+", default=None, metavar="NAME", help='such as base "dpo, lr 2e-5"')
    options.add_argument("--keep", type=Path, default=Path("runs/audited"), metavar="DIR")
    args = options.parse_args()
    prompts, documents = tuning_prompts(args.data, 96), wikitext(args.data)
    write_jsonl(args.keep / "wikitext.jsonl", ({"text": text} for text in documents))
    content = read_json(FILE) if FILE.exists() else {"schema": 1, "models": {}, "chosen": {}}
    base, tokenizer = load_model(DEFAULT_MODEL)
    arms = [("base", "base", {})]
    arms += [(f"{method}, {name}", method, given) for method, arm in SETTINGS.items() for name, given in arm.items()]
    for name, method, given in arms:
        if args.arms is not None and name not in args.arms:
            continue
        folder = args.keep / name.replace(", ", "-").replace(" ", "-")
        if name in content["models"] and (name == "base" or folder.is_dir()):
            continue
        model, entry = (base, {}) if name == "base" else trained(method, given, folder)
        result = evaluate(
            model, processing_class=tokenizer, prompts=prompts, decoding=Decoding(samples=2),
            text=OrdinaryText(documents, max_tokens=args.text_tokens), reference=base,
            baseline=content["models"].get("base", {}).get("result"),
        ).to_dict()  # fmt: skip
        result |= {"model": DEFAULT_MODEL, "environment": environment(seed=0, model=model, command=command())}
        content["models"][name] = {**entry, "result": result}
        content["chosen"] = {kind: chosen(content, kind) for kind in SETTINGS}
        write_json(FILE, content)
        print(
            f"{name:24} share {result['toxicity']['share']:.3f}, perplexity {result['perplexity']['value']:.2f}",
            flush=True,
        )
    print(content["chosen"])


if __name__ == "__main__":
    main()
