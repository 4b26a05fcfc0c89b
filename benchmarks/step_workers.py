"""How is one side of `step.py` made to take a step, and no more? A process that waits for the word.

    python benchmarks/step_workers.py SIDE MODEL STEPS

SIDE is trl-precomputed, trl-reference, trl-defaults, or the name of a method of efface that trains by steps, with the
ordinary text that it retains after a slash, if any, and what its steps withstand after a plus sign:
repo/shipped:passages+round:4.

It answers words on stdin with one line of JSON each on stdout; what libraries print goes to stderr. It is
`trainer.train()` itself that runs, held by a callback:

    step      one optimizer step, from fetching the batch to logging; {"seconds", "loss", ...}
    reset     forget the peak of the resident memory
    memory    bytes of parameters, gradients, optimizer state; the peak; the libraries alone, before the model
    profile   one more step, under torch.profiler
    quit
"""

import json
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from matmul import CONTINUATION, PAIRS, PROMPT, needed_operations, start_profiler, where_time_goes
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from efface.data.pair_tokens import TokenizedPair, tokenize_pair
from efface.data.tokens import tokens_of
from efface.model.load import load_model

# Equal on both sides; whatever else matters must come out equal too (EQUAL, compared by the parent).
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": PAIRS,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "bf16": False,
    "optim": "adamw_torch_fused",
    "learning_rate": 1e-5,
    "max_grad_norm": 1.0,
    "dataloader_num_workers": 0,
}
PROTOCOL: dict[str, Any] = {  # what the measurement itself needs, of TRL's defaults as well
    "use_cpu": True,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}
DEFAULT = "default"
"""In the place of what a side of `repo` is to withstand: all that its defaults add to the erasure alone."""
EQUAL = (
    *SETTINGS, "use_cpu", "fp16", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "lr_scheduler_type",
    "warmup_steps", "optim_args", "torch_compile", "disable_dropout",
)  # fmt: skip


# ---- data ----


def make_rows(tokenizer: PreTrainedTokenizerBase, n: int, seed: int = 0) -> list[dict[str, str]]:
    """Pairs of random words that tokenise to exactly PROMPT + CONTINUATION tokens in both libraries.

    TRL closes a continuation with EOS if it does not end with it, so ours end with it: one text, the same ids.
    """
    words = [word for token in range(len(tokenizer)) if _is_word(word := str(tokenizer.decode([token])))]
    words = [word for word in words if len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1]
    draw = random.Random(seed)

    def text(n_words: int) -> str:
        return "".join(draw.choices(words, k=n_words))

    rows: list[dict[str, str]] = []
    for _ in range(20 * n):
        row = {"prompt": text(PROMPT - len(tokens_of(tokenizer, "")))}  # less the BOS that the tokenizer adds
        row |= {side: text(CONTINUATION - 1) + str(tokenizer.eos_token) for side in ("chosen", "rejected")}
        pair = tokenize_pair(row, tokenizer)
        lengths = [len(ids) for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)]
        if lengths == [PROMPT, CONTINUATION, CONTINUATION]:
            rows.append(row)
        if len(rows) == n:
            return rows
    raise SystemExit(f"only {len(rows)} of {n} random pairs have {PROMPT} + {CONTINUATION} tokens: {tokenizer!r}")


def _is_word(word: str) -> bool:
    return len(word) > 3 and word[0] == " " and word[1:].isascii() and word[1:].isalpha() and word.islower()


def check_batch(trainer: Trainer, expected: list[TokenizedPair]) -> list[int]:
    """The shape of a batch of this trainer, after making sure that its rows are the expected ids and nothing else."""
    batch = next(iter(trainer.get_train_dataloader()))
    ids = {tuple(pair.prompt_ids + side) for pair in expected for side in (pair.chosen_ids, pair.rejected_ids)}
    rows, length = 2 * PAIRS, PROMPT + CONTINUATION
    continuation = batch["continuation_mask"] if "continuation_mask" in batch else batch["completion_mask"]
    found = {
        "shape": list(batch["input_ids"].shape),
        "tokens": int(batch["attention_mask"].sum()),
        "continuation tokens": continuation.sum(1).tolist(),
        "rows as expected": sum(tuple(row) in ids for row in batch["input_ids"].tolist()),
    }
    wanted = {
        "shape": [rows, length],
        "tokens": rows * length,
        "continuation tokens": [CONTINUATION] * rows,
        "rows as expected": rows,
    }
    if found != wanted:
        raise SystemExit(f"{type(trainer).__name__} sees another batch than agreed:\n{found}\ninstead of\n{wanted}")
    return found["shape"]


# ---- the sides ----


