"""What is trained twice, by one process and by two? One small run of every method, and of what may get in DDP's way.

`python two_processes.py FILE STEPS CASE...` trains those as one of two processes and writes the weights to FILE.
Passages are spread unevenly: the text FIRST stands in the batch of one process, and the other's batch has none.
"""

import faulthandler
import gc
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from frozen import freeze
from peft import LoraConfig
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from trained import ROWS

from efface.data.batch import PairBatch
from efface.errors import RunError
from efface.methods import METHODS, PLAIN, load_method
from efface.training.processes import leave_group
from efface.training.trainer import PairTrainer

FIRST, SECOND = "The history of the town is the history of its river.", "They said that he is an engineer."
STEPS = 3
SECONDS = 90  # for one case, on a busy machine too: longer means that the processes wait for each other

BY_STEPS = [name for name in METHODS if issubclass(load_method(name), PairTrainer)]
# A method that is not a sum over tokens, or that climbs its own micro-batch, is told apart by the micro-batches.
ACCUMULATED = {"repnoise", "repo sam"}
CASES: dict[str, dict[str, Any]] = {
    **{name: {} for name in BY_STEPS},
    # Blocks and head that get a gradient from passages alone, and so on one process alone.
    "rmu everywhere": {"trainable_layers": "all"},
    "rmu everywhere checkpointed": {"trainable_layers": "all", "gradient_checkpointing": True},
    "repo no retain checkpointed": {"w_retain": 0.0, "erase_layers": "0", "gradient_checkpointing": True},
    "circuit_breakers checkpointed": {"gradient_checkpointing": True},
    "repo sam": {"withstand": "sharpness:0.01"},
    "repo lasting": {"withstand": "relearn:2e-3/3/2/3", "npo_weight": 1.0, "npo_beta": 0.05, "w_retain_text": 40.0},
    "repo relearn": {"withstand": "relearn:2e-3/3/2"},
    "repo attacker": {"withstand": "attacker:2e-3/2"},
    "dpo relearn": {"withstand": "relearn:2e-3/2/2"},
    "repo adapter": {"withstand": "lora:2/2/2,round:4,merge:0.5,noise:0.01", "lora_r": 2},
    "repo lora": {"lora_r": 2},
    "repo selective": {"erase_gradient": "selective"},
    "repo neurons": {"trainable": "toxic_neurons:0.2", "weight_decay": 0.1},
    "dpo normalized": {"optim": "normalized_sgd"},
    "repo cached": {"precompute_reference": "on"},
}
QUICK = [*BY_STEPS, "rmu everywhere checkpointed", "repo lora", "repo lasting"]
"""Those without --full: every method, and one of each kind of what may get in the way."""
# Gradients are not clipped, which would hide one that is too large: these of the order of 1 / their norm.
RATES = {"rmu": 1e-3, "circuit_breakers": 0.005, "repo": 0.005}


def trainer_of(
    case: str, output: Path, processes: int, steps: int = STEPS, *, pairs: int = len(ROWS), **more: Any
) -> PairTrainer:
    """The trainer of a case; as one process it has the whole batch, or both micro-batches one after the other."""
    name = case.split()[0]
    method: Any = load_method(name)
    apart = processes == 2 or case in ACCUMULATED
    settings: dict[str, Any] = {
        **(PLAIN if name == "repo" else {}),
        "max_steps": steps,
        "max_grad_norm": 0.0,
        "learning_rate": RATES.get(name, 0.05),
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4 if apart else 8,
        "gradient_accumulation_steps": 2 if apart and processes == 1 else 1,
        "retain_text_per_pair": 0.25,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "precompute_reference": "auto" if name in ("rmu", "circuit_breakers") else "off",  # which compare residuals
        **({"grl_schedule": "constant", "discriminator_width": 16} if name == "repo" else {}),
        **CASES.get(case, {}),
        **more,
    }
    keywords: dict[str, Any] = {}
    if name == "retain":  # which learns nothing from itself
        keywords["ref_model"] = tiny_model("llama", seed=1)
    if name == "circuit_breakers":
        # Not from the untouched model, where the cosine is at its maximum and its gradient rounding noise; and on all
        # blocks, those too that nothing is asked of.
        keywords["peft_config"] = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    trainer = method(
        tiny_model("llama"),
        method.config_class(str(output), **settings),
        ROWS[:pairs],
        processing_class=tiny_tokenizer(),
        retain_text=[FIRST, SECOND],
        **keywords,
    )
    keep_first_(trainer)
    return trainer


