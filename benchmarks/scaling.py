"""Does a step cost the same, and the run the same memory, for a hundred times as many pairs?

    python benchmarks/scaling.py [--pairs 1000 100000]

For each size a file of made-up pairs is written, and a fresh process trains a two-layer Llama on it with REPO for 30
steps, from the path of the file. `seconds_per_step` is the median after warm-up; `anonymous_mb` is memory that is no
file's (RssAnon), at its highest after a step; `growth_mb` is what of it came after the libraries and the model were
there; `peak_mb` also counts mapped files (VmHWM). Ratios are the largest file to the smallest. Linux only.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import RESULTS, command
from transformers import TrainerCallback

from efface.files.environment import environment
from efface.files.results import write_json, write_jsonl
from efface.methods import PLAIN
from efface.methods.repo import REPOConfig, REPOTrainer

TESTS = Path(__file__).resolve().parents[1] / "tests" / "support"
MODEL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SETTINGS: dict[str, Any] = PLAIN | {"per_device_train_batch_size": 8, "max_steps": 30, "seed": 0, "use_cpu": True}
SETTINGS["precompute_reference"] = "on"  # of all pairs, so that the cache is in what is measured
WARM_UP = 5  # steps: threads start, buffers are allocated
MB = 2**20
SUBJECTS = ["The town", "The river", "A baker", "Her brother", "The old market", "Every spring", "The engineer"]
ADVERBS = ["soon", "once", "always", "slowly", "in the end", "without a word", "for a little while"]
ENDINGS = ["was cold", "bought bread", "went home", "counted the apples", "said nothing", "waited for the others"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, nargs="+", default=[1000, 100_000], help="sizes of the files")
    options.add_argument("--repeats", type=int, default=3, help="runs of each size, in turn; the middle one counts")
    options.add_argument("--output", type=Path, default=RESULTS / "scaling.json")
    options.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.child:
        print(json.dumps(train(args.child)))
        return
    runs: dict[int, list[dict[str, float]]] = {n: [] for n in sorted(args.pairs)}
    with tempfile.TemporaryDirectory() as scratch:
        for n in runs:
            write_jsonl(Path(scratch) / f"{n}.jsonl", pairs(n))
        for _ in range(args.repeats):  # in turn, so that a busy spell of the machine falls on every size
            for n, found in runs.items():
                found.append(in_fresh_process(Path(scratch) / f"{n}.jsonl"))
                print(row(n, found[-1]), flush=True)
    sizes = [{"pairs": n, **{key: statistics.median(run[key] for run in found) for key in found[0]}, "runs": found}
             for n, found in runs.items()]  # fmt: skip
    first, last = sizes[0], sizes[-1]
    ratios = {key: last[key] / first[key] for key in ("pairs", *runs[first["pairs"]][0]) if first[key] > 0}
    extra = (last["anonymous_mb"] - first["anonymous_mb"]) * MB / max(last["pairs"] - first["pairs"], 1)
    write_json(
        args.output,
        {
            "schema": 1,
            "settings": SETTINGS | {"model": MODEL, "repeats": args.repeats},
            "sizes": sizes,
            "ratios": ratios,
            "anonymous_bytes_per_extra_pair": extra,
            "environment": environment(seed=SETTINGS["seed"], model=None, command=command()),
        },
    )
    print("ratios: " + ", ".join(f"{key} {value:.2f}" for key, value in ratios.items()))
    print(f"anonymous memory for each further pair: {extra:.0f} bytes")


def pairs(n: int) -> Iterator[dict[str, str]]:
    """n harmless pairs of one or two clauses a text; those of a shorter file are the first of a longer one."""
    chance = random.Random(0)

    def clauses() -> str:
        return " and".join(f" {chance.choice(ADVERBS)} {chance.choice(ENDINGS)}" for _ in range(chance.randint(1, 2)))

    for number in range(n):
        prompt = f"{chance.choice(SUBJECTS)} of number {number:07}"  # as long in a short file as in a long one
        yield {"prompt": prompt, "chosen": clauses(), "rejected": " then" + clauses()}


def in_fresh_process(path: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "EFFACE_CACHE": str(path.with_suffix(""))},
    )
    return json.loads(done.stdout.splitlines()[-1])


class Watch(TrainerCallback):
    """Times and memory at the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.anonymous = 0.0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())
        self.anonymous = max(self.anonymous, memory("RssAnon"))


def train(path: Path) -> dict[str, float]:
    """What it takes to train on the pairs of a file; in a process that has done nothing else."""
    sys.path.insert(0, str(TESTS))
    from tiny import tiny_model, tiny_tokenizer

    model, tokenizer, watch = tiny_model("llama", **MODEL), tiny_tokenizer(), Watch()
    with tempfile.TemporaryDirectory() as output:
        config = REPOConfig(output, disable_tqdm=True, logging_strategy="no", **SETTINGS)
        before, start = memory("RssAnon"), time.perf_counter()
        trainer = REPOTrainer(model, config, str(path), processing_class=tokenizer, callbacks=[watch])
        setup = time.perf_counter() - start
        after = memory("RssAnon")
        trainer.train()
    steps = [end - begin for begin, end in zip(watch.ends[WARM_UP:], watch.ends[WARM_UP + 1 :], strict=False)]
    return {
        "seconds_per_step": statistics.median(steps),
        "setup_seconds": setup,
        "anonymous_mb": watch.anonymous,
        "growth_mb": watch.anonymous - before,
        "setup_growth_mb": after - before,
        "peak_mb": memory("VmHWM"),
    }


def memory(field: str) -> float:
    """A figure of /proc/self/status in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024 / MB
    raise SystemExit(f"/proc/self/status has no {field}: this benchmark needs Linux.")


def row(n: int, run: dict[str, float]) -> str:
    return (
        f"{n:9,} pairs  {1000 * run['seconds_per_step']:7.1f} ms a step  set-up {run['setup_seconds']:6.1f} s  "
        f"anonymous {run['anonymous_mb']:6.0f} MB (+{run['growth_mb']:.0f})  peak {run['peak_mb']:6.0f} MB"
    )


if __name__ == "__main__":
    main()
