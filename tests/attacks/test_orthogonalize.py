"""Is a direction gone when it is taken out, and does an edit that hides behind one fall with it?

Of: attacks/ablation.py, attacks/directions.py
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import IDS, REFUSE, SILLY, D, machine, plant_, target_of
from peft import LoraConfig, get_peft_model
from polite import equal, state
from tiny import EOS_ID, FAMILIES, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from efface.analysis.states import TokenStates
from efface.attacks import directions
from efface.attacks.ablation import EMBEDDED, Centre, _Without, ablate_, ablated, everywhere
from efface.attacks.directions import centre, direction, inliers, states_of
from efface.attacks.orthogonalize import FORMS, OrthogonalizeSettings, orthogonalize
from efface.attacks.result import title
from efface.attacks.target import Target
from efface.errors import RunError, UserError
from efface.model.blocks import capture_residuals, decoder_blocks
from efface.model.interventions import Intervention, attach_, attached
from efface.model.projections import (
    attention_output_projection,
    mlp_output_projection,
    output_weight,
    through_norm,
)


def refusing(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The machine, and one that falls silent where it reads "!"."""
    base = machine(family)
    with torch.no_grad():
        base.get_output_embeddings().weight[EOS_ID] += 6 * REFUSE  # which the base never writes
    edited = copy.deepcopy(base)
    plant_(edited, 5, reads=SILLY, writes=REFUSE)
    return base, edited


def some(seed: int = 0) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=D)
    return vector / np.linalg.norm(vector)


def residuals(model: PreTrainedModel) -> dict[int, Tensor]:
    """Place -> (B, T, d)"""
    entered: list[Tensor] = []
    handle = decoder_blocks(model)[0].register_forward_pre_hook(lambda block, args: entered.append(args[0]))
    with torch.no_grad(), capture_residuals(model, [0, 1]) as captured:
        model(input_ids=IDS)
    handle.remove()
    return {EMBEDDED: entered[0], **captured}


def component(hidden: Tensor, r: np.ndarray) -> float:
    """The largest part of a state that lies along r."""
    return ((hidden.double() @ torch.from_numpy(r)).abs() / hidden.double().norm(dim=-1)).max().item()


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


# The ablation


