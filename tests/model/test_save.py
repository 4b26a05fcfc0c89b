"""Is a model saved as an ordinary checkpoint, also for transformers 4, and never lost at its save?"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from forwards import TEXT, batch, model_of, plain_logits
from peft import LoraConfig, get_peft_model
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3Config, GenerationConfig

from efface.errors import RunError, UserError
from efface.model.fingerprint import fingerprint_of
from efface.model.load import load_model
from efface.model.save import repair_generation_config_, save_model

# Settings that load with a warning at most, and which `GenerationConfig.save_pretrained` refuses.
UNSAVABLE: list[dict[str, Any]] = [
    {"temperature": 0.6},
    {"temperature": 0.6, "top_p": 0.9, "top_k": 20},
    {"temperature": 1e-6, "do_sample": False},
    {"min_p": 0.1},
    {"early_stopping": True},
    {"length_penalty": 0.5},
    {"use_cache": False, "cache_implementation": "static"},
    {"output_scores": True},
    {"pad_token_id": -1},
]


def with_settings(directory: Path, **settings: Any) -> Path:
    save_model(tiny_model("llama"), tiny_tokenizer(), directory)
    file = directory / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return directory


@pytest.mark.parametrize("settings", UNSAVABLE, ids=lambda settings: ",".join(settings))
def test_a_model_that_loads_can_be_saved(settings: dict[str, Any], tmp_path: Path) -> None:
    path = with_settings(tmp_path / "a", **settings)
    model, tokenizer = load_model(path)
    model.generation_config.eos_token_id = [2, 3]  # as Trainer does, from when on transformers is strict
    save_model(model, tokenizer, tmp_path / "b")
    written = GenerationConfig.from_pretrained(tmp_path / "b")
    written.validate(strict=True)
    assert written.eos_token_id == [2, 3] and not written.do_sample


@pytest.mark.parametrize(
    "settings", [{"num_return_sequences": 2}, {"early_stopping": "sometimes"}, {"max_new_tokens": -1}]
)
def test_a_config_that_does_not_load_is_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    [name] = settings
    with pytest.raises(UserError, match=f"model directory '.*' cannot be loaded .*{name}"):
        load_model(with_settings(tmp_path, **settings))


def test_what_has_an_effect_stays() -> None:
    model = tiny_model("llama")
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, eos_token_id=[2, 5], pad_token_id=0, repetition_penalty=1.1
    )
    config = model.generation_config
    assert repair_generation_config_(model) == [] and model.generation_config is config


def test_only_what_has_none_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    model.generation_config = GenerationConfig(eos_token_id=[2, 5], repetition_penalty=1.1, max_length=77)
    model.generation_config.temperature, model.generation_config.top_p = 0.6, 0.9
    assert sorted(repair_generation_config_(model)) == ["temperature", "top_p"]
    config = model.generation_config
    assert (config.eos_token_id, config.repetition_penalty, config.max_length) == ([2, 5], 1.1, 77)
    assert config.temperature in (None, 1.0) and config.do_sample is not True
    assert "generation_config: temperature=0.6, top_p=0.9 left out" in caplog.text


def test_a_model_object_is_saved_and_not_changed(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.generation_config.temperature = 0.6
    config = model.generation_config
    save_model(model, None, tmp_path)
    assert model.generation_config is config and config.temperature == 0.6
    GenerationConfig.from_pretrained(tmp_path).validate(strict=True)


@pytest.mark.parametrize(
    "error", [Exception("No space left on device (os error 28)"), ValueError("no"), AttributeError("none")]
)
def test_whatever_a_save_raises_is_one_line(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    tokenizer = tiny_tokenizer()
    monkeypatch.setattr(type(tokenizer), "save_pretrained", fail)
    with pytest.raises(
        RunError, match=r"the model was not saved to '.*': (No space left|no|.*none).* Free some space"
    ):
        save_model(tiny_model("llama"), tokenizer, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_an_ordinary_checkpoint(family: str, tmp_path: Path) -> None:
    model, tokenizer = model_of(family), tiny_tokenizer()
    save_model(model, tokenizer, tmp_path)
    input_ids, _ = batch((9,))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(plain_logits(loaded, input_ids[0]), plain_logits(model, input_ids[0]), rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    ours, our_tokenizer = load_model(tmp_path, device="cpu")
    assert not ours.training and our_tokenizer.chat_template == tokenizer.chat_template
    torch.testing.assert_close(plain_logits(ours, input_ids[0]), plain_logits(model, input_ids[0]), rtol=0, atol=0)
    assert ours.config.architectures == [type(model).__name__]


# What transformers 4 reads at the top level of config.json. Without it, it silently takes base 10,000.
ROTARY_OF_TRANSFORMERS_4: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 54321.0},
    "gemma": {"rope_theta": 54321.0},
    "gemma2": {"rope_theta": 54321.0},
    "qwen2": {"rope_theta": 54321.0},
    "qwen3": {"rope_theta": 54321.0},
    "mistral": {"rope_theta": 54321.0},
    "phi": {"rope_theta": 54321.0, "partial_rotary_factor": 0.5},
    "gpt_neox": {"rotary_emb_base": 54321.0, "rotary_pct": 0.5},
    "gemma3": {"rope_theta": 54321.0, "rope_local_base_freq": 1234.0},
}


def rope_parameters(family: str) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 54321.0}
    if family == "gemma3":
        return {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 1234.0}}
    return rope | ({"partial_rotary_factor": 0.5} if family in ("phi", "gpt_neox") else {})


@pytest.mark.parametrize("family", ROTARY_OF_TRANSFORMERS_4)
def test_transformers_4_finds_the_rotary_base(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, rope_parameters=rope_parameters(family))
    save_model(model, tiny_tokenizer(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {name: config[name] for name in ROTARY_OF_TRANSFORMERS_4[family]} == ROTARY_OF_TRANSFORMERS_4[family]
    assert "rope_scaling" not in config and config["torch_dtype"] == "float32"
    # transformers 5 is not confused by the additional names, and the base matters.
    row = batch((30,))[0][0]
    expected = plain_logits(model, row)
    torch.testing.assert_close(plain_logits(load_model(tmp_path)[0], row), expected, rtol=0, atol=0)
    assert not torch.allclose(plain_logits(tiny_model(family), row), expected, atol=1e-3)


def test_transformers_4_finds_the_rotary_settings_of_a_model_of_texts_and_images(tmp_path: Path) -> None:
    """They stand in the part of the configuration that is of the decoder."""
    scaled = {"rope_type": "linear", "factor": 8.0, "rope_theta": 54321.0}
    text = {
        **{"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ["sliding_attention", "full_attention"]},
        "rope_parameters": rope_parameters("gemma3") | {"full_attention": scaled},
    }
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision | sizes, mm_tokens_per_image=1)
    model = AutoModelForCausalLM.from_config(config)
    before = fingerprint_of(model)
    save_model(model, tiny_tokenizer(), tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (54321.0, 1234.0)
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert fingerprint_of(load_model(tmp_path, device="cpu")[0]) == before


def test_transformers_4_finds_a_scaled_rotary_embedding(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = tiny_model("llama", rope_parameters={"rope_theta": 54321.0, **scaling})
    save_model(model, None, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_scaling"] == scaling and config["rope_theta"] == 54321.0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    row = batch((30,))[0][0]
    torch.testing.assert_close(plain_logits(loaded, row), plain_logits(model, row), rtol=0, atol=0)
    assert not (tmp_path / "tokenizer_config.json").exists()


def test_transformers_4_finds_the_tokenizer_class(tmp_path: Path) -> None:
    save_model(model_of("gpt2"), tiny_tokenizer(), tmp_path)
    save_model(model_of("gpt2"), AutoTokenizer.from_pretrained(tmp_path), tmp_path / "again")
    for directory in (tmp_path, tmp_path / "again"):
        config = json.loads((directory / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 5 writes TokenizersBackend


def test_transformers_4_finds_further_special_tokens(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|a|>", "<|b|>"]})
    save_model(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["additional_special_tokens"] == ["<|a|>", "<|b|>"]
    assert not isinstance(config.get("extra_special_tokens"), list)  # of which version 4 asks its keys
    assert AutoTokenizer.from_pretrained(tmp_path).all_special_tokens == tokenizer.all_special_tokens


def test_transformers_4_finds_the_three_fields_of_a_phi_3_for_long_texts(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 54321.0, **factors, "original_max_position_embeddings": 64}
    model = tiny_model("phi3", rope_parameters=rope, original_max_position_embeddings=64)
    save_model(model, None, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rope_scaling"] == {"type": "longrope", **factors}
    row = batch((30,))[0][0]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(plain_logits(loaded, row), plain_logits(model, row), rtol=0, atol=0)


def adapted(model: Any) -> Any:
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(model, config)


@pytest.mark.parametrize("before", ["adapter", "whole", "shards"])
@pytest.mark.parametrize("now", ["adapter", "whole", "shards"])
def test_what_is_loaded_is_what_was_saved_last(before: str, now: str, tmp_path: Path) -> None:
    save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "base")
    found = []
    for seed, kind in enumerate((before, now)):
        torch.manual_seed(seed)
        base, tokenizer = load_model(tmp_path / "base", device="cpu")
        model = adapted(base) if kind == "adapter" else tiny_model("llama", seed=seed + 1)
        save_model(model, tokenizer, tmp_path / "out", **({"max_shard_size": "20KB"} if kind == "shards" else {}))
        row = batch((9,))[0][0]
        found.append(plain_logits(model.eval(), row))
    loaded = plain_logits(load_model(tmp_path / "out", device="cpu")[0], row)
    torch.testing.assert_close(loaded, found[1])
    assert not torch.allclose(found[0], found[1], atol=1e-3)
