"""Does patching neurons bring exactly what their activations bring, no more, and leave nothing behind?"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from polite import ROWS
from tiny import tiny_model, tiny_tokenizer

from efface.analysis.neuron_patching import firing_as, patch_neurons
from efface.analysis.toxic_mass import read_pairs, toxic_tokens
from efface.data.pair_tokens import tokenize_pairs
from efface.model.blocks import decoder_blocks
from efface.model.projections import mlp_input_projection, mlp_output_projection, output_weight

PAIRS = tokenize_pairs(ROWS, tiny_tokenizer())
TOXIC = toxic_tokens(PAIRS)
FAMILIES = ("gpt2", "llama", "gemma3", "gpt_neox")


def read(model: Any) -> Any:
    return read_pairs(model, tiny_tokenizer(), PAIRS, TOXIC)


def shape(model: Any) -> tuple[int, int]:
    blocks = decoder_blocks(model)
    return len(blocks), output_weight(mlp_output_projection(blocks[0])).shape[1]


def in_order(base: Any, other: Any) -> tuple[Any, Any]:
    """Base and edited, so that toxic words fall."""
    return (base, other) if read(other).toxic_mass < read(base).toxic_mass else (other, base)


def firing_otherwise(base: Any, neurons: slice) -> Any:
    """The same with other *inputs* to some neurons of the last block: it changes how they fire and nothing else."""
    other = copy.deepcopy(base)
    with torch.no_grad():
        weight = output_weight(mlp_input_projection(decoder_blocks(other)[-1]))
        weight[neurons] = weight[neurons] * -3 + 0.5
    return other


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_of_how_neurons_fire_is_carried_by_these_neurons_alone(family: str) -> None:
    base = tiny_model(family)
    layers, width = shape(base)
    neurons = slice(0, width // 2)
    base, edited = in_order(base, firing_otherwise(base, neurons))
    groups = {"changed": np.zeros((layers, width), bool), "others": np.zeros((layers, width), bool)}
    groups["changed"][-1, neurons] = True
    groups["others"][-1, neurons.stop :] = True
    found = patch_neurons(edited, base, groups | {"all": np.ones((layers, width), bool)}, read)
    for name, part in {"changed": 1, "others": 0, "all": 1}.items():
        assert found[name]["enough"] == pytest.approx(part, abs=2e-3) == found[name]["needed"], name
    assert found["changed"]["neurons"] == width // 2 and found["all"]["random"]["enough"] == pytest.approx(1, abs=2e-3)
    assert found["changed"]["random"]["enough"] != pytest.approx(1, abs=0.01), "others are among the random ones"


def test_what_values_do_is_not_put_down_to_how_neurons_fire() -> None:
    """An edit of the last block's values alone: every neuron fires as before."""
    base = tiny_model("llama")
    other = copy.deepcopy(base)
    with torch.no_grad():
        output_weight(mlp_output_projection(decoder_blocks(other)[-1])).mul_(-2)
    base, edited = in_order(base, other)
    found = patch_neurons(edited, base, {"all": np.ones(shape(base), bool)}, read)
    assert found["all"]["enough"] == pytest.approx(0, abs=2e-3) == found["all"]["needed"]


def test_identical_models_have_no_fall_and_nothing_is_left_behind() -> None:
    model = tiny_model("llama")
    found = patch_neurons(copy.deepcopy(model), model, {"all": np.ones(shape(model), bool)}, read)
    assert found["all"]["enough"] is None is found["all"]["needed"]
    with pytest.raises(KeyError), firing_as(model, copy.deepcopy(model), np.ones(shape(model), bool)):
        raise KeyError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
