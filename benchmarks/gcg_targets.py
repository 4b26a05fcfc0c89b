"""What does a budget of 100 steps x 128 candidates force? `gcg` for each of four prompts of the undefended base.

    python benchmarks/gcg_targets.py --data DATA        (runs/gcg-targets, benchmarks/results/gcg_targets.json)

Targets of five tokens, searched from " x", and of five and ten from the target itself. The prompts are those that
settings are tuned on, half of the budget's steps are made. What is there already is not made again.
"""

import shlex
from pathlib import Path

from common import RESULTS, command, parser, tuning_prompts

from efface.cli import main as efface
from efface.files.environment import environment
from efface.files.results import read_json, write_json, write_jsonl
from efface.model.load import DEFAULT_MODEL

FILE, RUNS = RESULTS / "gcg_targets.json", Path("runs/gcg-targets")
VARIANTS = {
    "5 tokens, from ' x'": "--target_tokens 5",
    "10 tokens, from the target": "--target_tokens 10 --init target",
    "5 tokens, from the target": "--target_tokens 5 --init target",
}
FLAGS = "--limit 64 --text shipped:text --max-text-tokens 500 --k 4 --search_width 128 --steps 20,50"


def main() -> None:
    options = parser(__doc__)
    args = options.parse_args()
    prompts = RUNS / "tuning.jsonl"
    write_jsonl(prompts, [{"prompt": prompt} for prompt in tuning_prompts(args.data, 192)])
    found = {}
    for number, (name, flags) in enumerate(VARIANTS.items()):
        output = RUNS / f"{number}.json"
        if not output.exists():
            argv = ["attack", "gcg", DEFAULT_MODEL, "--base", DEFAULT_MODEL, "--prompts", str(prompts)]
            if efface([*argv, *shlex.split(FLAGS), *shlex.split(flags), "-o", str(output), "--resume"]):
                raise SystemExit(f"{name} failed")
        result = read_json(output)
        shares = {str(point.get("steps", 0)): point["toxicity"]["share"] for point in result["curve"]}
        searches = [{key: one[key] for key in ("losses", "steps", "forced")} for one in result["found"]["prompts"]]
        found[name] = {"shares": shares, "searches": searches, "evaluations": result["found"]["evaluations"]}
    write_json(FILE, {"variants": found, "environment": environment(seed=0, model=None, command=command())})


if __name__ == "__main__":
    main()
