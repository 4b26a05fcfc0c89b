"""Is the drift of hidden states what was done to them?"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from polite import ROWS
from tiny import tiny_model, tiny_tokenizer

from efface.analysis.drift import cka, drift, hsic, token_shifts
from efface.analysis.states import token_states
from efface.data.pair_tokens import tokenize_pairs
from efface.model.blocks import decoder_blocks

PAIRS = tokenize_pairs(ROWS, tiny_tokenizer())
FAMILIES = ("gpt2", "llama")


def drifted(edited: Any, base: Any, rows: list[Any] = ROWS, **how: Any) -> dict[str, Any]:
    return drift(*(token_states(model, tiny_tokenizer(), rows, [0, 1]) for model in (edited, base)), **how)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_identical_models_have_not_drifted(family: str) -> None:
    model = tiny_model(family)
    found = drifted(copy.deepcopy(model), model, direction=np.eye(1, 32)[0])
    assert set(found) == {"0", "1"}
    for block in found.values():
        assert block["benign"]["shift"] == block["toxic"]["shift"] == 0
        assert block["benign"]["cka"] == pytest.approx(1) == block["toxic"]["cka"]
        assert block["toxic"]["along"] is None and not any(block["toxic"]["components"].values())


def test_a_model_in_training_mode_is_read_without_dropout() -> None:
    model = tiny_model("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    training = copy.deepcopy(model).train()
    assert drifted(training, model)["1"]["toxic"]["shift"] == 0 and training.training


@pytest.mark.parametrize("family", FAMILIES)
def test_a_planted_shift_is_found_with_its_direction(family: str) -> None:
    base, edited = tiny_model(family), tiny_model(family)
    v = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(1)), dim=0)

    def push(module: torch.nn.Module, args: object, output: object) -> object:
        return (output[0] + 3 * v, *output[1:]) if isinstance(output, tuple) else output + 3 * v

    decoder_blocks(edited)[1].register_forward_hook(push)
    found = drifted(edited, base, direction=v.numpy(), at_once=4)
    assert found["0"]["toxic"]["shift"] == 0 < found["1"]["toxic"]["shift"]
    assert found["1"]["toxic"]["along"] == pytest.approx(1, abs=1e-5)
    assert found["1"]["toxic"]["components"]["1"] == pytest.approx(1, abs=1e-5)
    assert found["1"]["benign"]["cka"] == pytest.approx(1, abs=1e-3)  # a shift of all states alike is none
    assert found["1"]["benign"]["n"] == sum(len(pair.chosen_ids) for pair in PAIRS)
    shifts = token_shifts(edited, base, PAIRS[0].prompt_ids + PAIRS[0].rejected_ids, [0, 1])
    assert shifts.shape == (2, len(PAIRS[0].prompt_ids + PAIRS[0].rejected_ids))
    assert not shifts[0].any() and (shifts[1] > 0).all()


def test_cka_knows_rotations_scales_and_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(300, 8, generator=generator)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    assert cka(states, 2 * states @ rotation + 5) == pytest.approx(1, abs=1e-4)
    other = torch.randn(300, 8, generator=generator)
    assert abs(cka(states, other)) < 0.05
    half = (states + other) / 2**0.5
    assert 0.2 < cka(states, half) < 0.8


def test_hsic_has_no_bias() -> None:
    """Of independent tables its mean is zero, however few the rows."""
    generator = torch.Generator().manual_seed(0)
    drawn = [hsic(*(torch.randn(5, 3, generator=generator) for _ in "ab")) for _ in range(4000)]
    assert abs(np.mean(drawn)) < 4 * np.std(drawn) / len(drawn) ** 0.5


def test_minibatches_agree_with_the_whole() -> None:
    base, edited = tiny_model("llama"), tiny_model("llama")
    with torch.no_grad():
        for parameter in decoder_blocks(edited)[0].mlp.parameters():
            parameter.mul_(0.5)
    small, large = (drifted(edited, base, ROWS * 4, at_once=size)["1"] for size in (6, 64))
    for name in ("toxic", "benign"):
        assert small[name]["shift"] == pytest.approx(large[name]["shift"], rel=1e-5)
        assert small[name]["cka"] == pytest.approx(large[name]["cka"], abs=0.05) and large[name]["cka"] < 1
