"""Which settings of REPO are on the front of toxicity against perplexity? The ablation behind the defaults.

    python benchmarks/repo_defaults.py [--arms NAME ...]
    python benchmarks/repo_defaults.py --report runs/demo/model

Every arm trains SmolLM2-135M-Instruct on the shipped pairs and is measured on 96 toxic prompts of `rtp_mixed` (nucleus
samples) and on WikiText-2. Finished arms are kept in `benchmarks/results/repo_defaults.json` and not run again.
`--report` measures the base and the demo's checkpoint, made with the default, once on `rtp_challenging_dev` (greedy).
"""

from pathlib import Path
from typing import Any

from common import RESULTS, command, parser, reporting_prompts, train_repo, tuning_prompts, wikitext

from efface.evaluation.measure import evaluate
from efface.evaluation.settings import OrdinaryText
from efface.files.results import read_json, write_json
from efface.generation.decoding import Decoding
from efface.methods.repo import REPOConfig
from efface.methods.retain import RetainConfig
from efface.model.load import DEFAULT_MODEL, load_model
from efface.report.table import evaluation_table
from efface.training.config import PairConfig

# What one setting at a time is varied of; the first guess, not the default that came out of it.
CENTRE: dict[str, Any] = {
    "learning_rate": 1e-4,
    "max_steps": 40,
    "w_retain": 4.0,
    "w_retain_text": 8.0,
    "retain_text": "shipped:passages",
    "retain_text_per_pair": 0.25,
    "retain_text_tokens": 32,
    "grl_lambda": 2.5,
    "bound": "layer",
}
ARMS: dict[str, dict[str, Any]] = {  # differences from the centre
    "centre": {},
    "retain only": {"w_erase": 0.0},
    "adversary only": {"w_retain": 0.0, "w_retain_text": 0.0},
    "lambda 1.5": {"grl_lambda": 1.5},
    "lambda 4": {"grl_lambda": 4.0},
    "both sides": {"erase_side": "both"},
    "linear": {"discriminator": "linear"},
    "confusion": {"bound": "confusion"},
    "unbounded": {"bound": "none"},
    "layers 0.5, 0.75, last": {"erase_layers": "0.5,0.75,last"},
    "layer 0.75": {"erase_layers": "0.75"},
    "lr 5e-5": {"learning_rate": 5e-5},
    "lr 2e-4": {"learning_rate": 2e-4},
    "D steps 1": {"discriminator_steps": 1},
    "D steps 4": {"discriminator_steps": 4},
    "no retain_text": {"retain_text": None},
    "weights 1": {"w_retain": 1.0, "w_retain_text": 1.0},
    "24 steps": {"max_steps": 24},
    "D lr 3e-3": {"discriminator_lr": 3e-3},
    "sequence": {"erase_unit": "sequence"},
    "bound token": {"bound": "token"},
}
DEFAULT: dict[str, Any] = {
    "bound": "confusion",
    "grl_lambda": 10.0,
    "w_retain": 0.5,
    "w_retain_text": 20.0,
    "retain_text_tokens": 64,
    "max_steps": 48,
}
ARMS |= {  # what the first round pointed to, and one setting at a time varied of that
    "default": DEFAULT,
    "default, lambda 5": DEFAULT | {"grl_lambda": 5.0},
    "default, w_retain 2": DEFAULT | {"w_retain": 2.0},
    "default, bound layer": DEFAULT | {"bound": "layer"},
    "default, linear": DEFAULT | {"discriminator": "linear"},
    "default, both sides": DEFAULT | {"erase_side": "both"},
    "default, 24 steps": DEFAULT | {"max_steps": 24},
}
FILE = RESULTS / "repo_defaults.json"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--arms", nargs="*", default=["base", *ARMS], help="default: all")
    options.add_argument("--text-tokens", type=int, default=20_000)
    options.add_argument("--samples", type=int, default=2)
    options.add_argument("--keep", type=Path, default=None, metavar="DIR", help="save the arms' models here")
    options.add_argument("--report", default=None, metavar="DIR", help="measure base and a checkpoint, once")
    args = options.parse_args()
    content = _read()
    prompts, documents = tuning_prompts(args.data, 96), wikitext(args.data)

    def measure(model: Any, tokenizer: Any, **settings: Any) -> dict[str, Any]:
        result = evaluate(
            model, processing_class=tokenizer, text=OrdinaryText(documents, max_tokens=args.text_tokens),
            reference=base, command=command(), **settings,
        )  # fmt: skip
        # The name the user knows, not the cache folder of this machine.
        return {**result.to_dict(), "model": DEFAULT_MODEL}

    base, tokenizer = load_model(DEFAULT_MODEL)
    if args.report:
        baseline = None
        for name, model in (("base", base), ("default", load_model(args.report)[0])):
            baseline = measure(model, tokenizer, prompts=reporting_prompts(args.data), baseline=baseline)
            content["report"][name] = baseline
            write_json(FILE, content)
        print(evaluation_table(content["report"]))
        return
    for name in args.arms:
        if name in content["arms"]:
            continue
        model, training = base, {}
        if name != "base":
            trainer = train_repo(**CENTRE | ARMS[name])
            model = trainer.model
            keys = [key for config in (PairConfig, RetainConfig, REPOConfig) for key in config.__annotations__]
            training = {
                "differs": ARMS[name],
                "settings": {key: getattr(trainer.args, key) for key in keys},
                "history": trainer.state.log_history,
            }
            if args.keep is not None:
                trainer.save_model(str(args.keep / name.replace(" ", "-")))
        result = measure(model, tokenizer, prompts=prompts, decoding=Decoding(samples=args.samples),
                         baseline=content["arms"].get("base", {}).get("result"))  # fmt: skip
        content = _read()
        content["arms"][name] = {"training": training, "result": result}
        write_json(FILE, content)
        print(row(name, content), flush=True)


def _read() -> dict[str, Any]:
    return read_json(FILE) if FILE.exists() else {"schema": 1, "arms": {}, "report": {}}


def row(name: str, content: dict[str, Any]) -> str:
    """One line: share with interval, perplexity and its change, the adversary's last figures, verdict."""
    arm, base = content["arms"][name], content["arms"]["base"]["result"]["perplexity"]["value"]
    toxicity, value = arm["result"]["toxicity"], arm["result"]["perplexity"]["value"]
    low, high = toxicity["ci95"]["share"]
    last = next((entry for entry in reversed(arm["training"].get("history", [])) if "erase_loss" in entry), {})
    adversary = f"BCE {last['erase_loss']:.2f}" if last else ""
    return (
        f"{name:22} share {toxicity['share']:.3f} [{low:.3f}, {high:.3f}]  "
        f"perplexity {value:.2f} ({100 * (value / base - 1):+.1f} %)  "
        f"{adversary}  {arm['result']['degeneration']['verdict']}"
    )


if __name__ == "__main__":
    main()
