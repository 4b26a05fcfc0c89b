"""Does the concentration of a change say what was planted, and nothing of identical models?

Of: analysis/input_space.py
"""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import FAMILIES, tiny_model, tiny_tokenizer

from efface.analysis.concentration import concentration, gini, neuron_squares, stable_rank, top_part
from efface.analysis.input_space import null_part, null_spaces
from efface.errors import UserError
from efface.model.blocks import decoder_blocks
from efface.model.projections import linear_maps, mlp_output_projection, output_weight

TEXTS = ["The weather in the old town was cold and the people there were silent.", "She went to the market."]


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=40))
def test_gini_is_the_mean_difference_over_twice_the_mean(values: list[float]) -> None:
    table = np.array(values)
    if not table.sum() > 1e-3:
        return
    expected = np.abs(table[:, None] - table).mean() / (2 * table.mean())
    assert gini(table) == pytest.approx(expected, abs=1e-9)


def test_gini_and_top_part_of_known_lists() -> None:
    assert gini(np.ones(7)) == pytest.approx(0) and gini(np.zeros(3)) == 0 == top_part(np.zeros(3))
    one = np.eye(1, 200)[0]
    assert gini(one) == pytest.approx(199 / 200) and top_part(one) == 1
    assert top_part(np.arange(1.0, 201)) == pytest.approx(399 / 20100)


def test_stable_rank_of_known_matrices() -> None:
    assert stable_rank(torch.eye(5)) == pytest.approx(5)
    assert stable_rank(torch.outer(torch.arange(1.0, 4), torch.ones(6))) == pytest.approx(1, abs=1e-5)
    assert stable_rank(torch.zeros(2, 3)) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_identical_models_have_changed_nowhere(family: str) -> None:
    model = tiny_model(family)
    found = concentration(model, copy.deepcopy(model))
    assert found["squares"] == found["relative"] == found["outside"] == 0 and not any(found["parts"].values())
    assert found["neurons"]["gini"] == found["neurons"]["top"] == 0 and set(found["parts"]) == {
        f"{layer}.{part}" for layer in (0, 1) for part in ("attention", "mlp")
    }
    assert all(one["stable_rank"] == one["squares"] == 0 and not any(one["spectrum"]) for one in found["maps"])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_a_planted_change_of_one_neuron_is_found(family: str) -> None:
    base, edited = tiny_model(family), tiny_model(family)
    with torch.no_grad():
        output_weight(mlp_output_projection(decoder_blocks(edited)[1]))[:, 5] += 1.0
    found = concentration(edited, base)
    assert found["parts"]["1.mlp"] == pytest.approx(1) and found["outside"] == pytest.approx(0, abs=1e-6)
    squares = neuron_squares(edited, base)
    assert squares.argmax() == 64 + 5 and squares[69] == pytest.approx(32, rel=1e-4)
    neurons = found["neurons"]
    assert neurons["n"] == 128 and neurons["top"] == pytest.approx(1) and neurons["gini"] > 0.99
    assert neurons["random"]["top"] < 0.1 and neurons["random"]["gini"] < 0.9  # noise of that length in that map
    (changed,) = [one for one in found["maps"] if one["squares"]]
    assert changed["stable_rank"] == pytest.approx(1, abs=1e-3) and changed["spectrum"][0] == pytest.approx(1)
    assert changed["layer"] == 1 and changed["part"] == "mlp" and changed["null_part"] is None


def test_what_is_outside_of_the_maps_is_counted_apart() -> None:
    base, edited = tiny_model("llama"), tiny_model("llama")
    with torch.no_grad():
        edited.get_input_embeddings().weight[3] += 1.0
    found = concentration(edited, base)
    assert found["outside"] == pytest.approx(1) and found["squares"] == pytest.approx(32, rel=1e-4)
    with pytest.raises(UserError, match="they cannot be compared"):
        concentration(edited, tiny_model("gpt2"))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_null_space_is_what_text_does_not_use(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the very inputs of a map, the part of their squares that lies there is 1 % at most, and nearly that."""
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    spaces = null_spaces(model, tokenizer, TEXTS)
    maps = linear_maps(model)
    assert set(spaces) == set(maps)
    inputs: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, path=path: inputs.update({path: args[0].detach()[0]}))
        for path, module in maps.items()
    ]
    path = next(iter(maps))
    squares = dict.fromkeys(maps, 0.0)
    inside = dict.fromkeys(maps, 0.0)
    for text in TEXTS:
        model(torch.tensor([tokenizer(text)["input_ids"]]))
        for path, states in inputs.items():
            squares[path] += states.square().sum().item()
            inside[path] += (states @ spaces[path]).square().sum().item()
    for handle in handles:
        handle.remove()
    assert all(inside[path] <= 0.0101 * squares[path] for path in maps)
    assert any(spaces[path].shape[1] for path in maps)
    for space in spaces.values():
        torch.testing.assert_close(space.T @ space, torch.eye(space.shape[1]), atol=1e-4, rtol=0)
    monkeypatch.setattr("efface.analysis.input_space.AT_ONCE", 1)  # a map at a time
    for path, space in null_spaces(model, tokenizer, TEXTS).items():
        torch.testing.assert_close(space @ space.T, spaces[path] @ spaces[path].T, atol=1e-3, rtol=0)


def test_a_change_in_the_null_space_is_seen_there() -> None:
    base, edited = tiny_model("llama"), tiny_model("llama")
    spaces = null_spaces(base, tiny_tokenizer(), TEXTS)
    path, module = next((path, module) for path, module in linear_maps(edited).items() if spaces[path].shape[1])
    with torch.no_grad():
        module.weight += torch.outer(torch.ones(len(module.weight)), spaces[path][:, 0])
    found = concentration(edited, base, null_spaces=spaces)
    assert found["null_part"] == pytest.approx(1, abs=1e-4) and 0 < found["null_dimensions"] < 1
    noise = torch.randn(400, 32, generator=torch.Generator().manual_seed(0))
    k = spaces[path].shape[1]
    assert null_part(noise, spaces[path]) == pytest.approx(k / 32, abs=0.05)
