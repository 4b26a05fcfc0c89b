"""Is whatever the user calls a model loaded, and is what is none, or does not belong together, refused in one line?

Weights that are missing: `test_whole.py`; what others raise meanwhile: `tests/test_errors.py`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import WEIGHTS, edit, logits, rewrite, saved
from forwards import TEXT, batch, model_of, plain_logits
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from efface.cli import main
from efface.errors import RunError, UserError
from efface.files.results import read_json
from efface.model.interventions import Intervention, attach_, attached
from efface.model.load import load_model, tokenizer_of
from efface.model.save import save_model
from efface.scoring.hf import HFScorer


def test_more_layers_than_could_be_built(tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path / "config.json", num_hidden_layers=2**31)
    with pytest.raises(
        UserError, match=rf"has {2**31} layers by its config.json \(num_hidden_layers\), but 20 tensors"
    ):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd"])
def test_an_index_that_names_files_elsewhere(name: str, tmp_path: Path) -> None:
    saved(tmp_path / "other")
    path = saved(tmp_path / "model")
    names = dict.fromkeys(load_file(path / WEIGHTS), name)
    (path / WEIGHTS).rename(path / "unused.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(UserError, match=rf"has weights elsewhere \('{name}' in model.safetensors.index.json\)"):
        load_model(path)


# Adapters


def adapter(directory: Path, config: Any = None, family: str = "llama") -> tuple[Path, torch.Tensor]:
    """A saved adapter with its base beside it, and what it computes."""
    base, tokenizer = load_model(saved(directory / "base", family))
    config = config or LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(base, config)
    save_model(model, tokenizer, directory / "adapter")
    return directory / "adapter", logits(model.eval())


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
        LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1], init_lora_weights=False),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"], init_lora_weights=False),
        LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], init_lora_weights=False),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
    ids=["linear", "one layer", "modules_to_save", "embeddings", "prompt tuning"],
)
def test_a_whole_adapter_loads(config: Any, tmp_path: Path) -> None:
    path, expected = adapter(tmp_path, config)
    torch.testing.assert_close(logits(load_model(path)[0]), expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_is_frozen_unless_it_is_to_be_trained(tmp_path: Path) -> None:
    path, expected = adapter(tmp_path)
    frozen, _ = load_model(path)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    model, _ = load_model(path, trainable=True)
    moved = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved == {name for name, _ in model.named_parameters() if "lora_" in name} and not model.training
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    logits_with_graph = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    logits_with_graph.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("rename", "match"),
    [
        (lambda name: name.replace("self_attn", "attention"), r"lacks \d+ of \d+ weights .*It holds"),
        (lambda name: f"module.{name}", r"Its names begin with 'module.'|It holds \d+ other tensors"),
        (lambda name: name if "layers.0" in name else None, r"lacks \d+ of \d+ weights \(base_model.*layers.1"),
    ],
)
def test_an_adapter_whose_names_do_not_match_is_refused(rename: Any, match: str, tmp_path: Path) -> None:
    path, _ = adapter(tmp_path)
    rewrite(
        path,
        lambda tensors: {rename(name): value for name, value in tensors.items() if rename(name)},
        "adapter_model.safetensors",
    )
    with pytest.raises(UserError, match=match):
        load_model(path)


@pytest.mark.parametrize(
    "fields",
    [{"layers_to_transform": [99]}, {"layers_to_transform": [0]}, {"target_modules": ["q_proj"]}, {"r": 4}],
)
def test_an_adapter_with_the_config_of_another_is_refused(fields: dict[str, Any], tmp_path: Path) -> None:
    path, _ = adapter(tmp_path, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    edit(path / "adapter_config.json", **fields)
    with pytest.raises(UserError, match="tensors have no place there|cannot be loaded"):
        load_model(path)


def test_an_adapter_without_effect_is_refused(tmp_path: Path) -> None:
    path, _ = adapter(tmp_path)
    edit(path / "adapter_config.json", layers_to_transform=[99], target_modules=["q_proj"])
    rewrite(path, lambda tensors: {}, "adapter_model.safetensors")
    with pytest.raises(UserError, match="it adapts none of its modules|not found in the base model"):
        load_model(path)


def test_adapters_that_name_themselves_or_each_other(tmp_path: Path) -> None:
    path, _ = adapter(tmp_path)
    edit(path / "adapter_config.json", base_model_name_or_path=str(path))
    with pytest.raises(UserError, match=r"adapter '.*adapter' is its own base model \(.* -> .*\). Put the model"):
        load_model(path)
    shutil.copytree(path, tmp_path / "other")
    edit(path / "adapter_config.json", base_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(UserError, match="is its own base model"):
        load_model(path)


def test_an_adapter_of_an_adapter(tmp_path: Path) -> None:
    path, _ = adapter(tmp_path)
    shutil.copytree(path, tmp_path / "second")
    edit(tmp_path / "second" / "adapter_config.json", base_model_name_or_path=str(path))
    with pytest.raises(UserError, match="was made for '.*adapter', which is an adapter itself. Merge that"):
        load_model(tmp_path / "second")


@pytest.mark.parametrize("base", [5, ["a"], {"a": 1}])
def test_a_base_that_is_no_name(base: Any, tmp_path: Path) -> None:
    path, _ = adapter(tmp_path)
    edit(path / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(UserError, match="names no base model: base_model_name_or_path in adapter_config.json is"):
        load_model(path)


@pytest.fixture
def cached_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Two commits of org/tiny in a cache of the hub, which cannot be reached: `main`, and `v2` with other weights."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = tmp_path / "hub" / "models--org--tiny"
    found = {"main": place / "snapshots" / ("a" * 40), "v2": place / "snapshots" / ("b" * 40)}
    (place / "refs").mkdir(parents=True)
    for name, folder in found.items():
        saved(folder)
        (place / "refs" / name).write_text(folder.name)
    rewrite(found["v2"], lambda tensors: {name: value + 0.1 for name, value in tensors.items()})
    return found


@pytest.mark.parametrize(("revision", "commit"), [("v2", "b" * 40), (None, "a" * 40)])
def test_an_adapter_is_put_on_the_commit_that_it_was_made_from(
    revision: str | None, commit: str, cached_hub: dict[str, Path], tmp_path: Path
) -> None:
    base, tokenizer = load_model("org/tiny", revision=revision)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    expected = logits(model.eval())
    save_model(model, tokenizer, tmp_path / "adapter")
    assert read_json(tmp_path / "adapter" / "adapter_config.json")["revision"] == commit
    assert not (tmp_path / "adapter" / "base_model.json").exists()
    other = cached_hub["main" if revision else "v2"].name
    for name in ("main", "v2"):  # both move on
        (cached_hub["main"].parents[1] / "refs" / name).write_text(other)
    again, _ = load_model(tmp_path / "adapter")
    torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5)
    save_model(again, tokenizer, tmp_path / "again")
    assert read_json(tmp_path / "again" / "adapter_config.json")["revision"] == commit


def test_an_adapter_is_put_on_the_folder_that_it_was_made_from(cached_hub: dict[str, Path], tmp_path: Path) -> None:
    saved(cached_hub["v2"] / "inner")
    rewrite(cached_hub["v2"] / "inner", lambda tensors: {name: value - 0.1 for name, value in tensors.items()})
    base, tokenizer = load_model("org/tiny", revision="v2", subfolder="inner")
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    save_model(model, tokenizer, tmp_path)
    assert read_json(tmp_path / "adapter_config.json")["revision"] == "b" * 40
    torch.testing.assert_close(logits(load_model(tmp_path)[0]), logits(model.eval()), rtol=1e-5, atol=1e-5)
    edit(tmp_path / "base_model.json", subfolder=5)
    with pytest.raises(UserError, match="'subfolder' must be a text"):
        load_model(tmp_path)


def in_cache(hub: dict[str, Path], name: str) -> Path:
    """The folder of another repository in that cache, of one commit."""
    place = hub["main"].parents[2] / f"models--org--{name}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("c" * 40)
    return place / "snapshots" / ("c" * 40)


@pytest.mark.parametrize("subfolder", [None, "inner"])
def test_an_adapter_of_the_hub_is_one_as_in_a_directory(
    subfolder: str | None, cached_hub: dict[str, Path], tmp_path: Path
) -> None:
    """transformers put it into the base unseen: merging left it out, training ended in a traceback."""
    base, tokenizer = load_model("org/tiny")
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    folder = in_cache(cached_hub, "adapter") / (subfolder or "")
    save_model(model, tokenizer, folder)
    expected = logits(model.eval())
    for trainable in (False, True):
        found, _ = load_model("org/adapter", subfolder=subfolder, trainable=trainable)
        assert isinstance(found, PeftModel) and found.get_base_model().name_or_path == "org/tiny"
        assert any(parameter.requires_grad for parameter in found.parameters()) == trainable
        torch.testing.assert_close(logits(found), expected, rtol=1e-5, atol=1e-5)
    if subfolder is None:
        assert main(["merge", "org/adapter", "-o", str(tmp_path / "whole")]) == 0
        assert not (tmp_path / "whole" / "adapter_config.json").exists()
        torch.testing.assert_close(logits(load_model(tmp_path / "whole")[0]), expected, rtol=1e-4, atol=1e-4)

    def first_block(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value for name, value in tensors.items() if "layers.1" not in name}

    rewrite(folder, first_block, "adapter_model.safetensors")
    with pytest.raises(UserError, match="lacks 14 of 28 weights"):
        load_model("org/adapter", subfolder=subfolder)


@pytest.mark.parametrize("subfolder", [None, "inner"])
@pytest.mark.parametrize("adapted", [False, True])
def test_a_model_of_the_hub_with_interventions_has_them_or_is_refused(
    adapted: bool, subfolder: str | None, cached_hub: dict[str, Path]
) -> None:
    model, tokenizer = load_model("org/tiny")
    if adapted:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))  # type: ignore[assignment]
    attach_(model, [Intervention(0, torch.zeros(32, 0), torch.zeros(0, 32), torch.ones(32))])
    folder = in_cache(cached_hub, "steered") / (subfolder or "")
    save_model(model, tokenizer, folder)
    found, _ = load_model("org/steered", subfolder=subfolder)
    assert len(attached(found)) == 1
    torch.testing.assert_close(logits(found), logits(model.eval()), rtol=1e-5, atol=1e-5)
    (folder / "interventions.safetensors").unlink()
    with pytest.raises(UserError, match="lacks interventions.safetensors.* without which it is the untouched model"):
        load_model("org/steered", subfolder=subfolder)


@pytest.mark.parametrize("revision", [5, ["v2"]])
def test_a_revision_of_the_base_that_is_none(revision: Any, tmp_path: Path) -> None:
    path, _ = adapter(tmp_path)
    edit(path / "adapter_config.json", revision=revision)
    with pytest.raises(UserError, match="'revision' must be a text"):
        load_model(path)


# Files of a wrong shape

WRONG: list[Any] = [None, [], {}, "x", -1, 0, 1.5, [None], {"a": 1}, 10**30]


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_fields_of_a_wrong_type_are_refused_or_do_no_harm(name: str, step: int, tmp_path: Path) -> None:
    saved(tmp_path / "model")
    file = tmp_path / "model" / name
    content = file.read_text()
    pairs = [(field, value) for field in json.loads(content) for value in WRONG]
    for field, value in pairs[:: 7 * step]:  # 7 and the number of values have no common factor: each comes up
        file.write_text(json.dumps(json.loads(content) | {field: value}))
        try:
            load_model(tmp_path / "model")
        except (UserError, RunError) as error:
            assert "\n" not in str(error) and len(str(error)) < 1000 + len(str(tmp_path))


@pytest.mark.parametrize("content", ["[]", "5", "null", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "{", "", "\0"])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json"]
)
def test_json_that_is_none(name: str, content: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    (path / name).write_text(content)
    try:
        load_model(path)
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "no-such-method"])
def test_a_quantised_model_without_its_package(method: str, tmp_path: Path) -> None:
    saved(tmp_path)
    flags = {"load_in_4bit": True} if method == "bitsandbytes" else {}  # else it would stand for any of them
    edit(tmp_path / "config.json", quantization_config={"quant_method": method, "bits": 4, "group_size": 128, **flags})
    known = r"cannot be loaded \(.+\). (Install what it needs|Save)"
    unknown = "is quantised by 'no-such-method', which this transformers does not know"
    with pytest.raises(UserError, match=unknown if method == "no-such-method" else known):
        load_model(tmp_path)


def test_code_of_a_repository_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for name in ("config.json", "tokenizer_config.json"):
        content = (tmp_path / name).read_text()
        classes = {
            "AutoConfig": "evil.Evil",
            "AutoModelForCausalLM": "evil.Evil",
            "AutoTokenizer": ["evil.Evil", None],
        }
        edit(tmp_path / name, auto_map=classes, model_type="evil", tokenizer_class="Evil")
        with pytest.raises(UserError, match="it needs code of its own.* Code from a repository is never run"):
            load_model(tmp_path)
        if name == "config.json":
            with pytest.raises(UserError, match="it needs code of its own"):
                HFScorer(str(tmp_path))
        (tmp_path / name).write_text(content)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["x" * 5000, "./" + "y/" * 3000, "z" * 300 + ".gguf", "a\0b", "\n", ""])
def test_names_that_no_file_system_takes(name: str) -> None:
    with pytest.raises(UserError) as error:
        load_model(name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_an_unknown_dtype(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dtype 'float7' is none of weights"):
        load_model(tmp_path, dtype="float7")


class Panic(BaseException):
    """As the Rust of tokenizers raises it."""


def test_a_model_object_that_names_no_tokenizer() -> None:
    model: PreTrainedModel = tiny_model("gpt2")
    model.config._name_or_path = "/no/such/place"
    with pytest.raises(
        UserError, match="GPT2LMHeadModel names no checkpoint with a tokenizer: '/no/such/place' cannot"
    ):
        tokenizer_of(model)


def test_a_tokenizer_of_another_kind_of_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise Exception("data did not match any variant of untagged enum")  # bare, as tokenizers raises it

    saved(tmp_path)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(
        UserError, match=r"cannot be loaded \(data did not match any variant.*\). Save the model again"
    ):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtype(dtype: Any, tmp_path: Path) -> None:
    save_model(model_of("gpt2"), tiny_tokenizer(), tmp_path)
    assert load_model(tmp_path, dtype=dtype)[0].dtype == torch.bfloat16
    assert load_model(tmp_path)[0].dtype == torch.float32


def test_an_adapter_loads_onto_its_base(tmp_path: Path) -> None:
    save_model(model_of("llama"), tiny_tokenizer(), tmp_path / "base")
    base, tokenizer = load_model(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    row = batch((9,))[0][0]
    expected = plain_logits(adapted.eval(), row)
    assert not torch.allclose(expected, plain_logits(model_of("llama"), row), atol=1e-3)
    save_model(adapted, tokenizer, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    loaded, its_tokenizer = load_model(tmp_path / "adapter")
    torch.testing.assert_close(plain_logits(loaded, row), expected, rtol=1e-5, atol=1e-5)
    assert its_tokenizer(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"] and not loaded.training
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "adapter" / name).unlink()
    assert load_model(tmp_path / "adapter")[1](TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]  # the base's
    config_file = tmp_path / "adapter" / "adapter_config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match="names no base model"):
        load_model(tmp_path / "adapter")


def test_missing_directory() -> None:
    with pytest.raises(
        UserError, match="model './absent' is not a checkpoint directory or a .gguf file. Pass a direc"
    ):
        load_model("./absent")
    with pytest.raises(UserError, match="model '/no/such/place' is not a checkpoint directory"):
        load_model(Path("/no/such/place"))


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="model.bin' is not a checkpoint directory"):
        load_model(tmp_path / "model.bin")


def test_directory_without_config_or_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no config.json. Pass the directory that save_pretrained wrote"):
        load_model(tmp_path)
    model_of("gpt2").config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has a config.json but no weights \(\*.safetensors\). Copy"):
        load_model(tmp_path)


def test_directory_without_tokenizer(tmp_path: Path) -> None:
    save_model(model_of("gpt2"), None, tmp_path)
    with pytest.raises(UserError, match="has no tokenizer. Save it there with tokenizer.save_pretrained"):
        load_model(tmp_path)


@pytest.mark.parametrize("broken", ["model.safetensors", "config.json", "tokenizer.json"])
def test_directory_with_a_broken_file(broken: str, tmp_path: Path) -> None:
    save_model(model_of("gpt2"), tiny_tokenizer(), tmp_path)
    (tmp_path / broken).write_bytes((tmp_path / broken).read_bytes()[:50])
    with pytest.raises(
        UserError, match=rf"model directory '{tmp_path}' cannot be loaded \(.+\). Save the model again"
    ):
        load_model(tmp_path)


def test_adapter_with_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tmp_path)
    save_model(model_of("gpt2"), tiny_tokenizer(), tmp_path / "base")
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "base"), "peft_type": "LORA", "task_type": "CAUSAL_LM"})
    )
    with pytest.raises(UserError, match=rf"model directory '{tmp_path}' cannot be loaded"):  # it has no weights
        load_model(tmp_path)


def test_hub_error_without_a_message(open_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(UserError, match=r"from the Hugging Face hub \(OSError\)"):
        load_model("someone/model")


def test_hub_id_and_revision(open_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def found(name: str, **kwargs: Any) -> Any:
        asked.append((name, kwargs["revision"], kwargs["trust_remote_code"]))  # None would ask at the terminal
        whole = {"missing_keys": set(), "unexpected_keys": set()}
        return (tiny_model("gpt2"), whole) if "output_loading_info" in kwargs else tiny_tokenizer()

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", found)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", found)
    load_model("someone/model", revision="v2")
    assert asked == [("someone/model", "v2", False)] * 2
