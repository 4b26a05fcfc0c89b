"""What does `--withstand` cost a step of `repo`, in time and memory? Each kind beside a plain step, in turns.

    python benchmarks/withstand.py [--kinds relearn:1.2e-3/4/4 ...] [--steps 8] [--json OUT]

Settings and sides are those of `step.py`, here with the passages that `repo` retains by default. A plain step is that
of the erasure alone; `default` is all that `efface train repo` does by default, the anticipated attacker and NPO. One
row is TRL's `DPOTrainer` with its reference precomputed, beside the same plain step. The time ratio is one
of *means*: a direction or an adapter is made in one of several steps, of whose number `--steps` must be a multiple.
`more_memory` is what the peak, above parameters, gradients and optimizer state, has more than that of a plain step.
What is measured is written after each kind, and not measured again.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from common import RESULTS, command
from step import GB, WARM_UP, Side, in_turns, summary
from step_workers import DEFAULT

from efface.files.environment import environment
from efface.files.results import read_json, write_json
from efface.model.load import DEFAULT_MODEL

TRL = "trl-precomputed"
KINDS = (
    DEFAULT,
    "relearn:1.2e-3/4/5/4",
    "relearn:1.2e-3/4/4",
    "relearn:1.2e-3/4/4/4",
    "relearn:1.2e-3/2/8",
    "attacker:2e-3/20",
    "round:4",
    "merge:0.5",
    "lora:8",
    "noise:0.02",
    "sharpness:0.05",
    TRL,
)
PASSAGES = "shipped:passages"


def beside_plain(model: str, kind: str, steps: int) -> dict[str, Any]:
    """A row: what a step costs under `kind`, relative to a plain one in the same minutes."""
    rounds = str(WARM_UP + steps + 1)
    name = TRL if kind == TRL else f"repo/{PASSAGES}+{kind}"
    with Side(f"repo/{PASSAGES}", model, rounds) as plain, Side(name, model, rounds) as other:
        answers = in_turns([plain, other], steps)
        beside, mine = (summary(answers[one.name], one.ask("memory")) for one in (plain, other))
    means = [statistics.fmean(one["seconds"]["all"]) for one in (mine, beside)]
    return {
        "model": kind,
        "steps": steps,
        "time_ratio": means[0] / means[1],
        "more_memory": mine["memory"]["above"] - beside["memory"]["above"],
        "seconds": mine["seconds"],
        "plain_seconds": beside["seconds"],
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default=DEFAULT_MODEL)
    options.add_argument("--kinds", nargs="+", default=list(KINDS), metavar="KIND")
    options.add_argument("--steps", type=int, default=8, help=f"timed steps, after {WARM_UP} for warming up")
    options.add_argument("--json", type=Path, default=RESULTS / "withstand.json", metavar="OUT")
    args = options.parse_args()
    rows = read_json(args.json)["rows"] if args.json.exists() else []
    for kind in args.kinds:
        if kind in [row["model"] for row in rows]:
            continue
        rows.append(beside_plain(args.model, kind, args.steps))
        print(f"{kind:24} {rows[-1]['time_ratio']:.2f} of a plain step's time, {rows[-1]['more_memory'] / GB:+.2f} GB")
        found = {"of": args.model, "passages": PASSAGES, "rows": rows}
        write_json(args.json, found | {"environment": environment(seed=0, model=None, command=command())})


if __name__ == "__main__":
    main()
