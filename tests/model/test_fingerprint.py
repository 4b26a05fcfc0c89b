"""Is everything that an output depends on in the fingerprint, and in the keys of all that is kept on disk?

Of: evaluation/kept.py, files/digests.py
"""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grids import few
from peft import LoraConfig, get_peft_model
from polite import HELD_OUT
from stubs import nasty
from tiny import EOS_ID, FAMILIES, tiny_model, tiny_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from efface.attacks.target import Target
from efface.evaluation import kept
from efface.files.environment import versions
from efface.generation.decoding import Decoding
from efface.model.fingerprint import fingerprint_of, tokenizer_fingerprint
from efface.model.forward import Head
from efface.model.load import load_model
from efface.model.save import save_model
from efface.pairs.attribute import toxicity_probe
from efface.training.reference import LiveReference
from efface.training.reference_cache import open_cache

IDS = torch.tensor([[5, 60, 7, 8, 90, 10, 110, 12, 13, 140, 15, 16, 17, 180, 19, 20, 21, 22, 23, 24]])


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def others(value: Any) -> list[Any]:
    """Values that a field could have instead."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, max(value // 2, 1), 3]
    if isinstance(value, float):
        return [value * 3 + 0.1]
    if value is None:
        return [1, 0.5, True]
    if isinstance(value, list):
        return [value[::-1], ["full_attention"] * len(value)]
    return ["relu", "gelu"] if isinstance(value, str) else []


def variants(config: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """(where, another value) for every field of a configuration and of those inside it."""
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, value in config.items():
        if isinstance(value, dict) and name != "id2label":
            found += variants(value, (*path, name))
        else:
            found += [((*path, name), other) for other in others(value)]
    return found


@pytest.mark.parametrize("family", few(["gpt2", "llama", "gemma2", "gemma3", "gpt_neox", "opt"]))
def test_no_field_of_a_config_changes_the_output_alone(family: str) -> None:
    model = tiny_model(family)
    expected, known, effective = logits(model), fingerprint_of(model), set()
    for path, value in variants(model.config.to_dict()):
        changed = model.config.to_dict()
        inner = changed
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value
        try:
            twin = AutoModelForCausalLM.from_config(type(model.config).from_dict(changed))
            twin.load_state_dict(model.state_dict())
            output = logits(twin.eval())
        except Exception:  # a model that cannot be, or of another shape
            continue
        if output.shape != expected.shape or not torch.equal(output, expected):
            assert fingerprint_of(twin) != known, path
            effective.add(path[-1])
    assert len(effective) >= 2, effective  # or the test would say nothing


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_the_same_model(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    save_model(model, tiny_tokenizer(), tmp_path)
    assert fingerprint_of(load_model(tmp_path)[0]) == fingerprint_of(model)


def test_what_no_output_depends_on_is_left_out() -> None:
    model = tiny_model("llama")
    known = fingerprint_of(model)
    model.config._name_or_path, model.config.use_cache = "elsewhere", False
    model.generation_config.max_new_tokens = 7
    logits(model)
    assert fingerprint_of(model) == known


def test_a_long_text_does_not_make_another_model() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = tiny_model("llama", rope_parameters=rope, max_position_embeddings=8)
    known = fingerprint_of(model)
    logits(model)  # its frequencies are now those of 20 tokens
    assert fingerprint_of(model) == known


def changed(model: PreTrainedModel, how: str) -> None:
    if how == "end":
        model.generation_config.eos_token_id = [EOS_ID, 70]
    elif how == "suppressed":
        model.generation_config.suppress_tokens = [7]
    elif how == "buffer":
        model.model.rotary_emb.inv_freq.mul_(2)
    elif how == "attention":
        model.set_attn_implementation("eager")


@pytest.mark.parametrize("how", ["end", "suppressed", "buffer", "attention"])
def test_what_lies_outside_the_weights_and_the_config(how: str) -> None:
    model = tiny_model("llama")
    known = fingerprint_of(model)
    changed(model, how)
    assert fingerprint_of(model) != known


def test_an_adapter_by_its_strength_and_whether_it_is_on(tmp_path: Path) -> None:
    save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "base")
    base, tokenizer = load_model(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False))
    save_model(adapted, tokenizer, tmp_path / "adapter")
    first, _ = load_model(tmp_path / "adapter")
    known = fingerprint_of(first)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 64}))
    assert fingerprint_of(load_model(tmp_path / "adapter")[0]) != known
    assert fingerprint_of(load_model(tmp_path / "adapter", trainable=True)[0]) != known
    with first.disable_adapter():
        assert fingerprint_of(first) != known
    assert fingerprint_of(first) == known
    for module in first.modules():
        if isinstance(getattr(module, "scaling", None), dict):  # of each adapter; attention has a number
            module.scaling["default"] *= 2
    assert fingerprint_of(first) != known


# Tokenizers


def test_a_tokenizer_by_what_it_does() -> None:
    known = tokenizer_fingerprint(tiny_tokenizer())
    tokenizer = tiny_tokenizer()
    tokenizer(["a", "a b c d e"], padding=True, truncation=True, max_length=3)  # which it remembers
    assert tokenizer_fingerprint(tokenizer) == known
    assert tokenizer_fingerprint(tiny_tokenizer(add_bos=True)) != known
    assert tokenizer_fingerprint(tiny_tokenizer(eos_token="<bos>")) != known
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert tokenizer_fingerprint(tokenizer) != known
    added = tiny_tokenizer()
    added.add_tokens(["silly"])
    assert tokenizer_fingerprint(added) != known


# What is kept by it


def test_kept_generations_by_what_ends_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="efface.evaluation.kept")
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    prompts, decoding, path = ["The town", "You are a"], Decoding(max_new_tokens=12), tmp_path / "g.jsonl"
    first = kept.generate_or_recall(model, tokenizer, prompts, decoding, path)
    ends = copy.deepcopy(model)
    ends.generation_config.eos_token_id = [EOS_ID, first[0]["token_ids"][2]]
    again = kept.generate_or_recall(ends, tokenizer, prompts, decoding, path)
    assert len(again[0]["token_ids"]) <= 3 < len(first[0]["token_ids"])

    def recalled(tokenizer: Any) -> bool:
        caplog.clear()
        kept.generate_or_recall(ends, tokenizer, prompts, decoding, path)
        return "holds these generations already" in caplog.text

    assert recalled(tokenizer)
    assert not recalled(tiny_tokenizer(eos_token="<pad>"))
    assert not recalled(tokenizer) and recalled(tokenizer)  # the others took its place
    tokenizer.add_special_tokens({"additional_special_tokens": [" the"]})  # left out of the texts
    assert not recalled(tokenizer)


def test_the_reference_cache_by_config_precision_and_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    model, items = tiny_model("llama"), [([5, 6], [7, 8]), ([9], [10])]
    other = tiny_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 100.0})

    def opened(model: Any, **settings: Any) -> torch.Tensor:
        fingerprint = fingerprint_of(model)
        return open_cache(
            LiveReference(model, False), Head.of(model), items, [0], fingerprint=fingerprint, **settings
        )[0]["hidden"]

    first = opened(model)
    assert not torch.equal(opened(other), first)
    opened(model, autocast=torch.bfloat16)
    assert len(list((tmp_path / "reference").iterdir())) == 3
    monkeypatch.setattr("efface.training.reference_cache.versions", lambda: versions() | {"transformers": "4.0"})
    opened(model)
    assert len(list((tmp_path / "reference").iterdir())) == 4


def test_a_probe_by_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    texts = [f"{what} number {i}" for i in range(8) for what in ("silly", "silent")]
    for theta in (10000.0, 100.0, 100.0):
        model = tiny_model("llama", rope_parameters={"rope_type": "default", "rope_theta": theta})
        toxicity_probe(model, tiny_tokenizer(), texts, [1, 0] * 8)
    assert len(list((tmp_path / "probes").iterdir())) == 2


def test_a_probe_that_cannot_be_kept_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{what} number {i}" for i in range(8) for what in ("silly", "silent")]
    arguments: tuple[Any, ...] = (tiny_model("gpt2"), tiny_tokenizer(), texts, [1, 0] * 8)
    monkeypatch.setenv("EFFACE_CACHE", "/proc/no-such-cache")
    probe = toxicity_probe(*arguments)
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    np.testing.assert_array_equal(toxicity_probe(*arguments).weight, probe.weight)
    [file] = (tmp_path / "probes").iterdir()
    file.write_bytes(b"damaged")
    np.testing.assert_array_equal(toxicity_probe(*arguments).weight, probe.weight)


class Judge:
    """Keeps its name when it is trained anew."""

    name = "judge:DIR"

    def __init__(self, version: str):
        self.version = version

    def __call__(self, texts: Any) -> np.ndarray:
        return np.asarray(nasty(texts))


def test_a_target_by_its_judges_tokenizer_and_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")

    def described(judge: str = "a", tokenizer: Any = None, model: Any = model) -> dict[str, Any]:
        target = Target(model, tokenizer or tiny_tokenizer(), prompts=HELD_OUT, rows=[], scorers=[Judge(judge)])
        return json.loads(json.dumps(target.described()))

    known = described()
    assert described() == known
    assert described("b") != known
    template = tiny_tokenizer()
    template.chat_template = "{{ messages[0]['content'] }}"
    assert described(tokenizer=template) != known
    assert described(model=tiny_model("llama", rms_norm_eps=0.1)) != known
    monkeypatch.setattr("efface.attacks.target.versions", lambda: versions() | {"torch": "2.0"})
    assert described() != known
