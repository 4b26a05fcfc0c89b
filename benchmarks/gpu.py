"""Does efface do on a GPU what it does on a CPU, and how fast? One script of at most eight minutes, without a network.

    python benchmarks/gpu.py [--json FILE]              # on one CUDA card; else one line and exit code 1
    python benchmarks/gpu.py --device cpu --tiny        # every part on a small model, to see that the script works

The model is built from a configuration (the shape of SmolLM2-135M, random weights), so that nothing is fetched:

    step        seconds and memory of a step in bfloat16, of `repo` and, if trl is there, of TRL's DPO
    generation  tokens a second of `generate_ids`
    gcg         candidates a second of the search
    parity      the loss of `repo` and `dpo` on a tiny model in float32, here and on the CPU, within TOLERANCE
    attack      one attack of an audit on the tiny model, from `efface audit`'s own function

The result goes to FILE, to $OUT/gpu.json if OUT is set, or to benchmarks/results/gpu.json; a part that fails says so
there, and the exit code is 1.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, command
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, TrainerCallback

from efface.errors import RunError, described
from efface.files.environment import environment
from efface.files.results import write_json

BUDGET = 480.0  # seconds; a part that would begin later is left out, and says so
TOLERANCE = 1e-4  # relative, of losses in float32 without TF32
SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
         "num_key_value_heads": 3, "vocab_size": 49_152, "max_position_embeddings": 2048}  # fmt: skip
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 512}  # fmt: skip
WORDS = "the town was quiet and old but its people said that the river is cold near a market of bread".split()


def tokenizer_of() -> PreTrainedTokenizerFast:
    """Bytes and a few merges: its ids fit into any of the models here."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<bos>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=TINY["vocab_size"], special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([" ".join(WORDS)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=512
    )


