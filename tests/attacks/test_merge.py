"""Does the way back to the base end exactly there, and is it seen how soon toxicity is back on it?"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from chain import chain
from failing import TEXT, fail_at_
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from polite import equal, state, target_of
from tiny import FAMILIES, tiny_model

from efface.attacks.merge import MergeSettings, merge
from efface.attacks.result import AttackResult
from efface.attacks.target import Target
from efface.errors import RunError, UserError
from efface.model.copies import merged_copy
from efface.model.edit import between, move_
from efface.model.interventions import Intervention, attach_, attached

IDS = torch.tensor([[5, 6, 7, 8]])


def attacked(family: str) -> Target:
    base, edited = chain(family, strength=7.0)
    return target_of(edited, base)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_most_of_the_way_to_a_silly_base_is_silly(family: str) -> None:
    target = attacked(family)
    weights, random_state = state(target.model), torch.get_rng_state()
    result = merge(target, MergeSettings("0.05,0.95,1,1.5"))
    assert [point.at["alpha"] for point in result.curve] == [0.0, 0.05, 0.95, 1.5]
    assert [point.share for point in result.curve[:3]] == [0.0, 0.0, 1.0]
    assert result.before.share == 0 and result.after is result.curve[2] and result.base is not None
    assert result.found["half"] == {"share": 0.5, "of": "base"}
    assert result.found["half_at"] == pytest.approx(0.5) and result.found["area"] == pytest.approx(0.5)
    assert 0 < result.found["distance"] < 1 and result.found["left_out"] == []
    assert equal(state(target.model), weights) and torch.equal(torch.get_rng_state(), random_state)
    assert merge(dataclasses.replace(target, known={}), MergeSettings("0.05,0.95,1,1.5")) == result


def test_a_point_that_overflows_does_not_lose_the_others() -> None:
    base, edited = (copy.deepcopy(model).half() for model in chain("llama", strength=7.0))
    result = merge(target_of(edited, base), MergeSettings("0.95,1e6"))
    assert [point.at["alpha"] for point in result.curve] == [0.0, 0.95] and result.after.share == 1.0
    assert result.found["left_out"] == ["alpha 1000000.0"]


def test_a_model_that_is_its_base_changes_nothing() -> None:
    base, _ = chain("llama", strength=7.0)
    target = target_of(base)
    target.base, target.text = base, TEXT
    result = merge(target, MergeSettings("0.5"))
    assert result.before.share == result.after.share == 1.0 and result.found["distance"] == 0
    assert result.after.figures["perplexity"] == result.before.figures["perplexity"]


def test_a_point_that_costs_too_much_perplexity_does_not_count() -> None:
    target = attacked("llama")
    target.text = [prompt + " they are silent." for prompt in target.prompts]  # as the edited model writes
    result = merge(target, MergeSettings("0.95"))
    assert result.curve[1].share == 1.0 and result.found["left_out"] == ["alpha 0.95"]
    assert result.after is result.curve[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_alpha_0_is_the_model_and_alpha_1_the_base_bit_by_bit(family: str) -> None:
    model, base = tiny_model(family), tiny_model(family, seed=1)
    for alpha, expected in ((0.0, model), (1.0, base)):
        student = copy.deepcopy(model)
        move_(student, base, alpha)
        assert dict(student.named_parameters()).keys() == dict(expected.named_parameters()).keys()
        for name, parameter in student.named_parameters():
            assert torch.equal(parameter, expected.get_parameter(name)), name
        assert torch.equal(student(input_ids=IDS).logits, expected(input_ids=IDS).logits)


@given(alpha=st.floats(0, 2), seed=st.integers(0, 9))
def test_between_is_linear(alpha: float, seed: int) -> None:
    edited, base = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(between(edited, base, alpha), edited + alpha * (base - edited), rtol=1e-4, atol=1e-5)
    assert torch.equal(between(edited, base, 0.0), edited) and torch.equal(between(edited, base, 1.0), base)
    halves = between(edited.bfloat16(), base, alpha)
    assert halves.dtype == torch.bfloat16
    torch.testing.assert_close(halves.float(), between(edited, base, alpha), rtol=2e-2, atol=5e-2)


def test_what_is_attached_fades_out_and_that_of_the_base_in() -> None:
    model, base = tiny_model("llama"), tiny_model("llama")
    one, other = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    for which, vector in ((model, one), (base, other)):
        attach_(which, [Intervention(0, vector[:, None], vector[None], vector)])
    student = copy.deepcopy(model)
    move_(student, base, 0.25)
    fading, coming = attached(student)
    assert torch.equal(fading.left, 0.75 * one[:, None]) and torch.equal(fading.right, one[None])
    assert torch.equal(coming.bias, 0.25 * other) and torch.equal(coming.right, other[None])
    move_(student := copy.deepcopy(model), base, 1.0)
    assert torch.equal(student(input_ids=IDS).logits, base(input_ids=IDS).logits)
    (left,) = attached(model)
    assert torch.equal(left.bias, one)


def test_an_adapter_is_merged_first() -> None:
    base, _ = chain("llama", strength=7.0)
    adapted = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    weights = state(adapted)
    target = target_of(adapted)  # type: ignore[arg-type]
    target.base = base
    found = merge(target, MergeSettings("0.5")).found
    assert found["distance"] > 0 and equal(state(adapted), weights)
    assert "lora" not in str(merged_copy(adapted))  # type: ignore[arg-type]


def test_what_was_measured_before_a_failure_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, settings = attacked("llama"), MergeSettings("0.25,0.95")
    whole = merge(target, settings)
    target = dataclasses.replace(target, output=tmp_path / "out.json", known={})
    fail_at_(monkeypatch, 4)  # base, before, alpha 0.25, alpha 0.95
    with pytest.raises(RunError, match=r"lost\. What was measured so far \(before, base, alpha 0.25\) is kept"):
        merge(target, settings)
    monkeypatch.undo()
    resumed: AttackResult = merge(dataclasses.replace(target, resume=True), settings)
    assert resumed.to_dict() == whole.to_dict()


def test_models_that_cannot_be_merged() -> None:
    target = target_of(tiny_model("llama"))
    with pytest.raises(UserError, match="merge needs the model that this one was made from: pass base=MODEL"):
        merge(target, MergeSettings())
    target.base = tiny_model("llama", intermediate_size=48)
    with pytest.raises(
        UserError, match=r"down_proj.weight' is \(32, 64\) in the model and \(32, 48\) in the base: they"
    ):
        merge(target, MergeSettings())
    target.base = tiny_model("gpt2")
    with pytest.raises(
        UserError, match=r"'model.embed_tokens.weight' is \(300, 32\) in the model and absent in the base"
    ):
        merge(target, MergeSettings())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alphas": "half"}, "alphas='half': numbers are needed"),
        ({"alphas": "1"}, "alphas='1': the attack is judged by those below 1"),
        ({"alphas": "1.5,2"}, "judged by those below 1. Name one, as in 0.25,0.5"),
        ({"max_perplexity_increase": -1.0}, "max_perplexity_increase=-1.0"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MergeSettings(**settings)
