"""Do patched states carry a planted edit from the block on where it was planted?"""

import copy
from typing import Any

import pytest
import torch
from polite import ROWS
from tiny import tiny_model, tiny_tokenizer

from efface.analysis.state_patching import going_on_from, patch_states
from efface.analysis.toxic_mass import read_pairs, toxic_tokens
from efface.data.pair_tokens import tokenize_pairs
from efface.model.blocks import decoder_blocks
from efface.model.projections import mlp_output_projection, output_weight

PAIRS = tokenize_pairs(ROWS, tiny_tokenizer())
TOXIC = toxic_tokens(PAIRS)
FAMILIES = ("gpt2", "llama", "gemma3", "gpt_neox")


def read(model: Any) -> Any:
    return read_pairs(model, tiny_tokenizer(), PAIRS, TOXIC)


def planted(base: Any, layer: int) -> tuple[Any, Any]:
    """The base and the same with another MLP in a block, in the order in which toxic words fall."""
    other = copy.deepcopy(base)
    with torch.no_grad():
        output_weight(mlp_output_projection(decoder_blocks(other)[layer])).mul_(-2)
    return (base, other) if read(other).toxic_mass < read(base).toxic_mass else (other, base)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1])
def test_states_carry_an_edit_from_its_block_on(family: str, layer: int) -> None:
    base, edited = planted(tiny_model(family, num_hidden_layers=3) if family == "llama" else tiny_model(family), layer)
    last = len(decoder_blocks(base)) - 1
    found = patch_states(edited, base, range(last + 1), read)
    for number, one in found.items():
        there = 1 if int(number) >= layer else 0
        assert one["enough"] == pytest.approx(there, abs=1e-3) == one["needed"], number


def test_identical_models_have_no_fall_and_nothing_is_left_behind() -> None:
    model = tiny_model("llama")
    found = patch_states(copy.deepcopy(model), model, [0, 1], read)
    assert all(one["enough"] is None is one["needed"] for one in found.values())
    assert found["0"]["base_goes_on"]["toxic_mass"] == pytest.approx(read(model).toxic_mass)
    with pytest.raises(KeyError), going_on_from(model, copy.deepcopy(model), 0):
        raise KeyError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