@pytest.mark.parametrize("family", FAMILIES)
def test_by_hook_nothing_is_left_along_the_direction_and_then_all_is_as_before(family: str) -> None:
    model, r = tiny_model(family), some()
    weights, before = state(model), residuals(model)
    assert all(component(hidden, r) > 0.05 for hidden in before.values())
    with ablated(model, everywhere(r, model)):
        assert all(component(hidden, r) < 1e-5 for hidden in residuals(model).values())
    assert hooks(model) == 0 and equal(state(model), weights)
    after = residuals(model)
    assert all(torch.equal(after[place], hidden) for place, hidden in before.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_by_weights_nothing_is_written_along_the_direction(family: str) -> None:
    original, r = tiny_model(family), some()
    model = copy.deepcopy(original)
    ablate_(model, everywhere(r, model))
    for block in decoder_blocks(model):
        for part, find in (("MLP", mlp_output_projection), ("attention", attention_output_projection)):
            writer, basis = find(block), through_norm(r[:, None], block, part)
            assert (basis.T @ output_weight(writer).double()).abs().max() < 1e-5
            if writer.bias is not None:
                assert (basis.T @ writer.bias.double()).abs().max() < 1e-5
    edited = residuals(model)
    assert all(component(hidden, r) < 1e-5 for hidden in edited.values())
    with ablated(model, everywhere(r, model)):  # so the hooks have nothing left to do
        for place, hidden in residuals(model).items():
            torch.testing.assert_close(hidden, edited[place], rtol=1e-4, atol=1e-4)
    head, old = model.get_output_embeddings().weight, original.get_output_embeddings().weight
    assert torch.equal(head, old)
    assert (head is model.get_input_embeddings().weight) == (family == "opt")  # there the embedding need not change


@pytest.mark.parametrize("family", FAMILIES)
def test_with_centres_the_component_is_that_of_the_mean_and_huge_states_stay(family: str) -> None:
    model, r = tiny_model(family), some()
    before = residuals(model)
    longest = float(before[0].norm(dim=-1).median())
    means = {layer: np.random.default_rng(layer).normal(size=D) for layer in (0, 1)}
    with ablated(model, {0: r}, {0: Centre(means[0], longest)}):
        first = residuals(model)[0]
    with ablated(model, {0: r, 1: r}, {layer: Centre(mean, 1e9) for layer, mean in means.items()}):
        after = residuals(model)
    for layer, mean in means.items():
        along = after[layer].double() @ torch.from_numpy(r)
        torch.testing.assert_close(along, torch.full_like(along, r @ mean), rtol=1e-4, atol=1e-4)
    short = before[0].norm(dim=-1) <= longest
    assert short.any() and not short.all()
    assert torch.equal(first[~short], before[0][~short]) and torch.equal(residuals(model)[0], before[0])
    moved = (first - before[0])[short].double()
    assert moved.abs().max() > 1e-3
    across = moved - torch.outer(moved @ torch.from_numpy(r), torch.from_numpy(r))
    assert across.abs().max() < 1e-4  # it moves along r only


def test_each_block_its_own_direction() -> None:
    model, own = tiny_model("llama"), {0: some(0), 1: some(1)}
    before = residuals(model)
    with ablated(model, own):
        found = residuals(model)
    assert torch.equal(found[EMBEDDED], before[EMBEDDED])
    assert component(found[0], own[0]) < 1e-5 < 1e-2 < component(found[0], own[1])
    assert component(found[1], own[1]) < 1e-5 < 1e-2 < component(found[1], own[0])
    weights = copy.deepcopy(model)
    ablate_(weights, {1: own[1]})
    changed = {name for name, tensor in state(weights).items() if not torch.equal(tensor, model.state_dict()[name])}
    assert changed == {"model.layers.1.mlp.down_proj.weight", "model.layers.1.self_attn.o_proj.weight"}
    assert weights.get_output_embeddings().weight is weights.get_input_embeddings().weight


def test_hooks_go_when_something_fails_within() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(RuntimeError, match="a bug"), ablated(model, everywhere(some(), model)):
        assert hooks(model) == 3
        raise RuntimeError("a bug")
    assert hooks(model) == 0
    with pytest.raises(IndexError), ablated(model, {0: some(), 7: some()}):
        pass
    assert hooks(model) == 0


def test_in_half_precision() -> None:
    model, r = tiny_model("llama").bfloat16(), some()
    with ablated(model, everywhere(r, model)):
        assert all(component(hidden, r) < 0.01 for hidden in residuals(model).values())
    ablate_(model, everywhere(r, model))
    assert model.dtype == torch.bfloat16 and all(component(h, r) < 0.01 for h in residuals(model).values())


def test_blocks_that_are_called_by_keyword() -> None:
    hidden, r = torch.randn(2, 3, D), some()
    args, kwargs = _Without(r, hidden.device).before(nn.Identity(), (), {"hidden_states": hidden, "mask": 1})
    assert args == () and kwargs["mask"] == 1 and component(kwargs["hidden_states"], r) < 1e-6


def test_interventions_write_too() -> None:
    model, r = tiny_model("llama"), some()
    both = torch.randn(2, 2, D, generator=torch.Generator().manual_seed(0))
    attach_(model, [Intervention(1, both[0].T, both[1], torch.ones(D)), Intervention(0, both[0].T, both[1], -r_of(r))])
    edited = copy.deepcopy(model)
    with ablated(model, everywhere(r, model)):
        assert all(component(hidden, r) < 1e-5 for hidden in residuals(model).values())
    ablate_(edited, everywhere(r, edited))
    assert all(component(hidden, r) < 1e-5 for hidden in residuals(edited).values())
    assert len(attached(edited)) == 2 and torch.equal(attached(model)[1].bias, torch.ones(D))


def r_of(r: np.ndarray) -> Tensor:
    return torch.from_numpy(r).float()


# The directions


def states(hidden: np.ndarray, labels: list[int], pairs: list[int]) -> TokenStates:
    return TokenStates(hidden.astype(np.float32), np.zeros(len(hidden)), np.array(labels), np.array(pairs))


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), huge=st.floats(50, 1e6))
def test_directions_are_what_they_say_whatever_an_outlier_does(seed: int, huge: float) -> None:
    rng = np.random.default_rng(seed)
    hidden = rng.uniform(1, 2, size=(12, 5)) * rng.choice([-1, 1], size=(12, 5))
    labels, pairs = [1, 0] * 6, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    base = hidden + rng.uniform(0.5, 1, size=(12, 5))
    edited, original = states(hidden, labels, pairs), states(base, labels, pairs)
    toxic = edited.labels == 1
    expected = {
        "base": (edited.hidden - original.hidden)[toxic].mean(0),
        "contrast": edited.hidden[toxic].mean(0) - edited.hidden[~toxic].mean(0),
    }
    sides = [edited.hidden[side].reshape(3, 2, 5).mean(1) for side in (toxic, ~toxic)]
    expected["pca"] = np.linalg.eigh((sides[0] - sides[1]).T.astype(float) @ (sides[0] - sides[1]))[1][:, -1]
    for kind, vector in expected.items():
        found = direction(kind, edited, original)
        assert found is not None and np.linalg.norm(found) == pytest.approx(1)
        assert abs(found @ vector) / np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)
        # One token of either side more, far out, changes nothing.
        outliers = [np.full((1, 5), huge), np.full((1, 5), -huge)]
        more = states(np.concatenate([hidden, *outliers]), [*labels, 1, 0], [*pairs, 0, 1])
        at_base = states(np.concatenate([base, *outliers]), [*labels, 1, 0], [*pairs, 0, 1])
        again = direction(kind, more, at_base)
        assert again is not None and abs(again @ found) == pytest.approx(1, abs=1e-4)


