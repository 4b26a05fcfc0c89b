"""How many random kills and bad inputs does efface survive? Counts, into benchmarks/results/faults.json.

    python benchmarks/faults.py            # 200 killed trainings, 5,000 inputs in process, 100 through the command

Kills: trainings of every method with steps on a tiny model, each killed by SIGKILL at random moments until one attempt
ends, then compared to the bit with one that was not killed. Inputs: good files of every kind with bytes or values
changed at random; each must be taken, or refused in one line, with the input unchanged and nothing left behind.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[0] / "tests" / "support"))
RESULT = HERE / "results" / "faults.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="trainings that are killed")
    parser.add_argument("--inputs", type=int, default=5000, help="bad inputs in process")
    parser.add_argument("--commands", type=int, default=100, help="bad inputs through the command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default=str(RESULT), help="where the counts go")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)  # what a fork can bear
    logging.disable(logging.CRITICAL)
    from efface.files.environment import environment

    with tempfile.TemporaryDirectory(prefix="efface-faults-") as folder:
        os.environ["EFFACE_CACHE"] = str(Path(folder) / "cache")
        found = {
            "kills": kills(Path(folder) / "kills", options.kills, options.seed),
            "inputs": inputs(Path(folder) / "inputs", options.inputs, options.seed, commands=False),
            "commands": inputs(Path(folder) / "commands", options.commands, options.seed, commands=True),
        }
    found["environment"] = environment(seed=options.seed, model=None, command="python benchmarks/faults.py")
    Path(options.json).write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(any(found[name]["failures"] for name in ("kills", "inputs", "commands")))


def kills(folder: Path, runs: int, seed: int) -> dict[str, object]:
    from kills import METHODS, Tally, kill_at_random, prepare

    folder.mkdir()
    tally, given, start = Tally(), prepare(folder), time.monotonic()
    for number, method in enumerate(METHODS):
        share = runs * (number + 1) // len(METHODS) - runs * number // len(METHODS)
        kill_at_random(given, method, share, seed, tally)
        say(f"{method}: {tally.runs} trainings, {tally.kills} kills, {len(tally.failures)} failures", start)
    return {"trainings": tally.runs, "kills": tally.kills, "methods": METHODS, "failures": tally.failures}


def inputs(folder: Path, rounds: int, seed: int, *, commands: bool) -> dict[str, object]:
    from fuzzing import doors, fuzz, through_commands

    start = time.monotonic()
    found = (through_commands if commands else fuzz)(doors(), rounds, seed, folder)
    how = "through the command" if commands else "in process"
    say(
        f"{found.tried} inputs {how}: {found.refused} refused, {found.taken} taken, {len(found.failures)} failures",
        start,
    )
    return {"tried": found.tried, "refused": found.refused, "taken": found.taken, "failures": found.failures}


def say(line: str, start: float) -> None:
    print(f"{line} ({time.monotonic() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
