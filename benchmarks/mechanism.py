"""Which neurons, modules and states have the methods of the comparison edited? What docs/mechanism.md shows.

    efface sweep benchmarks/comparison.yaml -o runs/comparison         first: it trains and chooses
    python benchmarks/mechanism.py [--entries repo npo ...]
    python benchmarks/mechanism.py --entries repo dpo repselect --only patching --patch 16 --name patching

Each entry's kept arm is scaled to the main budget, as it is compared, and analysed by `efface analyze` on the shipped
held-out pairs, into `runs/NAME`. The figures go to `benchmarks/results/NAME.json`, without the pictures of single
texts. A checkpoint that is not there is trained again from its seed; an entry that edits another's edit, and is not
there, is named and left out.
"""

import argparse
from pathlib import Path

from common import RESULTS, command

from efface.comparison.arms import arms_of, train_arm
from efface.comparison.config import read_config
from efface.files.results import read_json, write_json
from efface.jobs.analyze import analyze
from efface.model.copies import merged
from efface.model.edit import scaled_copy
from efface.model.load import load_model
from efface.model.save import save_model


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sweep", type=Path, default=Path("runs/comparison"), metavar="DIR")
    options.add_argument("--entries", nargs="+", default=None, metavar="NAME", help="default: all that are kept")
    options.add_argument("--patch", type=int, default=0, metavar="N", help="patch every module on N pairs")
    options.add_argument("--only", nargs="+", default=[], metavar="BLOCK", help="default: every block")
    options.add_argument("--config", type=Path, default=Path("benchmarks/comparison.yaml"), help="of the sweep")
    options.add_argument("--name", default="mechanism", help="of what is written")
    args = options.parse_args()
    found, config, output = read_json(args.sweep / "results.json"), read_config(args.config), Path("runs") / args.name
    arms = {arm.name: arm for plan in config.methods if plan.after is None for arm in arms_of(plan)}
    models = {}
    for row in found["kept"]:
        if (
            row["budget"] != found["main"]
            or row["entry"] in models
            or row["entry"] not in (args.entries or [row["entry"]])
        ):
            continue
        trained = args.sweep / "arms" / row["arm"] / "model"
        if not (trained / "results.json").exists():
            if row["arm"] not in arms:
                print(f"{row['entry']}: {trained} is not there, and edits another's edit")
                continue
            train_arm(config, arms[row["arm"]], config.base, args.sweep, print)
        models[row["entry"]] = scaled(trained, config.base, row["a"], output / "models" / row["entry"])
    results = analyze(
        models,
        config.base,
        output=output / "analysis",
        patched_pairs=args.patch,
        only=args.only,
        resume=True,
        command=command(),
        say=print,
    )
    for model in results["models"]:
        model["model"] = model["name"]
        model["blocks"].get("drift", {}).pop("pictures", None)
        for neuron in model["blocks"].get("neurons", {}).get("top", []):
            neuron.pop("words")
    write_json(RESULTS / f"{args.name}.json", results)


def scaled(trained: Path, base: str, a: float, output: Path) -> str:
    """Base + a edit as a checkpoint, unless it is there."""
    if not (output / "config.json").exists():
        edited, tokenizer = load_model(trained)
        save_model(scaled_copy(merged(edited), load_model(base)[0], a), tokenizer, output)
    return str(output)


if __name__ == "__main__":
    main()
