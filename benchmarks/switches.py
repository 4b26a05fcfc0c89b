"""What does each way to be fast give, alone and together? Steps of the same trainer with each switch, in turns.

    python benchmarks/switches.py [--steps 6]

The first block is the step of `step.py` (8 pairs of 32 + 32 tokens, erasure at the last layer), the second the same
with erasure at half the depth, the third pairs of ragged lengths (8 to 96 words a text), where batches of any pairs
stand against batches of like length; there ratios are of seconds a pair. Writes `benchmarks/results/switches.json`.
"""

import argparse
import gc
import random
import statistics
import tempfile
import time
from typing import Any

import torch
from common import RESULTS, command
from step_workers import PROTOCOL, SETTINGS, make_rows

from efface.files.environment import environment
from efface.files.results import write_json
from efface.methods import PLAIN
from efface.methods.repo import REPOConfig, REPOTrainer
from efface.model.load import DEFAULT_MODEL, load_model

NEITHER = {"layout": "plain", "precompute_reference": "off"}
BLOCKS: dict[str, dict[str, dict[str, Any]]] = {
    "last layer": {
        "plain": NEITHER,
        "reference cache": NEITHER | {"precompute_reference": "on"},
        "shared prompts": NEITHER | {"layout": "shared"},
        "both": {"layout": "shared", "precompute_reference": "on"},
    },
    "half depth": {
        "shared": {"layout": "shared", "precompute_reference": "on", "erase_layers": "0.5"},
        "apart": {"layout": "apart", "precompute_reference": "on", "erase_layers": "0.5"},
    },
    "ragged": {
        "plain": {"layout": "plain", "precompute_reference": "on"},
        "plain, buckets": {"layout": "plain", "precompute_reference": "on", "max_batch_tokens": 3072},
        "shared": {"layout": "shared", "precompute_reference": "on"},
        "shared, buckets": {"layout": "shared", "precompute_reference": "on", "max_batch_tokens": 3072},
    },
}
WARM_UP = 2


def ragged(rows: list[dict[str, str]], seed: int = 0) -> list[dict[str, str]]:
    """The same words, cut and repeated to texts of 8 to 96 words."""
    draw = random.Random(seed)

    def text(words: str) -> str:
        return " " + " ".join((words.split() * 4)[: draw.randint(8, 96)])

    return [{key: text(value) for key, value in row.items()} for row in rows]


def measure(sides: dict[str, dict[str, Any]], rows: list[dict[str, str]], steps: int) -> dict[str, dict[str, float]]:
    """Per side the median seconds of a step, and the mean seconds of a pair."""
    trainers = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, settings in sides.items():
            model, tokenizer = load_model(DEFAULT_MODEL)
            config = REPOConfig(
                scratch, **PLAIN | SETTINGS | PROTOCOL | {"retain_text": None, "max_steps": 99} | settings
            )
            trainer = REPOTrainer(model, config, rows, processing_class=tokenizer)
            trainer.create_optimizer()
            trainer.current_gradient_accumulation_steps = 1  # what train() would set
            trainers[name] = trainer, iter(trainer.get_train_dataloader())
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        pairs = dict.fromkeys(sides, 0)
        for turn in range(WARM_UP + steps):
            for name, (trainer, batches) in trainers.items():
                start = time.perf_counter()
                batch = next(batches)
                trainer.training_step(trainer.model, batch)
                torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
                trainer.optimizer.step()
                trainer.optimizer.zero_grad()
                if turn >= WARM_UP:
                    seconds[name].append(time.perf_counter() - start)
                    pairs[name] += batch["n_pairs"]
    del trainers
    gc.collect()
    return {
        name: {"step": statistics.median(values), "pair": sum(values) / pairs[name]}
        for name, values in seconds.items()
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=6, help=f"timed, after {WARM_UP} for warming up")
    args = options.parse_args()
    rows = make_rows(load_model(DEFAULT_MODEL)[1], 8 * (WARM_UP + args.steps + 1))
    found = {}
    for block, sides in BLOCKS.items():
        measured = measure(sides, ragged(rows) if block == "ragged" else rows, args.steps)
        key = "pair" if block == "ragged" else "step"
        first = next(iter(measured.values()))[key]
        found[block] = {name: side | {"ratio": side[key] / first} for name, side in measured.items()}
        for name, side in found[block].items():
            print(f"{block:12} {name:18} {side[key]:.2f} s a {key}  x {side['ratio']:.2f}", flush=True)
    stamp = environment(seed=0, model=None, command=command())
    write_json(RESULTS / "switches.json", {"schema": 1, "blocks": found, "environment": stamp})


if __name__ == "__main__":
    main()