def build(
    side: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Any], steps: int, scratch: str
) -> Trainer:
    """The trainer of a side; each is set up as its users would do it."""
    if not side.startswith("trl-"):
        from efface.methods import PLAIN, load_method

        name, _, withstand = side.partition("+")
        name, _, text = name.partition("/")
        method: Any = load_method(name)
        ours = SETTINGS | PROTOCOL | {"max_steps": steps, "retain_text": text or None}
        if withstand != DEFAULT:
            ours = (PLAIN if name == "repo" else {}) | ours | {"withstand": withstand or None}
        if name == "repo":  # others may need more of the reference than a cache holds
            ours["precompute_reference"] = "on"
        return method(model, method.config_class(scratch, **ours), rows, processing_class=tokenizer)

    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    theirs = PROTOCOL | {"max_steps": steps}
    if side != "trl-defaults":
        theirs |= SETTINGS | {"precompute_ref_log_probs": side == "trl-precomputed"}
    return DPOTrainer(
        model, args=DPOConfig(scratch, **theirs), train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


class Turns(TrainerCallback):
    """Holds `trainer.train()` before every step until the parent asks for it, and answers.

    A step lasts from the word to the end of its log entry: fetching the batch, forward, backward, clipping, optimizer,
    scheduler, zeroing and logging, all of which a real training pays for.
    """

    def __init__(self, channel: TextIO, libraries: int, batch: list[int]):
        self.channel, self.libraries, self.batch = channel, libraries, batch
        self.trainer: Any = None  # set once it exists
        self.started, self.gradients, self.whole_life = 0.0, 0, False
        self.profiler: torch.profiler.profile | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, group = self.trainer.model, self.trainer.optimizer.param_groups[0]
        settings = {name: _plain(getattr(args, name)) for name in EQUAL} | {
            "optimizer": f"{type(self.trainer.optimizer.optimizer).__name__}, fused={group['fused']}",
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "dtype": str(model.dtype),
            "attention": model.config._attn_implementation,
            "checkpointing": model.is_gradient_checkpointing,
            "threads": torch.get_num_threads(),
        }
        ready: dict[str, Any] = {"settings": settings, "batch": self.batch}
        if hasattr(self.trainer, "adversaries"):  # ours
            ready["needed_operations"] = needed_operations(self.trainer)
        self.answer(ready)
        self.wait()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gradients = sum(p.grad.nbytes for p in self.trainer.model.parameters() if p.grad is not None)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs:  # the summary at the end of the training
            return
        answer: dict[str, Any] = {"seconds": time.perf_counter() - self.started}
        if self.profiler is not None:
            self.profiler.__exit__(None, None, None)
            answer["profile"] = where_time_goes(self.profiler, self.trainer.model)
            self.profiler = None
        self.answer(answer | {name: logs[name] for name in ("loss", "retain_loss") if name in logs})
        self.wait()

    def wait(self) -> None:
        while True:
            word = sys.stdin.readline().strip()
            if word == "reset":
                self.whole_life = not reset_peak()
                self.answer({"reset": not self.whole_life})
            elif word == "memory":
                self.answer(self.memory())
            elif word in ("step", "profile"):
                if word == "profile":
                    self.profiler = start_profiler(self.trainer)
                self.started = time.perf_counter()
                return
            else:  # quit, or the parent is gone
                raise SystemExit

    def memory(self) -> dict[str, Any]:
        """Exact bytes of what is trained, and what the process held at most since `reset`."""
        state = self.trainer.optimizer.state.values()
        return {
            "parameters": sum(p.nbytes for p in self.trainer.model.parameters()),
            "gradients": self.gradients,
            "optimizer": sum(v.nbytes for entry in state for v in entry.values() if isinstance(v, torch.Tensor)),
            "libraries": self.libraries,
            "peak": peak(),
            "peak_of_whole_life": self.whole_life,  # true if the system does not let us reset it
        }

    def answer(self, content: dict[str, Any]) -> None:
        print(json.dumps(content), file=self.channel, flush=True)


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | None) else str(getattr(value, "value", value))


# ---- memory ----


def _status(name: str) -> int:
    """Bytes of a field of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def resident() -> int:
    return _status("VmRSS") if Path("/proc/self/status").exists() else peak()


def reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak() -> int:
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")  # stdout is for answers alone
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    side, name, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if not side.startswith("trl-"):  # the libraries belong to `libraries`, not to the step
        import peft  # noqa: F401

        import efface.methods.repo  # noqa: F401
    else:
        import datasets  # noqa: F401
        from trl import DPOTrainer  # noqa: F401
    libraries = resident()
    model, tokenizer = load_model(name, device="cpu")
    rows = make_rows(tokenizer, PAIRS * steps)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = build(side, model, tokenizer, rows, steps, scratch)
        turns = Turns(channel, libraries, check_batch(trainer, [tokenize_pair(row, tokenizer) for row in rows]))
        turns.trainer = trainer
        trainer.add_callback(turns)
        trainer.train()


if __name__ == "__main__":
    main()
