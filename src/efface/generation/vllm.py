"""How does vLLM write what a checkpoint would? It gets our prompts as token ids, our ends of a text and our settings.

vLLM reads files and no model object, so this starts from the name of a checkpoint. Greedy text should be that of our
decoder up to the rounding of logits, which differs from kernel to kernel and from batch to batch. Sampled text is
drawn from the same warped distribution with other random numbers: one seed for each (seed, place of the prompt in the
list), to which vLLM adds the number of the sample. So draws do not depend on the order of serving; but what two
generators wrote shares none.

Made after the documentation and the source of vLLM. It has not been run: no GPU was there, and the tests put a
stand-in of its interface in its place (`tests/support/vllm_stand_in.py`).
"""

import contextlib
import gc
import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from efface.errors import RunError, UserError, explained, reason_of
from efface.generation.decoder import end_ids
from efface.generation.decoding import Decoding
from efface.generation.prompts import encode_prompts
from efface.model.devices import default_device
from efface.model.loading import how_to_load
from efface.model.names import short
from efface.model.ordinary import OrdinaryCheckpoint, check_ordinary, ordinary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTEAD = "Leave generator='vllm' (--generator vllm) out for efface's own decoder."
TEMPERATURES = (0.01, 2.0)
"""vLLM raises a lower one to the first of these, and refuses one above the second."""
SHARE = 0.9
"""Of the accelerator's free memory, for weights and cache."""
NO_STATISTICS = "VLLM_NO_USAGE_STATS"
"""Where it is set, vLLM tells nobody how it is used: work on local files asks nobody."""


def check_vllm(model: object, decoding: Decoding) -> None:
    """Nothing, if vLLM can write so for that model, as far as is seen before anything is loaded.

    Args:
        model: what was passed for one; the name of a checkpoint is needed.

    Raises:
        UserError: if vLLM is not installed, or cannot do what is asked.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "generator='vllm' needs the package vllm, which is not installed: pip install 'efface[vllm]', on a "
            f"machine with an accelerator that it supports. {INSTEAD}"
        )
    if not isinstance(model, str | os.PathLike):
        raise UserError(
            f"generator='vllm' reads a checkpoint from the disk, and a {type(model).__name__} in memory may be "
            "another model by now. Save it and pass the directory; what changes models (attacks, training) takes "
            "efface's own decoder."
        )
    if decoding.without:
        raise UserError(f"without={list(decoding.without)}: vLLM is not asked to leave out tokens by id. {INSTEAD}")
    least, most = TEMPERATURES
    if decoding.sampled and not least <= decoding.temperature <= most:
        raise UserError(f"temperature={decoding.temperature}: vLLM takes {least} to {most}. {INSTEAD}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"generator='vllm' works in one process, and here are several (WORLD_SIZE). {INSTEAD}")
    with _of_vllm():
        check_ordinary(model)


def written_by_vllm(
    checkpoint: object,
    processing_class: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    decoding: Decoding,
    *,
    progress: bool = False,
) -> list[tuple[list[int], list[list[int]]]]:
    """Of each prompt the token ids that were continued, and its `decoding.samples` continuations, like our decoder's.

    The engine lives as long as this call. It logs as vLLM does (VLLM_LOGGING_LEVEL), and takes `SHARE` of the memory
    that is free on the first accelerator.

    Args:
        checkpoint: what `load_model` takes, but for an adapter and a model with interventions.
        processing_class: the tokenizer that makes the prompts token ids; vLLM reads and writes ids alone.
        progress: show vLLM's bar.

    Returns:
        New tokens alone, up to and including the one that ends the text, if one does.

    Raises:
        UserError: as `check_vllm`; if there is no such checkpoint, or vLLM cannot run it.
        RunError: if vLLM breaks off.
    """
    check_vllm(checkpoint, decoding)
    name = os.fspath(checkpoint)  # type: ignore[call-overload]  # it has just been looked at
    with _of_vllm():
        files = ordinary(name)
    described: Any = files  # of a model, only its settings are looked at
    encoded = encode_prompts(described, processing_class, prompts, decoding, room=decoding.max_new_tokens)
    if not encoded:
        return []
    ends = end_ids(described, processing_class)
    engine = {
        "model": os.fspath(files.directory),
        "tokenizer": os.fspath(files.directory),
        "dtype": _dtype(name, files, decoding),
        "max_model_len": max(map(len, encoded)) + decoding.max_new_tokens,
        "seed": decoding.seed % 2**32,  # every request that draws has its own
        "gpu_memory_utilization": _share_of_memory(),
        "trust_remote_code": False,
        "load_format": "safetensors",
        "generation_config": "vllm",  # none of the checkpoint's, whose max_new_tokens would bound ours
    }
    requests = [_request(decoding, place, ends) for place in range(len(encoded))]
    try:
        rows = _asked(f"model {short(name)!r}", engine, encoded, requests, progress)
    finally:  # where nothing holds the engine any more
        _free()
    return list(zip(encoded, rows, strict=True))


@contextlib.contextmanager
def set_aside_(model: nn.Module) -> Iterator[None]:
    """Inside, `model` waits in the machine's memory and vLLM has its accelerator; afterwards it is where it was."""
    device = next(model.parameters()).device
    if device.type == "cpu":
        yield
        return
    model.to("cpu")
    _free()
    try:
        yield
    finally:
        model.to(device)


