"""Is all of a model there? What a checkpoint lacks is an error, never drawn at random.

transformers fills what a checkpoint lacks with fresh numbers and a warning.
"""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from efface.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WRAPPERS = {"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile"}
"""Prefix of the names in a state dict -> what puts it there when its own is saved instead of the model's."""


def load_whole(auto_class: Any, name: str | os.PathLike[str], what: str, **settings: Any) -> "PreTrainedModel":
    """`auto_class.from_pretrained(name, **settings)`, of a checkpoint that holds all of the model's weights.

    Only safetensors are read: pickled weights, which could run code, are not. Tied weights need be there once; what
    the family declares may be missing (`_keys_to_ignore_on_load_missing`), may.

    Raises:
        UserError: if weights are missing, the model has fewer blocks than the checkpoint, or its weights are quantised
            by a method that transformers would pass over with a warning.
    """
    with without_report():
        model, info = auto_class.from_pretrained(
            name, output_loading_info=True, trust_remote_code=False, use_safetensors=True, **settings
        )
    quantized = getattr(model.config, "quantization_config", None)
    if isinstance(quantized, dict) and quantized and getattr(model, "hf_quantizer", None) is None:
        raise UserError(
            f"{what} is quantised by {quantized.get('quant_method')!r}, which this transformers does not know. Save "
            "it de-quantised, without quantization_config in its config.json."
        )
    mismatched = [key[0] if isinstance(key, tuple) else key for key in info.get("mismatched_keys", ())]
    missing = sorted({*info["missing_keys"], *mismatched})
    if missing:
        raise UserError(incomplete(what, missing, sorted(info["unexpected_keys"]), len(model.state_dict())))
    known = model.state_dict().keys()
    beyond = sorted(key for key in info["unexpected_keys"] if re.sub(r"\.\d+\.", ".0.", key, count=1) in known)
    if beyond:
        raise UserError(
            f"{what} has weights of more blocks than its config.json says ({listed(beyond)}): the model would end "
            "before them. Correct num_hidden_layers."
        )
    return model


@contextlib.contextmanager
def without_report() -> Iterator[None]:
    """Inside, transformers does not tell in a table what a checkpoint lacks: it is raised here, in a line."""
    logger = logging.getLogger("transformers.modeling_utils")

    def other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


@contextlib.contextmanager
def without_old_names() -> Iterator[None]:
    """Inside, nobody is warned that peft asks transformers 5 for a property by its former name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def incomplete(what: str, missing: list[str], unexpected: list[str], n: int) -> str:
    """What is wrong with a checkpoint of `n` weights that lacks some and has others, and what to do."""
    prefix = _common_prefix(missing, unexpected)
    if prefix is not None:
        made = f", as {WRAPPERS[prefix]} leaves them" if prefix in WRAPPERS else ""
        reason = f"Its names begin with {prefix!r}{made}: take that off the names and save again."
    elif unexpected:
        reason = (
            f"It holds {len(unexpected)} other tensors ({listed(unexpected)}): is config.json that of another model?"
        )
    else:
        reason = "Pass the whole checkpoint, with the config.json that belongs to it."
    return f"{what} lacks {len(missing)} of {n} weights ({listed(missing)}): they would be random numbers. {reason}"


def _common_prefix(missing: Iterable[str], unexpected: Iterable[str]) -> str | None:
    """What stands before the name of every missing weight in the file, if that is so."""
    there, first = set(unexpected), next(iter(missing))
    for key in sorted(there):
        prefix = key.removesuffix(first)
        if prefix != key and all(prefix + name in there for name in missing):
            return prefix
    return None


def listed(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
