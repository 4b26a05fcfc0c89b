"""How fast is `gcg`, and does it get as far, beside nanoGCG? Both in one run, taking turns step by step.

    python benchmarks/gcg.py --peer-python PYTHON [--seeds 0 1 2] [--steps 10] [--json benchmarks/results/gcg.json]

PYTHON is an interpreter that has nanoGCG, which wants an older transformers:

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 transformers==4.47.1 nanogcg

Both load the same exported checkpoint, whose chat template hands a message through, and have the same prompt, target,
text to start from, width, top-k and number of threads; tokens and logits are compared before anything is timed. Each
seed is another held-out pair and other draws. Each side is a process of its own (`gcg_workers.py`), started anew for
each seed. nanoGCG gets the fastest of `--batch-sizes` (`none`: all candidates at once, its default), tried first.

Ours chooses candidates in `--search-dtype` (auto: bfloat16 where the machine is faster at it) and reads the best few
in the model's own precision; nanoGCG reads all of them in that, as it has no such way.

Time: seconds of a step, from the gradient to the choice; medians without the first. `speed_ratio` is steps per second
of ours over its, 1.3 meaning 1.3 times as many. Loss: the lowest of the steps begun before so many candidates were
scored, of both as many as the side with fewer has scored. Memory: the most a process holds from the second step on.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import command
from step import Side

from efface.attacks.search.slot import slot_in
from efface.data.rows import shipped
from efface.files.environment import environment
from efface.files.jsonl import read_jsonl
from efface.files.results import write_json
from efface.model.load import DEFAULT_MODEL, load_model
from efface.model.save import save_model

PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
GB = 1e9


class Worker(Side):
    """A process of `gcg_workers.py`, asked a word at a time."""

    def __init__(self, name: str, python: str, folder: str, task: dict[str, Any]):
        self.name, self.log = name, tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("gcg_workers.py")), name, folder, json.dumps(task)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        self.ready = self._answer()


def task_of(tokenizer: Any, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """What both sides are told."""
    row = read_jsonl(shipped("heldout"))[seed]
    target = slot_in(row, tokenizer, "suffix", target_tokens=args.target_tokens).target
    return {
        "seed": seed,
        "prompt": row["prompt"].rstrip(),
        "target": tokenizer.decode(target),
        "init": " x",
        "length": args.length,
        "search_width": args.width,
        "topk": args.topk,
        "search_dtype": args.search_dtype,
    }


def check_equal(ours: Worker, theirs: Worker) -> float:
    """The largest difference of logits, after making sure that both sides see the same tokens and model."""
    for name in ("ids", "threads", "dtype"):
        if ours.ready[name] != theirs.ready[name]:
            raise SystemExit(f"the sides differ in {name}: {ours.ready[name]} and {theirs.ready[name]}")
    worst = max(
        abs(one - other)
        for name in ("logits", "logsumexp")
        for one, other in zip(_flat(ours.ready[name]), _flat(theirs.ready[name]), strict=True)
    )
    if worst > 1e-2:  # of logits of the order of 10
        raise SystemExit(f"the sides differ in their logits by {worst}: they do not run the same model.")
    return worst


def _flat(values: list[Any]) -> list[float]:
    return [number for value in values for number in (_flat(value) if isinstance(value, list) else [value])]


def best_batch_size(python: str, folder: str, task: dict[str, Any], sizes: list[int | None]) -> dict[str, Any]:
    """Seconds of nanoGCG's second step at each size, and the size that is fastest."""
    seconds = {}
    for size in sizes:
        with Worker("nanogcg", python, folder, task | {"batch_size": size}) as peer:
            answers = [peer.ask("step") for _ in range(2)]
        seconds[size] = answers[-1]["seconds"] / answers[-1]["evaluations"]
    return {"seconds_per_candidate": {str(size): value for size, value in seconds.items()},
            "chosen": min(seconds, key=lambda size: seconds[size])}  # fmt: skip


