"""Is the demo's training faster than in the plain layout, and is what comes out of it as good? Both in one run.

    python benchmarks/demo_training.py

Trains the default model with the settings of `efface demo` twice: `before` as the first version did it (a row for each
continuation, the reference run beside the model) and `after` as it is. Each is a process of its own; they take turns
step by step, so that noise hits both alike. Training time counts everything between the first step and the last and
what the reference takes beforehand. Then both are measured on the demo's held-out prompts and text.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, command
from transformers import TrainerCallback

from efface.data.rows import load_texts
from efface.evaluation.measure import evaluate
from efface.evaluation.settings import OrdinaryText
from efface.files.environment import environment
from efface.files.results import write_json
from efface.generation.decoding import Decoding
from efface.jobs.demo import PAIRS, SETTINGS
from efface.methods.repo import REPOConfig, REPOTrainer
from efface.model.load import DEFAULT_MODEL, load_model

SIDES: dict[str, dict[str, Any]] = {"before": {"layout": "plain", "precompute_reference": "off"}, "after": {}}


class Turns(TrainerCallback):
    """Takes a step when told to, and says how long it took."""

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        sys.stdin.readline()
        self.start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        answer(time.perf_counter() - self.start)


def answer(value: Any) -> None:
    print(json.dumps(value), file=sys.stderr, flush=True)  # progress bars and logs go to stdout here


def child(side: str, directory: str) -> None:
    model, tokenizer = load_model(DEFAULT_MODEL)
    settings = SETTINGS | {"disable_tqdm": True, "logging_strategy": "no"} | SIDES[side]
    sys.stdin.readline()
    start = time.perf_counter()
    trainer = REPOTrainer(
        model, REPOConfig(directory, **settings), PAIRS, processing_class=tokenizer, callbacks=[Turns()]
    )
    answer({"setup": time.perf_counter() - start, "layout": trainer.layout, "reference": trainer.reference.kind})
    trainer.train()
    sys.stdin.readline()
    result = evaluate(
        model, load_texts("shipped:prompts", field="prompt"), processing_class=tokenizer,
        text=OrdinaryText(load_texts("shipped:text"), max_tokens=8_000), decoding=Decoding(samples=2),
    )  # fmt: skip
    result.model = DEFAULT_MODEL  # not the cache folder of this machine
    answer(result.to_dict())


def main() -> None:
    if len(sys.argv) > 1:
        return child(*sys.argv[1:])
    with tempfile.TemporaryDirectory() as scratch:
        processes = {side: start(side, scratch) for side in SIDES}
        found: dict[str, dict[str, Any]] = {side: {"setup": ask(process)} for side, process in processes.items()}
        steps = SETTINGS["max_steps"]
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for step in range(steps):
            for side, process in processes.items():
                seconds[side].append(ask(process))
            print(f"step {step + 1} of {steps}: " + ", ".join(f"{side} {s[-1]:.2f} s" for side, s in seconds.items()))
        for side, process in processes.items():
            found[side] |= {"seconds": seconds[side], "result": ask(process)}
            process.wait()
    for side in found.values():
        side["step_median"] = statistics.median(side["seconds"])
        side["training"] = side["setup"]["setup"] + sum(side["seconds"])
    ratio = {key: found["before"][key] / found["after"][key] for key in ("step_median", "training")}
    stamp = environment(seed=0, model=None, command=command())
    write_json(RESULTS / "demo_training.json", {"schema": 1, "sides": found, "speedup": ratio, "environment": stamp})
    for name, side in found.items():
        result = side["result"]
        print(
            f"{name}: {side['step_median']:.2f} s a step, {side['training']:.0f} s in all, toxic share "
            f"{result['toxicity']['share']:.3f}, perplexity {result['perplexity']['value']:.2f}"
        )
    print(f"faster by: {ratio['step_median']:.2f} a step, {ratio['training']:.2f} in all")


def start(side: str, scratch: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, __file__, side, str(Path(scratch) / side)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ask(process: "subprocess.Popen[str]") -> Any:
    assert process.stdin is not None and process.stderr is not None
    print("go", file=process.stdin, flush=True)
    last = ""
    for line in process.stderr:  # libraries write there too
        last = line
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            continue
    raise SystemExit(f"a side ended: {last}")


if __name__ == "__main__":
    main()