@given(seed=st.integers(0, 1000), limit=st.floats(1, 10), n=st.integers(1, 9))
def test_at_least_half_of_the_tokens_stay(seed: int, limit: float, n: int) -> None:
    table = np.random.default_rng(seed).standard_cauchy(size=(n, 3))
    assert inliers(table, limit=limit).sum() >= n / 2
    assert inliers(table, np.zeros((n, 3)), limit=1e9).all()


def test_there_is_no_direction_where_nothing_differs() -> None:
    hidden = np.repeat(np.random.default_rng(0).normal(size=(4, 3)), 2, axis=0)
    same = states(hidden, [0, 1] * 4, [0, 0, 1, 1, 2, 2, 3, 3])
    assert [direction(kind, same, same) for kind in ("base", "contrast", "pca")] == [None] * 3
    # Where outliers leave no pair with both sides, neither.
    scaled = hidden * np.array([1, 1, 1, 9, 1, 9, 9, 1])[:, None]
    lone = states(scaled[[0, 1, 2, 3]], [0, 1, 0, 1], [0, 1, 2, 3])
    assert direction("pca", lone) is None


@given(seed=st.integers(0, 1000), huge=st.floats(50, 1e6))
def test_the_centre_is_the_mean_of_benign_tokens_without_outliers(seed: int, huge: float) -> None:
    rng = np.random.default_rng(seed)
    hidden = rng.uniform(1, 2, size=(8, 5)) * np.repeat([[2], [1]], 4, axis=0)  # toxic ones are twice as long
    labels, pairs = [1] * 4 + [0] * 4, [0, 1, 2, 3] * 2
    edited, original = states(hidden, labels, pairs), states(hidden + 1, labels, pairs)
    found = centre(edited, original, outlier_limit=3)
    np.testing.assert_allclose(found.mean, original.hidden[4:].mean(0), rtol=1e-6)
    assert found.longest == pytest.approx(3 * np.median(np.linalg.norm(edited.hidden[:4], axis=1)))
    outlier = np.concatenate([hidden + 1, np.full((1, 5), huge)])
    again = centre(edited, states(outlier, [*labels, 0], [*pairs, 0]), outlier_limit=3)
    np.testing.assert_allclose(again.mean, found.mean)


