"""Is a model never lost at its save? What its generation_config holds, and what the disk says."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model, tiny_tokenizer
from transformers import GenerationConfig

from efface.errors import RunError, UserError
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