def measure(python: str, folder: str, task: dict[str, Any], steps: int) -> dict[str, Any]:
    """One seed: the figures of both sides."""
    with Worker("efface", sys.executable, folder, task) as ours, Worker("nanogcg", python, folder, task) as theirs:
        difference = check_equal(ours, theirs)
        sides = {"efface": ours, "nanogcg": theirs}
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for side in sides.values():
            side.ask("reset")  # answered when a side has prepared its search: it must not do so during another's step
        for turn in range(steps + 1):
            for name, side in sides.items():
                answers[name].append(side.ask("step"))
                if turn == 0:
                    side.ask("reset")
            print(f"\rseed {task['seed']}: step {turn + 1} of {steps + 1} ", end="", file=sys.stderr)
        print(file=sys.stderr)
        found = {
            name: {
                "seconds": [answer["seconds"] for answer in made],
                "median": statistics.median(answer["seconds"] for answer in made[1:]),
                "losses": [answer["loss"] for answer in made],
                "evaluations": [answer["evaluations"] for answer in made],
                "memory": sides[name].ask("memory"),
                "versions": sides[name].ready["versions"],
                "attention": sides[name].ready["attention"],
            }
            for name, made in answers.items()
        }
        threads = ours.ready["threads"]
    budget = min(sum(side["evaluations"]) for side in found.values())
    for side in found.values():
        side["best_loss"] = lowest_within(side["losses"], side["evaluations"], budget)
    mine, other = found["efface"], found["nanogcg"]
    return {
        "task": {name: value for name, value in task.items() if name not in ("prompt", "target")},
        "speed_ratio": other["median"] / mine["median"],
        "loss_difference": mine["best_loss"] - other["best_loss"],
        "evaluations": budget,
        "peak_ratio": mine["memory"]["peak"] / other["memory"]["peak"],
        "above_ratio": above(mine) / above(other),
        "logit_difference": difference,
        "threads": threads,
        "sides": found,
    }


def above(side: dict[str, Any]) -> float:
    """Bytes of the peak beyond libraries and the model's parameters."""
    memory = side["memory"]
    return memory["peak"] - memory["libraries"] - memory["parameters"]


def lowest_within(losses: list[float], evaluations: list[int], budget: int) -> float:
    """The lowest of the losses of all steps that were begun before so many candidates were scored."""
    spent = [sum(evaluations[:step]) for step in range(len(losses))]
    return min(loss for loss, before in zip(losses, spent, strict=True) if before < budget)


def report(entry: dict[str, Any]) -> str:
    lines = [
        f"{'seed':>4} {'side':8} {'seconds a step':>15} {'candidates':>11} {'loss':>7} {'peak GB':>8} {'above GB':>9}"
    ]
    for seed in entry["seeds"]:
        for name, side in seed["sides"].items():
            lines.append(
                f"{seed['task']['seed']:4} {name:8} {side['median']:15.2f} {sum(side['evaluations']):11}"
                f" {side['best_loss']:7.3f} {side['memory']['peak'] / GB:8.2f} {above(side) / GB:9.2f}"
            )
        lines.append(
            f"     speed_ratio {seed['speed_ratio']:.2f}, loss_difference {seed['loss_difference']:+.3f} after"
            f" {seed['evaluations']} candidates, peak_ratio {seed['peak_ratio']:.2f}"
        )
    lines.append(f"speed_ratio, the least of the seeds: {entry['speed_ratio']:.2f}")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--peer-python", required=True, metavar="PYTHON", help="an interpreter that has nanogcg")
    options.add_argument("--model", default=DEFAULT_MODEL)
    options.add_argument("--width", type=int, default=64, help="candidates drawn in a step")
    options.add_argument("--topk", type=int, default=64)
    options.add_argument("--search-dtype", default="auto", help="of ours; float32 is what nanoGCG scores in")
    options.add_argument("--length", type=int, default=20, help="tokens of the text")
    options.add_argument("--target-tokens", type=int, default=12)
    options.add_argument("--steps", type=int, default=10, help="timed steps, after one for warming up")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--batch-sizes", nargs="+", default=["none", "16"], help="of nanoGCG, to choose from")
    options.add_argument("--json", type=Path, default=None, metavar="OUT")
    args = options.parse_args()
    model, tokenizer = load_model(args.model, device="cpu")
    tokenizer.chat_template = PLAIN
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, tokenizer, folder)
        described = environment(seed=args.seeds[0], model=model, command=command_without_paths())
        del model
        tasks = [task_of(tokenizer, seed, args) for seed in args.seeds]
        sizes = [None if size == "none" else int(size) for size in args.batch_sizes]
        batch = best_batch_size(args.peer_python, folder, tasks[0], sizes)
        seeds = [
            measure(args.peer_python, folder, task | {"batch_size": batch["chosen"]}, args.steps) for task in tasks
        ]
    entry = {
        "model": args.model,
        "speed_ratio": min(seed["speed_ratio"] for seed in seeds),
        "loss_difference": max(seed["loss_difference"] for seed in seeds),
        "peak_ratio": max(seed["peak_ratio"] for seed in seeds),
        "nanogcg_batch_size": batch,
        "seeds": seeds,
        "environment": described,
    }
    print(report(entry))
    if args.json is not None:
        write_json(args.json, entry)


def command_without_paths() -> str:
    """How this was called, without where the other interpreter lies."""
    return command().replace(sys.argv[sys.argv.index("--peer-python") + 1], "PYTHON")


if __name__ == "__main__":
    main()