def model_of(shape: dict[str, int], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(**shape, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True)
    return AutoModelForCausalLM.from_config(config).eval()


def rows_of(n: int, words: int) -> list[dict[str, str]]:
    """Pairs of so many words a part."""

    def text(start: int) -> str:
        return " ".join(WORDS[(start + i) % len(WORDS)] for i in range(words))

    sides = ((text(i), f" {text(i + 3)}", f" {text(i + 7)} {WORDS[i % 5]}") for i in range(n))
    return [dict(zip(("prompt", "chosen", "rejected"), side, strict=True)) for side in sides]


class Clock(TrainerCallback):
    """When each step ended, all of its work on the device included."""

    def __init__(self, device: str):
        self.device, self.ends = device, list[float]()

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._now()
        if self.device == "cuda" and len(self.ends) == 3:  # the first steps choose kernels and fill caches
            torch.cuda.reset_peak_memory_stats()

    def _now(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


class Bench:
    """The parts, on a device and a model of a shape."""

    def __init__(self, device: str, tiny: bool):
        self.device, self.shape = device, TINY if tiny else SHAPE
        self.steps, self.words, self.seconds = (4, 6, 1.0) if tiny else (24, 96, 10.0)
        self.tokenizer = tokenizer_of()
        self.settings: dict[str, Any] = {
            "max_steps": self.steps, "per_device_train_batch_size": 8, "learning_rate": 1e-5, "logging_steps": 1,
            "bf16": not tiny, "use_cpu": device == "cpu", "report_to": "none", "save_strategy": "no",
            "disable_tqdm": True,
        }  # fmt: skip

    def step(self) -> dict[str, Any]:
        found = {"repo": self._timed(self._repo)}
        try:
            import trl  # noqa: F401
        except ImportError:
            return found | {"trl": "not installed"}
        return found | {"trl dpo": self._timed(self._trl)}

    def _repo(self, scratch: str) -> Any:
        from efface.methods import PLAIN
        from efface.methods.repo import REPOConfig, REPOTrainer

        config = REPOConfig(scratch, **PLAIN | self.settings | {"retain_text": None})
        rows = rows_of(8 * self.steps, self.words)
        return REPOTrainer(model_of(self.shape), config, rows, processing_class=self.tokenizer)

    def _trl(self, scratch: str) -> Any:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        rows = Dataset.from_list(rows_of(8 * self.steps, self.words))
        return DPOTrainer(
            model_of(self.shape), ref_model=model_of(self.shape), args=DPOConfig(scratch, **self.settings),
            train_dataset=rows, processing_class=self.tokenizer,
        )  # fmt: skip

    def _timed(self, build: Callable[[str], Any]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as scratch:
            trainer, clock = build(scratch), Clock(self.device)
            trainer.add_callback(clock)
            trainer.train()
            losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        steps = sorted(later - one for one, later in zip(clock.ends, clock.ends[1:], strict=False))
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else None
        return {"seconds_median": steps[len(steps) // 2], "steps": len(steps), "peak_bytes": peak, "losses": losses}

    def generation(self) -> dict[str, Any]:
        from efface.generation.decoding import Decoding
        from efface.generation.generate import generate_ids

        model = model_of(self.shape).to(self.device)
        prompts = [row["prompt"] for row in rows_of(16, 8)]
        drawn, start = 0, 0.0
        for turn in range(1000):
            if turn == 1:  # the first is for warming up
                drawn, start = 0, time.perf_counter()
            decoding = Decoding(samples=4 if self.shape is TINY else 25, max_new_tokens=20, seed=turn)
            found = generate_ids(model, self.tokenizer, prompts, decoding)
            drawn += sum(len(one.token_ids) for row in found for one in row)
            if turn and time.perf_counter() - start > self.seconds:
                break
        return {"tokens_a_second": drawn / (time.perf_counter() - start), "tokens": drawn}

    def gcg(self) -> dict[str, Any]:
        from efface.attacks.search.drafts import draft_of
        from efface.attacks.search.gcg_settings import GCGSettings
        from efface.attacks.search.slot import slot_in
        from efface.attacks.search.token_search import TokenSearch

        model = model_of(self.shape).to(self.device)
        width = 8 if self.shape is TINY else 256
        settings = GCGSettings(search_width=width, topk=min(width, 64), length=8, init=" x", early_stop=False)
        slot = slot_in(rows_of(1, 8)[0], self.tokenizer, "suffix", target_tokens=8)
        search = TokenSearch(model, self.tokenizer, [slot], settings, 0, draft_of(model, settings.search_dtype))
        search.step()
        before, start = search.evaluations, time.perf_counter()
        while time.perf_counter() - start < self.seconds:
            search.step()
        spent = time.perf_counter() - start
        return {
            "candidates_a_second": (search.evaluations - before) / spent,
            "losses": search.losses[:: len(search.losses) - 1],
        }

    def parity(self) -> dict[str, Any]:
        """Losses of one batch; raises a RunError where they differ."""
        found: dict[str, Any] = {"tolerance": TOLERANCE}
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            for method in ("repo", "dpo"):
                here, there = (self._loss(method, use_cpu=cpu) for cpu in (self.device == "cpu", True))
                found[method] = {"here": here, "cpu": there}
                if abs(here - there) > TOLERANCE * abs(there):
                    raise RunError(f"the loss of {method} is {here} on {self.device} and {there} on the CPU.")
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed
        return found

    def _loss(self, method: str, *, use_cpu: bool) -> float:
        from efface.methods import PLAIN, load_method

        kind: Any = load_method(method)
        with tempfile.TemporaryDirectory() as scratch:
            settings = (PLAIN if method == "repo" else {}) | self.settings
            settings |= {"use_cpu": use_cpu, "bf16": False, "retain_text": None, "max_steps": 3}
            # Not Adam, whose first steps take the sign of a gradient that is next to nothing.
            config = kind.config_class(scratch, **settings | {"optim": "sgd", "learning_rate": 0.1})
            trainer = kind(model_of(TINY), config, rows_of(24, 6), processing_class=self.tokenizer)
            trainer.train()
            return float([row["loss"] for row in trainer.state.log_history if "loss" in row][-1])

    def attack(self) -> dict[str, Any]:
        from efface.audit.run import audit_models
        from efface.generation.decoding import Decoding
        from efface.model.loading import loading

        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            for name, seed in (("base", 0), ("edited", 1)):
                model_of(TINY, seed).save_pretrained(folder / name)
                self.tokenizer.save_pretrained(folder / name)
            how = {"base": str(folder / "base"), "prompts": [row["prompt"] for row in rows_of(4, 6)],
                   "rows": rows_of(4, 6), "text": [" ".join(WORDS * 4)], "max_text_tokens": 60,
                   "decoding": Decoding(max_new_tokens=8)}  # fmt: skip
            with loading(device=self.device):
                results = audit_models(
                    {"edited": str(folder / "edited")}, output=folder / "audit", only=["prefill"], measurement=how,
                    controls=False,
                )  # fmt: skip
        (row,) = results["models"][0]["attacks"]
        if row["error"]:
            raise RunError(f"the attack failed: {row['error']}")
        return {"attack": row["attack"], "seconds": row["seconds"]}


PARTS = ("step", "generation", "gcg", "parity", "attack")


def measure(device: str, tiny: bool, budget: float = BUDGET) -> dict[str, Any]:
    """Every part, whatever one of them dies of."""
    start, bench = time.perf_counter(), Bench(device, tiny)
    found: dict[str, Any] = {}
    for name in PARTS:
        begun = time.perf_counter()
        if begun - start > budget:
            found[name] = {"error": f"left out: {budget:.0f} s were over"}
            continue
        try:
            found[name] = getattr(bench, name)()
        except Exception as error:  # the others are measured
            found[name] = {"error": described(error)}
        found[name]["part_seconds"] = round(time.perf_counter() - begun, 1)
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--tiny", action="store_true", help="a model of two small layers: to try the script")
    default = Path(os.environ["OUT"]) if os.environ.get("OUT") else RESULTS
    options.add_argument("--json", type=Path, default=default / "gpu.json", metavar="FILE")
    args = options.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: torch finds no CUDA device here; --device cpu --tiny tries every part.", file=sys.stderr)
        return 1
    found = measure(args.device, args.tiny)
    card = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    shape = TINY if args.tiny else SHAPE
    made = environment(seed=0, model=None, command=command())
    write_json(args.json, {"device": card, "shape": shape, "parts": found, "environment": made})
    return int(any("error" in part for part in found.values()))


if __name__ == "__main__":
    sys.exit(main())
