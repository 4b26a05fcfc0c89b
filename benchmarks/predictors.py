"""Does anything that is known of an edit say how long it lasts? What docs/mechanism.md says of predictors.

    efface sweep benchmarks/comparison.yaml -o runs/comparison; python benchmarks/mechanism.py      first
    python benchmarks/predictors.py [--sweep DIR]

Rank correlations over the methods that the comparison kept: from its results, and what `benchmarks/mechanism.py` found
of those it has analysed. Into `benchmarks/results/predictors.json`.
"""

import argparse
from pathlib import Path
from typing import Any

from common import RESULTS, command

from efface.comparison.predictors import correlate, predictors_table
from efface.files.results import read_json, write_json


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sweep", type=Path, default=Path("runs/comparison"), metavar="DIR")
    args = options.parse_args()
    results = read_json(args.sweep / "results.json")
    analyses = read_json(RESULTS / "mechanism.json")["models"]
    rows = correlate(results, {model["name"]: known(model["blocks"]) for model in analyses})
    missing = list(results.get("unfinished", []))
    write_json(RESULTS / "predictors.json", {"rows": rows, "missing": missing, "command": command()})
    print(predictors_table(rows))


def known(blocks: dict[str, Any]) -> dict[str, float]:
    """What an analysis knows of an edit before anybody attacks it."""
    found: dict[str, float | None] = {}
    if "overlap" in blocks:
        edit = blocks["overlap"]["edit"]
        rank = max(edit["left"], key=int)
        found["edit along the forget gradient, writes"] = edit["left"][rank]
        found["edit along the forget gradient, reads"] = edit["right"][rank]
    if "weights" in blocks:
        found["part of the change in the top 1 % of neurons"] = blocks["weights"]["neurons"]["top"]
        found["part of the change in the null space of text"] = blocks["weights"]["null_part"]
    if "certificate" in blocks:
        layers = blocks["certificate"]["layers"]
        found["what a probe still reads, last layer"] = layers[max(layers, key=int)]["edited"]["linear"]["auc_gain"]
    return {name: value for name, value in found.items() if value is not None}


if __name__ == "__main__":
    main()
