"""What is trained with its weights cut into parts? The methods, as one of two processes, under FSDP2 on a CPU.

`python sharded.py FILE CASE...` trains the cases of `two_processes.py`, then one with checkpoints and one by the
command (on `model` and `pairs.jsonl` beside FILE), and writes what came of it to FILE. accelerate cuts nothing on a
CPU: here it is told that each process has a GPU, and everything after that is its own code and torch's, as
configs/accelerate/fsdp2.yaml asks for it.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from frozen import freeze
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from two_processes import trainer_of, watched

from efface.cli import main
from efface.errors import RunError
from efface.training.metrics import raise_if_not_finite
from efface.training.processes import leave_group


def believe_in_gpus() -> None:
    """Make accelerate take two processes of a CPU for two of GPUs."""
    set_up = PartialState.__init__

    def as_gpus(self: Any, *args: Any, **kwargs: Any) -> None:
        set_up(self, *args, **kwargs)
        if PartialState._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = as_gpus  # type: ignore[method-assign]


def trained(case: str, output: Path) -> dict[str, Any]:
    """The whole weights after a case, and how they lay in the processes."""
    trainer: Any = trainer_of(case, output, 2)
    trainer.train()
    parameters = dict(trainer.model.named_parameters())
    assert isinstance(trainer.model, FSDPModule)
    return {
        "weights": trainer.accelerator.get_state_dict(trainer.model),  # of the first process
        "cut": [isinstance(each.data, DTensor) for each in parameters.values()],
        "here": sum(each.to_local().numel() for each in parameters.values()),
        "whole": sum(each.numel() for each in parameters.values()),
    }


def resumed(output: Path) -> dict[str, Any]:
    """The weights of a run of 4 steps with a checkpoint at 2, and of one that goes on from there; saved, both."""
    saved = {"save_steps": 2, "save_strategy": "steps", "optim": "adamw_torch", "learning_rate": 1e-3}
    runs = {name: trainer_of("repo", output / name, 2, 4, **saved) for name in ("a", "b")}
    found = {}
    for name, trainer in runs.items():
        trainer.train(resume_from_checkpoint=None if name == "a" else str(output / "a" / "checkpoint-2"))
        trainer.save_model()
        found[name] = trainer.accelerator.get_state_dict(trainer.model)
    return found


def not_finite(output: Path) -> str:
    """What a process says if a weight that the other one holds is not a number."""
    trainer: Any = trainer_of("sft", output, 2, 1)
    trainer.train()
    if trainer.args.process_index == 1:
        with torch.no_grad():
            next(trainer.model.parameters())._local_tensor.fill_(float("nan"))
    try:
        raise_if_not_finite(trainer.model, 1)
    except RunError as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    torch.set_num_threads(1)
    freeze()
    believe_in_gpus()
    file = Path(sys.argv[1])
    results: dict[str, Any] = {}
    for case in watched(sys.argv[2:]):
        results[case] = trained(case, file.parent / case)
    results["resumed"] = resumed(file.parent / "resumed")
    results["not finite"] = not_finite(file.parent / "not finite")
    # Last, for a command leaves the group at its end.
    flags = "--max_steps 2 --use_cpu true --retain_text none --withstand none --per_device_train_batch_size 2"
    flags += " --disable_tqdm true"
    data = [str(file.parent / name) for name in ("model", "pairs.jsonl")]
    results["command"] = main(["train", "repo", *data, "-o", str(file.parent / "out"), *flags.split()])
    torch.save(results, file)
    leave_group()