def keep_first_(trainer: PairTrainer) -> None:
    """Of the passages only FIRST stays in the batches, which stands in one of them each step."""
    first = tiny_tokenizer()(FIRST)["input_ids"]
    given = trainer.get_batch_samples

    def samples(*args: Any) -> tuple[list[PairBatch], Any]:
        batches, _ = given(*args)
        batches = [only(batch, first) for batch in batches]
        return batches, trainer._get_num_items_in_batch(batches, trainer.args.device)

    trainer.get_batch_samples = samples  # type: ignore[method-assign,assignment]


def only(batch: PairBatch, ids: list[int]) -> PairBatch:
    start, count = 2 * batch["n_pairs"], len(batch["input_ids"])
    kept = [row for row in range(start, count) if batch["input_ids"][row, : len(ids)].tolist() == ids]
    rows = [*range(start), *kept]
    found: Any = dict(batch)
    if "reference" in batch:
        sizes = batch["continuation_mask"][start:].sum(1).tolist()
        before, *passages = batch["reference"]["hidden"].split(
            [len(batch["reference"]["hidden"]) - sum(sizes), *sizes]
        )
        found["reference"] = batch["reference"] | {"hidden": torch.cat([before, *(passages[i - start] for i in kept)])}
    return found | {name: batch[name][rows] for name in ("input_ids", "attention_mask", "continuation_mask")}  # type: ignore[literal-required]


def trained(case: str, output: Path, processes: int, steps: int = STEPS, **more: Any) -> dict[str, Tensor]:
    """The weights that a case trains, after it."""
    trainer = trainer_of(case, output, processes, steps, **more)
    trainer.train()
    found = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    return {name: weight.detach().clone() for name, weight in found.items()}


def watched(cases: Sequence[str]) -> Iterator[str]:
    """One case after the other; standard error says which, and where it hangs if it does."""
    for case in cases:
        sys.stderr.write(f"{case}\n")
        faulthandler.dump_traceback_later(SECONDS, exit=True)  # set anew each time
        yield case


SAVED: dict[str, Any] = {"steps": 4, "save_strategy": "steps", "save_steps": 2}
"""A run with a checkpoint half-way, which a single process goes on from."""


def broken(output: Path) -> str:
    """What a process says if the other's loss is not a number."""
    trainer = trainer_of("sft", output, 2)
    loss = trainer.loss

    def bad(*args: Any) -> Any:
        value, metrics = loss(*args)
        return value * (float("nan") if trainer.args.process_index == 1 else 1.0), metrics

    trainer.loss = bad  # type: ignore[method-assign]
    try:
        trainer.train()
    except RunError as error:
        return str(error)
    return "nothing"


def evaluated(output: Path, size: int, pairs: int) -> dict[str, float]:
    """What an evaluation on so many pairs says, in batches of `size`."""
    settings: dict[str, Any] = {"per_device_eval_batch_size": size, "use_cpu": True, "disable_tqdm": True}
    method: Any = load_method("dpo")
    trainer = method(
        tiny_model("llama"),
        method.config_class(str(output), **settings),
        ROWS,
        eval_dataset=ROWS[:pairs],
        processing_class=tiny_tokenizer(),
        ref_model=tiny_model("llama", seed=1),
    )
    found = trainer.evaluate()
    return {name: value for name, value in found.items() if "rewards" in name or name.endswith("loss")}


EVALUATED = [(2, 4), (2, 5), (4, 5), (1, 3), (8, 1)]
"""Pairs of a batch and in all: without a rest, with one, and with a process that has none left in the last round."""


if __name__ == "__main__":
    torch.set_num_threads(1)
    freeze()
    file, steps = Path(sys.argv[1]), int(sys.argv[2])
    results: dict[str, Any] = {}
    for case in watched(sys.argv[3:]):
        results[case] = trained(case, file.parent / case, 2, steps)
    results["saved"] = trained("repo", file.parent / "saved", 2, **SAVED)
    results["odd"] = trained("repo", file.parent / "odd", 2, pairs=7)
    results["evaluated"] = [evaluated(file.parent / "evaluated", *sizes) for sizes in EVALUATED]
    results["broken"] = broken(file.parent / "broken")
    results["wrapped"] = sum(isinstance(one, DistributedDataParallel) for one in gc.get_objects())
    torch.save(results, file)
    leave_group()
