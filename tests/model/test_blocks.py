"""Is every family loaded, hooked, projected and saved right, and is what is no model refused in one clear line?"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from forwards import TEXT, batch, model_of, plain_logits
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny import BOS_ID, EOS_ID, FAMILIES, tiny_model, tiny_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from efface.data.tokens import tokens_of
from efface.errors import UserError
from efface.model.blocks import capture_residuals, decoder_blocks, parse_layers
from efface.model.families import BLOCK_OVERRIDES
from efface.model.load import load_model
from efface.model.padding import position_ids
from efface.model.save import save_model

# Blocks and residuals


@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_blocks(family: str) -> None:
    blocks = decoder_blocks(model_of(family))
    assert len(blocks) == 2 and all("attn" in name or "attention" in name for name in [repr(blocks[0]).lower()])


@pytest.mark.parametrize("family", FAMILIES)
def test_residuals_are_the_hidden_states_and_part_of_the_graph(family: str) -> None:
    model = model_of(family)
    input_ids, mask = batch()
    with capture_residuals(model, [0, 1]) as residuals:
        output = model(input_ids=input_ids, attention_mask=mask, output_hidden_states=True)
    assert set(residuals) == {0, 1} and residuals[1].shape == (3, 20, model.config.hidden_size)
    torch.testing.assert_close(residuals[0], output.hidden_states[1])
    # The last one of transformers is after the final norm (and OPT's projection): ours is not.
    last = output.hidden_states[2]
    assert last.shape != residuals[1].shape or not torch.allclose(residuals[1], last, atol=1e-3)
    first = next(decoder_blocks(model)[0].parameters())
    (gradient,) = torch.autograd.grad(residuals[1].square().sum(), first)
    assert gradient.abs().max() > 0


def test_the_last_residual_is_what_the_final_norm_reads() -> None:
    model = model_of("llama")
    input_ids, mask = batch()
    with capture_residuals(model, [1]) as residuals, torch.no_grad():
        logits = model(input_ids=input_ids, attention_mask=mask).logits
        torch.testing.assert_close(model.lm_head(model.model.norm(residuals[1])), logits)


def test_a_second_forward_overwrites() -> None:
    model = model_of("gpt2")
    input_ids, _ = batch((6, 6))
    with capture_residuals(model, [0]) as residuals, torch.no_grad():
        model(input_ids=input_ids)
        model(input_ids=input_ids[:1])
    assert residuals[0].shape[0] == 1


def test_a_model_without_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = 7
    model.config = config
    with pytest.raises(UserError, match="LlamaForCausalLM has no nn.ModuleList of 7 decoder blocks.*BLOCK_OVERRIDES"):
        decoder_blocks(model)
    monkeypatch.setitem(BLOCK_OVERRIDES, "llama", "model.layers")
    assert decoder_blocks(model) is model.model.layers


def test_the_outermost_list_is_taken() -> None:
    model = tiny_model("llama")
    model.model.layers[0].experts = nn.ModuleList([nn.Identity(), nn.Identity()])  # of the same length, further inside
    assert decoder_blocks(model) is model.model.layers
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert decoder_blocks(adapted) is model.model.layers


def test_position_ids() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])
    assert position_ids(mask).tolist() == [[0, 1, 2, 2], [0, 0, 0, 1]]


@pytest.mark.parametrize("add_bos", [False, True])
def test_tokens_of(add_bos: bool) -> None:
    tokenizer = tiny_tokenizer(add_bos=add_bos)
    ids = tokens_of(tokenizer, TEXT)
    assert ids == tokenizer(TEXT)["input_ids"] and (BOS_ID in ids) == add_bos
    assert tokens_of(tokenizer, "") == [BOS_ID] * add_bos
    assert tokens_of(tokenizer, TEXT + "<eos>")[-1] == EOS_ID


# Layers by name


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("last", [11]),
        ("all", list(range(12))),
        ("3", [3]),
        (3, [3]),
        (-1, [11]),
        ("8, 3,-1", [3, 8, 11]),
        ("last,0", [0, 11]),
        ("-12", [0]),
        ("0.5", [6]),
        ("0.5,0.75", [6, 9]),
        ("0.01", [0]),
        ([0.25, 2, -2], [2, 3, 10]),
        ("2,2,-10", [2]),
    ],
)
def test_parse_layers(spec: Any, expected: list[int]) -> None:
    assert parse_layers(spec, 12) == expected


@pytest.mark.parametrize("spec", ["first", "", "1,", "last, middle", "nan", "inf"])
def test_words_that_are_no_layer(spec: str) -> None:
    with pytest.raises(UserError, match="is neither a number, `last` nor `all`"):
        parse_layers(spec, 12)


@pytest.mark.parametrize("spec", ["12", "-13", 99, "1.5", "-0.5", [0, 12]])
def test_layers_the_model_does_not_have(spec: Any) -> None:
    with pytest.raises(UserError, match="does not exist: the model has 12 layers, 0 to 11"):
        parse_layers(spec, 12)


@given(n=st.integers(1, 100), data=st.data())
def test_any_layer_from_either_end(n: int, data: st.DataObject) -> None:
    layers = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5))
    from_the_end = [layer - n for layer in layers]
    assert parse_layers(",".join(map(str, layers)), n) == parse_layers(from_the_end, n) == sorted(set(layers))
    depth = data.draw(st.floats(0, 1, exclude_min=True, exclude_max=True))
    assert 0 <= parse_layers([depth], n)[0] < n


# Saving


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


# What is no model


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


@pytest.mark.parametrize("name", ["someone/no-such-model", "no-such-model", "some one/bad id"])
def test_hub_id_without_network(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"model '{name}' could not be loaded from the Hugging Face hub \(.+\). Check"
    ):
        load_model(name)


def test_hub_error_without_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(UserError, match=r"from the Hugging Face hub \(OSError\)"):
        load_model("someone/model")


def test_hub_id_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def found(name: str, **kwargs: Any) -> Any:
        asked.append((name, kwargs["revision"], kwargs["trust_remote_code"]))  # None would ask at the terminal
        whole = {"missing_keys": set(), "unexpected_keys": set()}
        return (tiny_model("gpt2"), whole) if "output_loading_info" in kwargs else tiny_tokenizer()

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", found)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", found)
    load_model("someone/model", revision="v2")
    assert asked == [("someone/model", "v2", False)] * 2
