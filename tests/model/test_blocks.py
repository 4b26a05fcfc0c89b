"""Are the blocks of every family found, their residual streams captured, and layers named by what a user writes?"""

import copy
from typing import Any

import pytest
import torch
from forwards import batch, model_of
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny import FAMILIES, tiny_model
from torch import nn

from efface.errors import UserError
from efface.model.blocks import capture_residuals, decoder_blocks, parse_layers
from efface.model.families import BLOCK_OVERRIDES

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
