"""Do two models compute the same? A hash of all that an output depends on: every cache is keyed by it.

The weights alone do not say: another `rope_theta` or `eos_token_id` in a JSON file, another `lora_alpha`, and the same
tensors compute something else.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from efface.model.families import GROWING_ROPE, ROPE_OF_TRANSFORMERS_4, attention_of
from efface.model.interventions import TENSORS, attached

# Of a configuration: where it came from, how it is stored, what is returned beside the logits. No logit depends on it.
VOLATILE = {
    "_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "_commit_hash",
    "use_cache", "return_dict", "output_attentions", "output_hidden_states", "output_router_logits",
    "_from_model_config",
}  # fmt: skip
# Of generation settings, what the decoder sets itself (`efface.generation.decoder`).
DECODED = {
    "max_length", "max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty",
    "no_repeat_ngram_size", "min_new_tokens", "min_length", "pad_token_id", "early_stopping",
}  # fmt: skip
# Of an adapter's configuration likewise.
VOLATILE_ADAPTER = {
    "base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "task_type",
}  # fmt: skip


def fingerprint_of(model: nn.Module) -> str:
    """Hash of what `model` computes; about a second for a gigabyte.

    The class, all weights and buffers, the configuration and attention implementation, what ends a generation, the
    adapters that are on, and the interventions. Not the library's version, nor the precision of an autocast: what
    depends on those adds them.
    """
    digest = hashlib.blake2b(type(model).__name__.encode(), digest_size=16)
    state = model.state_dict()
    for name, tensor in [*state.items(), *_other_buffers(model, set(state))]:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes(tensor))
    digest.update(_json(_settings(model)))
    for intervention in attached(model):
        digest.update(f"intervention {intervention.layer}".encode())
        for name in TENSORS:
            digest.update(_bytes(getattr(intervention, name)))
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of what a tokenizer makes of texts and ids, its chat template among it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Before the added tokens stand truncation and padding, which every call may set.
        rules = backend.to_str()
        rules = rules[rules.index('"added_tokens"') :]
    else:
        rules = json.dumps(sorted(tokenizer.get_vocab().items()))
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.all_special_ids]
    content = [type(tokenizer).__name__, rules, special, tokenizer("a b")["input_ids"], tokenizer.chat_template]
    return hashlib.blake2b(_json(content), digest_size=16).hexdigest()


def _settings(model: Any) -> dict[str, Any]:
    config, generation = getattr(model, "config", None), getattr(model, "generation_config", None)
    adapters = getattr(model, "peft_config", {})
    return {
        "config": None if config is None else _computed(config.to_dict()),
        "attention": None if config is None else list(_attention(config)),
        "generation": None
        if generation is None
        else {key: value for key, value in _computed(generation.to_dict()).items() if key not in DECODED},
        "adapters": {
            name: {str(key): value for key, value in adapter.to_dict().items() if key not in VOLATILE_ADAPTER}
            for name, adapter in adapters.items()
        },
        "adapted": list(_adapted(model)) if adapters else [],
    }


def _adapted(model: nn.Module) -> Iterator[list[Any]]:
    """Which adapters each module has on, how strongly."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield [name, module.active_adapters, module.disable_adapters, getattr(module, "scaling", None)]


def _computed(config: Any) -> Any:
    """A configuration, and those inside it, without what says nothing of the numbers."""
    if isinstance(config, list | tuple):
        return [_computed(value) for value in config]
    if not isinstance(config, dict):
        return config
    # `save_model` adds them for transformers 4; version 5 reads `rope_parameters`, if there are any.
    left_out = VOLATILE | (ROPE_OF_TRANSFORMERS_4 if config.get("rope_parameters") else set())
    return {str(name): _computed(value) for name, value in config.items() if name not in left_out}


def _attention(config: Any) -> Iterator[str | None]:
    yield attention_of(config)
    for name in getattr(config, "sub_configs", {}):
        yield from _attention(getattr(config, name, None))


def _other_buffers(model: nn.Module, known: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Those that no checkpoint holds, such as rotary frequencies; not what a forward changes by the text's length."""
    for prefix, module in model.named_modules():
        kind = getattr(module, "rope_type", "default")
        grows = GROWING_ROPE & set(kind.values() if isinstance(kind, dict) else [kind])
        for name, buffer in module.named_buffers(prefix=prefix, recurse=False):
            if name not in known and not (grows and name.endswith("inv_freq") and "original" not in name):
                yield name, buffer


def _json(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, default=_plain).encode("utf-8", "surrogatepass")


def _plain(value: Any) -> Any:
    """What JSON has no form for: a set of module names, an enumeration, a dtype."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
