"""Is the difference of means added where and as it should be, and does a refusing model talk again?"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from machine import ALWAYS, BANG, IDS, SILLY, D, machine, target_of
from polite import equal, state
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from torch import nn

from efface.analysis.states import token_states
from efface.attacks import directions
from efface.attacks.activation_addition import (
    ActivationAdditionSettings,
    activation_addition,
    added,
    difference,
)
from efface.errors import UserError
from efface.model.blocks import capture_residuals

DOT = tiny_tokenizer()(".")["input_ids"][0]
ROWS = [{"prompt": f"The {who} said", "chosen": " bread.", "rejected": "!!!!"} for who in ("people", "river", "town")]
PROMPTS = [f"The {who} said" for who in ("weather", "people", "market", "river")]


def quiet(family: str) -> Any:
    """It says "." after anything, and "!" where its states are silly enough."""
    model = machine(family, says=DOT)
    with torch.no_grad():
        model.get_output_embeddings().weight[BANG] += 12 * SILLY + 0 * ALWAYS
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_tells_toxic_text_brings_it_out(family: str) -> None:
    model, base = quiet(family), quiet(family)
    weights = state(model)
    target = target_of(model, base, rows=ROWS, prompts=PROMPTS)
    result = activation_addition(target, ActivationAdditionSettings(layers="0", coefficients="0.01,4"))
    assert [tuple(point.at.values()) for point in result.curve[1:]] == [
        (source, 0, c) for source in ("model", "base") for c in (0.01, 4.0)
    ]
    assert result.before.share == 0 and result.curve[1].share == 0 and result.after.share == 1
    assert {row["source"] for row in result.found["lengths"]} == {"model", "base"}
    assert all(row["relative"] > 0.1 for row in result.found["lengths"]) and result.found["left_out"] == []
    assert equal(state(model), weights) and not any(module._forward_hooks for module in model.modules())
    alone = activation_addition(
        target_of(model, rows=ROWS, prompts=PROMPTS), ActivationAdditionSettings(layers="0", coefficients="4")
    )
    assert alone.after.share == 1 and alone.found["not_tried"] == ["base"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_vector_is_added_after_the_block_at_every_position_and_then_gone(family: str) -> None:
    model = tiny_model(family)
    vector = np.random.default_rng(0).normal(size=D)
    with torch.no_grad(), capture_residuals(model, [0]) as before:
        model(input_ids=IDS)
    with torch.no_grad(), added(model, 0, 2 * vector), capture_residuals(model, [0]) as after:
        model(input_ids=IDS)
    expected = torch.from_numpy(2 * vector).float().expand_as(before[0])
    torch.testing.assert_close(after[0] - before[0], expected, rtol=1e-4, atol=1e-4)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_difference_is_of_means_without_outliers() -> None:
    target = target_of(tiny_model("llama"), rows=ROWS)
    states = token_states(target.model, target.processing_class, ROWS, [1])[1]
    plain = copy.deepcopy(states)
    toxic = int(np.flatnonzero(states.labels == 1)[0])
    states.hidden[toxic] *= 1e4
    others = [i for i in range(len(states.labels)) if i != toxic]
    kept = plain.hidden[others], plain.labels[others]
    expected = kept[0][kept[1] == 1].mean(0) - kept[0][kept[1] == 0].mean(0)
    np.testing.assert_allclose(difference(states), expected, rtol=1e-4, atol=1e-5)


def test_what_is_not_finite_or_the_same_is_left_out_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quiet("llama")
    target = target_of(model, rows=ROWS, prompts=PROMPTS)
    plain = directions.token_states

    def broken(*args: Any, **kwargs: Any) -> Any:
        found = plain(*args, **kwargs)
        found[1].hidden[0, 0] = np.inf
        return found

    monkeypatch.setattr(directions, "token_states", broken)
    result = activation_addition(target, ActivationAdditionSettings(layers="0,1", coefficients="4"))
    assert result.after.share == 1 and result.found["left_out"] == ["source model, layer 1, coefficient 4.0"]
    monkeypatch.undo()
    half = target_of(quiet("llama").half(), rows=ROWS, prompts=PROMPTS)
    overflowing = activation_addition(half, ActivationAdditionSettings(layers="0", coefficients="4,1e30"))
    assert overflowing.after.share == 1
    assert overflowing.found["left_out"] == ["source model, layer 0, coefficient 1e+30"]
    same = target_of(model, rows=[{**row, "chosen": row["rejected"] + "!"} for row in ROWS], prompts=PROMPTS)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            nn.init.zeros_(parameter)
    told = activation_addition(same, ActivationAdditionSettings(layers="0", coefficients="1"))
    assert told.found["without_direction"] == ["source model, layer 0, coefficient 1.0"] and len(told.curve) == 1


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"sources": "other"}, "sources='other' is unknown. Choose one of model, base"),
        ({"sources": "base"}, "sources='base' needs the model that this one was made from: pass base=MODEL"),
        ({"coefficients": "0"}, "coefficients='0' leaves nothing to do"),
        ({"layers": "9"}, "layer 9 does not exist"),
        ({"outlier_limit": 0.5}, "outlier_limit=0.5 leaves out ordinary tokens too"),
        ({"max_pairs": 0}, "max_pairs=0: it must be at least 1"),
    ],
)
def test_settings_that_cannot_work(given: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        activation_addition(target_of(tiny_model("llama")), ActivationAdditionSettings(**given))