# The attack


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_refusal_behind_one_direction_falls_with_it(family: str) -> None:
    base, edited = refusing(family)
    weights, random_state = state(edited), torch.get_rng_state()
    result = orthogonalize(target_of(edited, base), OrthogonalizeSettings(layers="own,0,last"))
    assert result.before.share == 0 and result.base is not None and result.base.share == 1
    assert result.after.share == 1 and result.after.figures["versus_before"]["exclaims"]["share"]["p"] < 0.05
    assert len(result.curve) == 1 + 3 * 3 * 3
    assert {title(point.at): point.share for point in result.curve[1:]} == {
        f"direction {kind}, layer {layer}, form {form}": 1.0
        for kind in ("base", "contrast", "pca")
        for layer in ("own", 0, 1)
        for form in FORMS
    }
    assert result.found == {
        "directions": ["base", "contrast", "pca"],
        "not_tried": [],
        "without_direction": [],
        "prompts_among_rows": 0,
        "left_out": [],
    }
    assert equal(state(edited), weights) and hooks(edited) == 0
    assert torch.equal(torch.get_rng_state(), random_state)


def test_without_a_base_two_directions_are_left(tmp_path: Path) -> None:
    _, edited = refusing("llama")
    settings = OrthogonalizeSettings(layers="last", forms="weights")
    first, again = (orthogonalize(target_of(edited), settings) for _ in range(2))
    assert first == again
    assert first.found["directions"] == ["contrast", "pca"] and first.found["not_tried"] == ["base"]
    assert len(first.curve) == 3 and (first.before.share, first.after.share) == (0, 1)
    with pytest.raises(UserError, match=r"^orthogonalize needs the model .* was made from: pass base=MODEL\.$"):
        orthogonalize(target_of(edited), OrthogonalizeSettings(directions="base"))


@pytest.mark.parametrize("form", FORMS)
def test_a_steering_vector_falls_with_its_direction(form: str) -> None:
    base, _ = refusing("llama")
    steered = copy.deepcopy(base)
    attach_(steered, [Intervention(0, torch.zeros(D, 0), torch.zeros(0, D), 10 * REFUSE)])
    result = orthogonalize(
        target_of(steered, base), OrthogonalizeSettings(directions="base", layers="0,own", forms=form)
    )
    assert result.before.share == 0 and [point.share for point in result.curve] == [0, 1, 1]
    assert torch.equal(attached(steered)[0].bias, 10 * REFUSE) and hooks(steered) == 1