def _request(decoding: Decoding, place: int, ends: Sequence[int]) -> dict[str, Any]:
    """The arguments of `SamplingParams` for one prompt.

    The seed is below 2^62: vLLM adds the number of the sample, and torch takes no more than 64 bits.
    """
    common = {
        "n": decoding.samples,
        "max_tokens": decoding.max_new_tokens,
        "stop_token_ids": list(ends),
        "ignore_eos": True,  # what ends a text is ours to say; its own idea of it may be another
        "detokenize": False,
    }
    if not decoding.sampled:
        return common | {"temperature": 0.0}
    drawn = np.random.SeedSequence([decoding.seed, place]).generate_state(1, np.uint64)
    how = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
    return common | how | {"seed": int(drawn[0] >> 2)}


def _asked(
    what: str,
    engine: dict[str, Any],
    encoded: Sequence[list[int]],
    requests: Sequence[dict[str, Any]],
    progress: bool,
) -> list[list[list[int]]]:
    """What vLLM writes: for each prompt the token ids of its samples."""
    with _no_statistics():
        with explained(what, f"vLLM's own log says more. {INSTEAD}", "cannot be run by vLLM"):
            import vllm

            running = vllm.LLM(**engine)
        try:
            params = [vllm.SamplingParams(**request) for request in requests]
            found = running.generate([{"prompt_token_ids": ids} for ids in encoded], params, use_tqdm=progress)
            return [[list(one.token_ids) for one in row.outputs] for row in found]
        except Exception as error:
            raise RunError(f"vLLM broke off ({reason_of(error, named=True)}). {INSTEAD}") from error
        finally:
            _close(running)


def _close(running: Any) -> None:
    """End the engine's processes. Versions differ in who does that: the engine itself, or what is inside it."""
    inside = getattr(getattr(running, "llm_engine", None), "engine_core", None)
    for one in (running, inside):
        shutdown = getattr(one, "shutdown", None)
        if shutdown is not None:
            shutdown()
            return


def _free() -> None:
    gc.collect()
    if default_device().type != "cpu":
        torch.accelerator.empty_cache()


@contextlib.contextmanager
def _of_vllm() -> Iterator[None]:
    """Inside, what is said of a model ends with what to do without vLLM."""
    try:
        yield
    except UserError as error:
        raise UserError(f"generator='vllm': {error} {INSTEAD}") from error


@contextlib.contextmanager
def _no_statistics() -> Iterator[None]:
    before = os.environ.get(NO_STATISTICS)
    os.environ[NO_STATISTICS] = "1"
    try:
        yield
    finally:
        os.environ.pop(NO_STATISTICS) if before is None else os.environ.update({NO_STATISTICS: before})


def _share_of_memory() -> float:
    """Of the accelerator's whole memory, as vLLM counts: a judge may have some of it."""
    if default_device().type == "cpu":
        return SHARE
    free, total = torch.accelerator.get_memory_info()
    return round(SHARE * free / total, 3)


def _dtype(name: str, files: OrdinaryCheckpoint, decoding: Decoding) -> str:
    """The precision in which our decoder would read the model (`precision.read_in`), by its name."""
    asked = how_to_load(name).precision
    precision = files.stored_in() if asked == "auto" else asked
    if decoding.dtype is not None and precision == torch.float32:
        return decoding.dtype
    return str(precision).removeprefix("torch.")
