"""Do rounded weights lie on their grid, and is an edit below half a step of it undone?"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from chain import chain
from failing import TEXT, fail_at_
from hypothesis import given
from hypothesis import strategies as st
from polite import equal, state, target_of
from tiny import FAMILIES, tiny_model
from torch import Tensor

from efface.attacks.quantize import SCHEMES, QuantizeSettings, quantize, rounded
from efface.attacks.target import Target
from efface.errors import RunError, UserError
from efface.model.copies import merged_copy
from efface.model.projections import linear_maps, output_weight


def attacked(family: str) -> Target:
    base, edited = chain(family, strength=0.45)
    return target_of(edited, base)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_edit_below_half_a_step_is_rounded_away(family: str) -> None:
    target = attacked(family)
    weights, random_state = state(target.model), torch.get_rng_state()
    result = quantize(target, QuantizeSettings(bits="8,4"))
    assert [point.at for point in result.curve] == [{"bits": 32}, {"bits": 8}, {"bits": 4}]
    assert [point.share for point in result.curve] == [0.0, 0.0, 1.0] and result.after is result.curve[2]
    eight, four = result.found["rounding"]
    assert four["remains"] < 1e-3 and eight["remains"] > 0.5  # 0.45 steps of 4 bits are 8 of 8 bits
    assert 0 < four["error"] < eight["error"] < 0.01  # four: all but the edit lay on the grid
    assert target.base is not None
    for name, module in linear_maps(target.base).items():
        edited = output_weight(linear_maps(target.model)[name])
        assert torch.equal(rounded(edited, 4), output_weight(module))  # the base, bit by bit
    assert result.found["weights"] == sum(module.weight.numel() for module in linear_maps(target.model).values())
    assert equal(state(target.model), weights) and torch.equal(torch.get_rng_state(), random_state)
    assert quantize(dataclasses.replace(target, known={}), QuantizeSettings(bits="8,4")) == result


def test_a_model_that_lies_on_the_grid_does_not_change() -> None:
    base, _ = chain("llama", strength=0.45)
    target = target_of(base)
    target.text = TEXT
    result = quantize(target, QuantizeSettings(bits="4"))
    assert result.found["rounding"] == [{"bits": 4, "error": 0.0, "remains": None}]
    assert result.after.share == result.before.share == 1.0
    assert result.after.figures["perplexity"] == result.before.figures["perplexity"]


# The grid


def weight_of(seed: int, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheme", SCHEMES)
@given(
    seed=st.integers(0, 99), bits=st.integers(2, 8), group=st.sampled_from([0, 1, 3, 8]), columns=st.integers(1, 20)
)
def test_weights_lie_on_a_grid_at_most_half_a_step_away(
    scheme: str, seed: int, bits: int, group: int, columns: int
) -> None:
    weight = weight_of(seed, 4, columns)
    near = rounded(weight, bits, group, scheme)
    assert near.shape == weight.shape
    for old, new in zip(weight.split(group or columns, 1), near.split(group or columns, 1), strict=True):
        for row, values in zip(old.double(), new.double(), strict=True):
            low, high = (row.min(), row.max()) if scheme == "asymmetric" else (-row.abs().max(), row.abs().max())
            step = (high - low) / (2**bits - (1 if scheme == "asymmetric" else 2))
            assert (values - row).abs().max() <= step / 2 * (1 + 1e-4) + 1e-7
            if step > 0:
                codes = (values - low) / step
                assert (codes - codes.round()).abs().max() < 1e-3
            assert len(set(values.tolist())) <= 2**bits
    assert torch.equal(rounded(near, bits, group, scheme), near)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sixteen_bits_are_almost_nothing_lost_and_zeros_stay(scheme: str) -> None:
    weight = weight_of(0, 5, 100)
    assert (rounded(weight, 16, 64, scheme) - weight).abs().max() < 1e-4
    assert torch.equal(rounded(torch.zeros(2, 5), 4, 0, scheme), torch.zeros(2, 5))
    half = rounded(weight.bfloat16(), 8, 64, scheme)
    assert half.dtype == torch.bfloat16 and (half - weight).abs().max() < 0.04


def test_groups_have_scales_of_their_own() -> None:
    weight = torch.tensor([[0.1, 0.05, 100.0, 50.0]])
    assert rounded(weight, 4, 0)[0, :2].tolist() == [0.0, 0.0]
    torch.testing.assert_close(rounded(weight, 4, 2)[0, :2], torch.tensor([0.1, 0.4 / 7]))
    # 0.05 * 7 / 0.1 = 3.5 rounds to even: 4


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_linear_maps_are_rounded_or_the_embeddings_too(family: str) -> None:
    model = tiny_model(family)
    inside = {id(module.weight) for module in linear_maps(model).values()}
    outer = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    for embeddings, expected in ((False, inside), (True, inside | outer)):
        student = rounded_student(model, QuantizeSettings("3", embeddings=embeddings))
        moved = {
            id(parameter)
            for name, parameter in model.named_parameters()
            if not torch.equal(parameter, student.get_parameter(name))
        }
        assert moved == expected
    for module in linear_maps(student).values():
        weight = output_weight(module)
        assert torch.equal(weight, rounded(weight, 3))


def rounded_student(model: Any, settings: QuantizeSettings) -> Any:
    """What the attack measures."""
    found: list[Any] = []

    class Caught(Target):
        def measure(self, model: Any, **kwargs: Any) -> Any:
            found.append(model)
            if len(found) == 2:
                raise RunError("caught")
            return super().measure(model, **kwargs)

    target = target_of(model)
    fields = {field.name: getattr(target, field.name) for field in dataclasses.fields(target)}
    with pytest.raises(RunError, match="caught"):
        quantize(Caught(**fields | {"prompts": target.prompts[:1]}), settings)
    return found[1]


def test_what_was_measured_before_a_failure_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, settings = attacked("llama"), QuantizeSettings("8,4")
    whole = quantize(target, settings)
    target = dataclasses.replace(target, output=tmp_path / "out.json", known={})
    fail_at_(monkeypatch, 4)  # base, before, bits 8, bits 4
    with pytest.raises(RunError, match=r"lost\. What was measured so far \(before, base, bits 8\) is kept"):
        quantize(target, settings)
    monkeypatch.undo()
    assert quantize(dataclasses.replace(target, resume=True), settings).to_dict() == whole.to_dict()


def test_half_precision_and_a_base_of_another_shape() -> None:
    target = target_of(tiny_model("llama").to(torch.bfloat16))
    target.base = tiny_model("llama", intermediate_size=48)
    result = quantize(target, QuantizeSettings("4", scheme="asymmetric", group_size=0))
    assert result.curve[0].at == {"bits": 16} and result.found["rounding"][0]["remains"] is None


def test_packed_weights_are_refused() -> None:
    model = tiny_model("llama")
    model.register_parameter("packed", torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False))
    with pytest.raises(UserError, match="the model's weights are quantised: they cannot be edited"):
        merged_copy(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": "four"}, "bits='four': whole numbers are needed"),
        ({"bits": "1"}, "bits='1': whole numbers from 2 to 8 are needed, as in 8,4"),
        ({"bits": "16,4"}, "bits='16,4': whole numbers from 2 to 8"),
        ({"scheme": "odd"}, "scheme='odd' is unknown. Choose one of symmetric, asymmetric"),
        ({"group_size": -1}, "group_size=-1: it must be at least 1, or 0 for the whole row"),
        ({"max_perplexity_increase": math.nan}, "max_perplexity_increase=nan"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        QuantizeSettings(**settings)