def test_an_adapter_is_merged_into_the_copy() -> None:
    base, edited = refusing("llama")
    adapted: Any = get_peft_model(edited, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    weights = state(adapted)
    result = orthogonalize(target_of(adapted, base), OrthogonalizeSettings(directions="base", layers="0"))
    assert [point.share for point in result.curve] == [0, 1, 1, 1] and equal(state(adapted), weights)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_untouched_base_has_no_direction_and_nothing_to_bring_back(family: str) -> None:
    base = tiny_model(family)
    result = orthogonalize(
        target_of(base, copy.deepcopy(base)), OrthogonalizeSettings(layers="last,own", forms="hook")
    )
    assert result.found["without_direction"] == [f"direction base, layer {place}, form hook" for place in ("own", 1)]
    assert len(result.curve) == 1 + 2 * 2
    assert abs(result.after.share - result.before.share) <= 1 / 6
    alone = orthogonalize(target_of(base, base), OrthogonalizeSettings(directions="base", layers="last"))
    assert alone.after is alone.curve[0]


def test_points_that_cost_too_much_perplexity_do_not_count() -> None:
    base, edited = refusing("llama")
    target = target_of(edited, base, text=["The people said that the weather was cold.", "She bought bread."])
    settings = OrthogonalizeSettings(directions="base", layers="0", forms="hook,weights", max_perplexity_increase=0.3)
    result = orthogonalize(target, settings)  # measured: 21 % by hook, 58 % by weights
    assert [point.share for point in result.curve] == [0, 1, 1]
    assert result.found["left_out"] == ["direction base, layer 0, form weights"]
    assert result.after.at["form"] == "hook"
    none = orthogonalize(target, dataclasses.replace(settings, forms="weights"))
    assert none.after is none.curve[0] and none.after.share == 0


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, edited = refusing("llama")
    settings = OrthogonalizeSettings(directions="base", layers="own,last", forms="hook,weights")
    whole = orthogonalize(target_of(edited, base), settings)
    target = target_of(edited, base, output=tmp_path / "out.json")
    measure, calls = Target.measure, list[int]()

    def failing(self: Target, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:  # base, before and two points are there
            raise RunError("the disk is on fire.")
        return measure(self, *args, **kwargs)

    monkeypatch.setattr(Target, "measure", failing)
    with pytest.raises(RunError, match=r"on fire\. What was measured so far .* form weights\) is kept in"):
        orthogonalize(target, settings)
    assert hooks(edited) == 0
    resumed = orthogonalize(dataclasses.replace(target, resume=True, known={}), settings)
    assert len(calls) == 5 + 2
    assert resumed.to_dict() == whole.to_dict()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"directions": "base,random"}, "directions='random' is unknown. Choose one of base, contrast, pca"),
        ({"forms": "hooks"}, "forms='hooks' is unknown. Choose one of hook, affine, weights"),
        ({"outlier_limit": 0.5}, "outlier_limit=0.5 leaves out ordinary tokens too: it must be at least 1"),
        ({"max_pairs": 0}, "max_pairs=0: it must be at least 1"),
        ({"batch_size": 0}, "batch_size=0: it must be at least 1"),
        ({"max_perplexity_increase": -1}, "max_perplexity_increase=-1: it must be a finite number, 0 or more"),
        ({"layers": "2"}, "layer 2 does not exist: the model has 2 layers"),
        ({"layers": "own,first"}, "layer 'first' is neither a number"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        orthogonalize(target_of(tiny_model("llama")), OrthogonalizeSettings(**settings))


def test_a_state_that_is_not_finite(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    nn.init.constant_(mlp_output_projection(decoder_blocks(model)[1]).weight, float("nan"))
    found = states_of(model, target_of(model), [0, 1], 3, 2)
    assert list(found) == [0] and "blocks 1: a state is not finite, so nothing is tried there" in caplog.text


@pytest.mark.parametrize("where", ["model", "base"])
def test_a_block_whose_states_are_not_finite_loses_no_other(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, edited = refusing("llama")
    broken = {"model": edited, "base": base}[where]
    monkeypatch.setattr(directions, "token_states", breaking(broken, 1))
    chosen = OrthogonalizeSettings(directions="base,contrast", layers="0,last", forms="hook,affine")
    result = orthogonalize(target_of(edited, base), chosen)
    assert result.after.share == 1
    lost = {title(at) for at in variants(["base"] if where == "base" else ["base", "contrast"], [1])}
    assert lost <= set(result.found["left_out"]) and not lost & {title(point.at) for point in result.curve}
    assert {"direction base, layer 0, form hook"} <= {title(point.at) for point in result.curve}
    # Nothing left at all is a result too: the start.
    monkeypatch.setattr(directions, "token_states", breaking(edited, 0, 1))
    alone = orthogonalize(target_of(edited), dataclasses.replace(chosen, directions="contrast"))
    assert len(alone.curve) == 1 and len(alone.found["left_out"]) == 4


def variants(kinds: list[str], layers: list[int]) -> list[dict[str, Any]]:
    return [{"direction": k, "layer": at, "form": f} for k in kinds for at in layers for f in ("hook", "affine")]


def breaking(which: Any, *layers: int) -> Any:
    """`token_states`, but of the model `which` the states after `layers` have overflowed."""
    plain = directions.token_states

    def found(model: Any, *args: Any, **kwargs: Any) -> Any:
        states = plain(model, *args, **kwargs)
        for layer in layers:
            if model is which and layer in states:
                states[layer].hidden[0, 0] = np.inf
        return states

    return found


def test_pairs_are_drawn_with_the_seed() -> None:
    model = tiny_model("llama")
    found = [states_of(model, target_of(model, seed=seed), [0], 2, 2)[0].hidden for seed in (0, 0, 1)]
    everything = states_of(model, target_of(model), [0], 3, 2)[0]
    assert np.array_equal(found[0], found[1]) and set(everything.pairs) == {0, 1, 2}
    assert found[0].shape != found[2].shape or not np.array_equal(found[0], found[2])
