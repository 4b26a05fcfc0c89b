"""Which ways of spreading a model over processes are refused? Those that cut its weights into parts, but for FSDP2.

FSDP2 (`fully_shard`) puts whole weights into the model for the time of a forward and its backward; whoever reads the
output head there (`Head`) trains it as the model would. What stands outside of that time, or changes the weights
itself, does not fit it. FSDP1, ZeRO-3 and Megatron flatten what they cut: what is read there is a copy that nothing
updates, and training would go on with a head that gets no gradient, without a word.
"""

import base64
import binascii
import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from efface.errors import UserError, reason_of

ADVICE = (
    "cuts the weights into parts, and the output head that efface projects with would be a copy that nothing updates. "
    "Launch with torchrun or `accelerate launch --multi_gpu` (every process has the whole model), or with FSDP2 "
    "(configs/accelerate/fsdp2.yaml); where memory is short, use lora_r or trainable_layers, gradient_checkpointing, "
    "or DeepSpeed's stage 1 or 2."
)
PLUGIN = {
    "fsdp_version": "FSDP_VERSION",
    "cpu_ram_efficient_loading": "FSDP_CPU_RAM_EFFICIENT_LOADING",
    "state_dict_type": "FSDP_STATE_DICT_TYPE",
}
"""What is looked at, as accelerate's plugin and as its launcher call it."""


def refuse_sharded(args: Any) -> None:
    """By what the training arguments and accelerate's launcher ask for; before anything is set up.

    Raises:
        UserError: if weights would be cut into parts in a way, or beside a setting, that does not work.
    """
    asked = {
        "Megatron-LM (ACCELERATE_USE_MEGATRON_LM)": _is_on("ACCELERATE_USE_MEGATRON_LM"),
        "a parallelism_config": args.parallelism_config or _is_on("ACCELERATE_USE_PARALLELISM_CONFIG"),
        "DeepSpeed's ZeRO stage 3": _zero_stage(args.deepspeed) == 3,
    }
    for name, wanted in asked.items():
        if wanted:
            raise UserError(f"{name} {ADVICE}")
    if args.fsdp:
        _check_fsdp(_fsdp_config(args.fsdp_config), args)
    elif _is_on("ACCELERATE_USE_FSDP"):
        unset = {"fsdp_version": "1", "state_dict_type": "SHARDED_STATE_DICT", "cpu_ram_efficient_loading": "true"}
        _check_fsdp({name: os.environ.get(variable, unset[name]) for name, variable in PLUGIN.items()}, args)


def _fsdp_config(given: Any) -> dict[str, Any]:
    """`fsdp_config` as transformers takes it (a dict, or a file of one), by the names of accelerate's plugin."""
    if isinstance(given, str | os.PathLike):
        try:
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"fsdp_config={str(given)[:200]!r} is no JSON file: {reason_of(error)}.") from error
    settings = {str(name).removeprefix("fsdp_"): value for name, value in (given or {}).items()}
    version = 1 if settings.get("xla") else settings.pop("version", 2)
    return {"fsdp_version": version, "state_dict_type": "FULL_STATE_DICT"} | settings


def _check_fsdp(given: dict[str, Any], args: Any) -> None:
    """Raise a `UserError` if it is not FSDP2, saves in parts, loads in one process alone or does not fit `args`."""
    if str(given["fsdp_version"]) != "2":
        raise UserError(f"FSDP of version {given['fsdp_version']} {ADVICE}")
    state_dict = str(getattr(given.get("state_dict_type"), "name", given.get("state_dict_type", "")))
    if "FULL" not in state_dict:
        raise UserError(
            f"fsdp_state_dict_type={state_dict}: the trained model would not be written as a checkpoint that others "
            "load. Set FULL_STATE_DICT, as configs/accelerate/fsdp2.yaml does."
        )
    if str(given.get("cpu_ram_efficient_loading", False)).lower() in ("true", "1", "yes"):
        raise UserError(
            "fsdp_cpu_ram_efficient_loading: only the first process would have the weights, and every one checks the "
            "model before it is cut. Set it to false, as configs/accelerate/fsdp2.yaml does."
        )
    elsewhere = {
        "withstand": (bool(args.withstand), "none"),
        "trainable": (args.trainable != "all", "all"),
        "erase_gradient": (getattr(args, "erase_gradient", "full") != "full", "full"),
    }
    for name, (wanted, without) in elsewhere.items():
        if wanted:
            raise UserError(
                f"{name}={getattr(args, name)!r} looks at whole weights and gradients, which no process has under "
                f"FSDP. Pass --{name} {without}, or launch with torchrun, where every process has the whole model."
            )


def parts_of(accelerator: Any, args: Any, model: nn.Module) -> int:
    """Over how many processes the weights will be cut; 1: each has all of them. A model that will be cut goes to the
    device before: all that comes until then looks at the whole of it.

    Raises:
        UserError: as `refuse_sharding`.
    """
    refuse_sharding(accelerator, args)
    if not accelerator.is_fsdp2:
        return 1
    model.to(args.device)
    return int(accelerator.num_processes)


def refuse_sharding(accelerator: Any, args: Any) -> None:
    """By what accelerate has set up, which a program may have told it itself.

    Raises:
        UserError: if weights are cut into parts in a way that does not work, or not cut though it was asked for.
    """
    kind = str(accelerator.distributed_type.value)
    if kind == "MEGATRON_LM":
        raise UserError(f"accelerate runs with {kind}, which {ADVICE}")
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        raise UserError(f"accelerate runs with DeepSpeed's ZeRO stage 3, which {ADVICE}")
    if kind == "FSDP":
        _check_fsdp({name: getattr(accelerator.state.fsdp_plugin, name, None) for name in PLUGIN}, args)
    elif args.fsdp or _is_on("ACCELERATE_USE_FSDP"):
        raise UserError(
            f"FSDP was asked for, and accelerate runs with {kind}: it cuts no weights on a CPU, or in one process. "
            "Leave it out, or launch several processes with a GPU each."
        )


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
