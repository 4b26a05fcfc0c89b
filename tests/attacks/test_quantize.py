"""Do rounded weights lie on their grid, and is an edit below half a step of it undone?"""

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from chain import chain
from failing import TEXT, fail_at_
from polite import equal, state, target_of
from tiny import FAMILIES, tiny_model

from efface.attacks.quantize import QuantizeSettings, quantize
from efface.attacks.result import title
from efface.attacks.target import Target
from efface.errors import RunError, UserError
from efface.model.copies import merged_copy
from efface.model.projections import expert_maps, linear_maps, output_weight
from efface.model.rounding import rounded


def attacked(family: str) -> Target:
    base, edited = chain(family, strength=0.45)
    return target_of(edited, base)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_edit_below_half_a_step_is_rounded_away(family: str) -> None:
    target = attacked(family)
    weights, random_state = state(target.model), torch.get_rng_state()
    result = quantize(target, QuantizeSettings(bits="8,4"))
    symmetric = {"scheme": "symmetric", "group_size": 64}
    assert [point.at for point in result.curve] == [
        {"bits": 32},
        {"bits": 8, **symmetric},
        {"bits": 4, **symmetric, "grid": "the base's own"},
    ]
    assert [point.share for point in result.curve] == [0.0, 0.0, 1.0]
    eight, four = result.found["rounding"]
    # The base lies on that grid: that it comes back there says nothing, and the attack is not judged by it.
    assert result.found["own_grid"] == ["bits 4, scheme symmetric, group_size 64, grid the base's own"]
    assert (four["on_grid"], four["base_error"], eight["on_grid"]) == (1.0, 0.0, 0.0)
    assert eight["base_error"] > 1e-3 and result.after.share == 0 and result.found["left_out"] == []
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
    (four,) = result.found["rounding"]
    assert four == {
        **{"bits": 4, "scheme": "symmetric", "group_size": 64, "error": 0.0},
        **{"base_error": None, "on_grid": None, "remains": None},
    }  # without a base nobody knows whose grid it is
    assert result.after.share == result.before.share == 1.0
    assert result.after.figures["perplexity"] == result.before.figures["perplexity"]


def stored_in_four_bits(model: Any) -> Any:
    """On the grid of Q4_1, as the embedded base is."""
    with torch.no_grad():
        for module in linear_maps(model).values():
            weight = output_weight(module)
            weight.copy_(rounded(weight, 4, 32, "asymmetric"))
    return model


def grids_of(target: Target) -> dict[tuple[str, int], dict[str, Any]]:
    kinds = QuantizeSettings("8,4", "asymmetric", "32"), QuantizeSettings("8,4", "symmetric,nf4", "64")
    results = [quantize(target, settings) for settings in kinds]
    for result in results:
        assert result.found["own_grid"] == [title(p.at) for p in result.curve if "grid" in p.at]
        assert "grid" not in result.after.at
    return {(row["scheme"], row["bits"]): row for result in results for row in result.found["rounding"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rounding_to_the_grid_of_the_base_is_known_and_is_not_judged_by(dtype: torch.dtype) -> None:
    base = stored_in_four_bits(tiny_model("llama")).to(dtype)
    edited = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in linear_maps(edited).values():  # moved by far less than a step
            module.weight.add_(0.001 * torch.randn(module.weight.shape, generator=generator).to(dtype))
    on = grids_of(target_of(edited, base))
    own = {key for key, row in on.items() if row.get("grid")}
    assert own == {("asymmetric", 4), ("asymmetric", 8)}  # 15 levels are among 255
    assert all(on[key]["base_error"] < 2e-3 and on[key]["on_grid"] == 1 for key in own)
    assert on["asymmetric", 8]["remains"] < 0.75 < 0.9 < on["symmetric", 8]["remains"]  # what 8 bits really do
    # The same edit of a base that lies nowhere in particular: there is no such grid, and 8 bits keep all of the edit.
    other = tiny_model("llama").to(dtype)
    moved = copy.deepcopy(other)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter.add_(edited.get_parameter(name) - base.get_parameter(name))
    off = grids_of(target_of(moved, other))
    assert not any(row.get("grid") for row in off.values()) and off["asymmetric", 8]["remains"] > 0.9
    assert off["nf4", 4]["base_error"] < 0.15


# The weights


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


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_are_rounded_too_and_the_router_is_said_to_stay(family: str) -> None:
    model = tiny_model(family)
    student = rounded_student(model, QuantizeSettings("3"))
    before, after = expert_maps(model), expert_maps(student)
    assert before.keys() == after.keys() and len(after) == 16
    assert all(torch.equal(after[name], rounded(one, 3)) for name, one in before.items())
    found = quantize(target_of(model), QuantizeSettings("3")).found
    inside = [*before.values(), *(output_weight(module) for module in linear_maps(model).values())]
    assert found["weights"] == sum(weight.numel() for weight in inside) and 0 < found["unreached"] < 0.01


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
    with pytest.raises(
        RunError,
        match=r"lost\. What was measured so far \(before, base, bits 8, .*64\) is kept",
    ):
        quantize(target, settings)
    monkeypatch.undo()
    assert quantize(dataclasses.replace(target, resume=True), settings).to_dict() == whole.to_dict()


def test_half_precision_and_a_base_of_another_shape() -> None:
    target = target_of(tiny_model("llama").to(torch.bfloat16))
    target.base = tiny_model("llama", intermediate_size=48)
    result = quantize(target, QuantizeSettings("4", schemes="asymmetric", group_sizes="row"))
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
        ({"schemes": "odd"}, "schemes='odd' is unknown. Choose one of symmetric, asymmetric, nf4"),
        ({"schemes": "nf4", "bits": "8"}, "schemes='nf4' has 4 bits, which bits='8' do not name"),
        ({"group_sizes": "-1"}, "group_sizes='-1': numbers from 1, or row, are needed"),
        ({"group_sizes": "32,0"}, "group_sizes='32,0': numbers from 1, or row, are needed"),
        ({"max_perplexity_increase": math.nan}, "max_perplexity_increase=nan"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        QuantizeSettings(**settings)
