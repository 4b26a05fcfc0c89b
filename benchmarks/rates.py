"""At what learning rate does a baseline work? A few settings each of DPO, RMU and circuit breakers.

    python benchmarks/rates.py [--arms NAME ...]

A baseline whose own objective does not move at its defaults says nothing beside REPO. Every setting trains
SmolLM2-135M-Instruct for the default 48 steps on the shipped pairs and is measured on 96 toxic prompts of `rtp_mixed`
(2 nucleus samples each, two judges) and 5,000 tokens of WikiText-2. Of each method the setting of the lowest share is
chosen whose own objective has moved (`common.MOVED`) and whose perplexity has risen by no more than 5 %; the chosen
ones are the methods' defaults. Finished settings are in `benchmarks/results/rates.json` and not run again.
"""

from typing import Any

from audited import MAX_INCREASE, trained
from common import RESULTS, command, moved, parser, tuning_prompts, wikitext

from efface.evaluation.measure import evaluate
from efface.evaluation.settings import OrdinaryText
from efface.files.environment import environment
from efface.files.results import read_json, write_json
from efface.generation.decoding import Decoding
from efface.model.load import DEFAULT_MODEL, load_model

FILE = RESULTS / "rates.json"
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "dpo": {f"lr {rate:g}": {"learning_rate": rate} for rate in (1e-5, 2e-5, 4e-5)},
    "rmu": {f"lr {rate:g}": {"learning_rate": rate} for rate in (1e-3, 2e-3, 5e-3)},
    "circuit_breakers": {
        f"lr 0.001, w_retain {weight:g}": {"learning_rate": 1e-3, "w_retain": weight} for weight in (0.5, 2.0, 5.0)
    },
}


def chosen(content: dict[str, Any], method: str) -> str | None:
    """The name of the method's least toxic setting that moved its objective within the budget, None if none did."""
    limit = content["models"]["base"]["result"]["perplexity"]["value"] * (1 + MAX_INCREASE)
    fitting = {
        name: entry["result"]["toxicity"]["share"]
        for name, entry in content["models"].items()
        if entry.get("method") == method
        and moved(method, entry["history"]).has
        and entry["result"]["perplexity"]["value"] <= limit
    }
    return min(fitting, key=lambda name: fitting[name]) if fitting else None


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--arms", nargs="+", default=None, metavar="NAME", help='such as base "dpo, lr 2e-05"')
    options.add_argument("--judge", default="judge:runs/judge", help="the second judge; see benchmarks/baselines.py")
    args = options.parse_args()
    prompts, documents = tuning_prompts(args.data, 96), wikitext(args.data)
    content = read_json(FILE) if FILE.exists() else {"schema": 1, "models": {}, "chosen": {}}
    base, tokenizer = load_model(DEFAULT_MODEL)
    arms = [("base", "base", {})]
    arms += [(f"{method}, {name}", method, given) for method, arm in SETTINGS.items() for name, given in arm.items()]
    for name, method, given in arms:
        if name in content["models"] or (args.arms is not None and name not in args.arms):
            continue
        model, entry = (base, {}) if name == "base" else trained(method, given)
        result = evaluate(
            model, processing_class=tokenizer, prompts=prompts, decoding=Decoding(samples=2),
            text=OrdinaryText(documents, max_tokens=5_000),
            scorer=["alt-profanity-check", args.judge], reference=base,
        ).to_dict()  # fmt: skip
        result.pop("generations", None)
        result |= {"model": DEFAULT_MODEL, "environment": environment(seed=0, model=model, command=command())}
        found = "" if name == "base" else moved(method, entry["history"]).words
        content["models"][name] = {**entry, "moved": found, "result": result}
        content["chosen"] = {kind: chosen(content, kind) for kind in SETTINGS}
        write_json(FILE, content)
        share, perplexity = result["toxicity"]["share"], result["perplexity"]["value"]
        print(f"{name:40} share {share:.3f}, perplexity {perplexity:.2f}, {found}", flush=True)
    print(content["chosen"])


if __name__ == "__main__":
    main()
