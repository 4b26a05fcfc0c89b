"""Which ways of spreading a model over processes are refused? Those that cut its weights into parts.

The output head is taken as it is before training and used outside of the model's own forward. Where FSDP, ZeRO-3 or
Megatron keep parts of it on every process, what was taken is a copy that nothing updates: training would go on with a
head that gets no gradient, without a word.
"""

import base64
import binascii
import json
import os
from pathlib import Path
from typing import Any

from efface.errors import UserError

ADVICE = (
    "cuts the weights into parts, and the output head that efface projects with would be a copy that nothing updates. "
    "Launch with torchrun or `accelerate launch --multi_gpu` (every process has the whole model); where memory is "
    "short, use lora_r or trainable_layers, gradient_checkpointing, or DeepSpeed's stage 1 or 2."
)


def refuse_sharded(args: Any) -> None:
    """By what the training arguments and accelerate's launcher ask for; before anything is set up.

    Raises:
        UserError: if weights would be cut into parts.
    """
    asked = {
        f"fsdp={args.fsdp!r}": args.fsdp,
        "FSDP (ACCELERATE_USE_FSDP)": _is_on("ACCELERATE_USE_FSDP"),
        "Megatron-LM (ACCELERATE_USE_MEGATRON_LM)": _is_on("ACCELERATE_USE_MEGATRON_LM"),
        "a parallelism_config": args.parallelism_config or _is_on("ACCELERATE_USE_PARALLELISM_CONFIG"),
        "DeepSpeed's ZeRO stage 3": _zero_stage(args.deepspeed) == 3,
    }
    for name, wanted in asked.items():
        if wanted:
            raise UserError(f"{name} {ADVICE}")


def refuse_sharding(accelerator: Any) -> None:
    """By what accelerate has set up, which a program may have told it itself.

    Raises:
        UserError: if weights are cut into parts.
    """
    kind = str(accelerator.distributed_type.value)
    if kind in ("FSDP", "MEGATRON_LM"):
        raise UserError(f"accelerate runs with {kind}, which {ADVICE}")
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        raise UserError(f"accelerate runs with DeepSpeed's ZeRO stage 3, which {ADVICE}")


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1", "yes")


def _zero_stage(given: Any) -> Any:
    """Of a DeepSpeed configuration as transformers takes it (a dict, a file, its base64), or of the launcher's."""
    if not given and _is_on("ACCELERATE_USE_DEEPSPEED"):
        given = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
        if given in (None, "", "none"):
            return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    if not given:
        return None
    if not isinstance(given, dict):
        try:
            path = Path(given)
            text = path.read_bytes() if path.is_file() else base64.urlsafe_b64decode(given)
            given = json.loads(text)
        except (OSError, ValueError, binascii.Error, RecursionError) as error:
            raise UserError(f"deepspeed={str(given)[:200]!r} is neither a JSON file nor one in base64.") from error
    block = given.get("zero_optimization") if isinstance(given, dict) else None
    return block.get("stage") if isinstance(block, dict) else None
