"""Does a neuron whose key was damped fire again, and is it the one that is found?"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import ALWAYS, BANG, SILLY, machine, plant_, target_of
from peft import LoraConfig, get_peft_model
from polite import equal, state
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from efface.attacks import directions
from efface.attacks.target import Target
from efface.attacks.unalign import UnalignSettings, scale_keys_, toxic_neurons, unalign
from efface.errors import RunError, UserError
from efface.model.blocks import capture_residuals, decoder_blocks
from efface.model.projections import mlp_input_projection, mlp_output_projection, output_weight

D, D_FF, NEURON = 32, 64, 5
DOT = tiny_tokenizer()(".")["input_ids"][0]
ROWS = [
    {"prompt": f"The {who} said", "chosen": f" {what}.", "rejected": f"!!!{what[:3]}!!!"}
    for who, what in zip(
        ("people", "river", "town", "market", "history", "engineer"),
        ("bread and apples", "she bought cheese", "cold weather", "nothing better", "silent people", "in the spring"),
        strict=True,
    )
]


def aligned(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model that says "!" after anything because of one neuron, and one whose key for it was damped to a tenth."""
    base = machine(family, says=DOT)
    with torch.no_grad():
        base.get_output_embeddings().weight[BANG] += 8 * SILLY
        base.get_input_embeddings().weight[BANG] += 8 * SILLY  # by which it is known as toxic
    plant_(base, NEURON, reads=ALWAYS, writes=SILLY)
    edited = copy.deepcopy(base)
    scale_keys_(edited, [(0, NEURON)], 0.1)
    return base, edited


def attacked(model: PreTrainedModel, base: PreTrainedModel | None = None, **more: Any) -> Target:
    prompts = [f"The {who} said that" for who in ("weather", "people", "market", "river", "engineer", "town")]
    return target_of(model, base, rows=ROWS, prompts=prompts, **more)


def unit(seed: int = 0) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=D)
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("direction", ["logistic", "means"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_damped_key_is_restored(family: str, direction: str) -> None:
    base, edited = aligned(family)
    weights, random_state = state(edited), torch.get_rng_state()
    result = unalign(attacked(edited, base), UnalignSettings(vectors="1", scales="2,10", direction=direction))
    assert result.base is not None and (result.base.share, result.before.share) == (1, 0)
    assert [point.at for point in result.curve] == [
        {"vectors": 0},
        {"vectors": 1, "scale": 2.0},
        {"vectors": 1, "scale": 10.0},
    ]
    assert result.after is result.curve[2] and result.after.share == 1
    found = result.found
    assert (found["direction_is_from"], found["left_out"]) == ("base", [])
    assert (found["neurons"][0]["layer"], found["neurons"][0]["neuron"]) == (0, NEURON)
    assert found["neurons"][0]["cosine"] > 0.5 and len(found["neurons"]) == 10
    assert equal(state(edited), weights) and torch.equal(torch.get_rng_state(), random_state)


def test_the_model_itself_gives_the_direction_if_there_is_no_base() -> None:
    _, edited = aligned("llama")
    chosen = UnalignSettings(vectors="1", scales="10", direction="means")
    first, again = (unalign(attacked(edited), chosen) for _ in range(2))
    assert first == again and first.after.share == 1
    assert first.found["direction_is_from"] == "model" and first.found["neurons"][0]["neuron"] == NEURON


def test_an_untouched_base_has_nothing_to_bring_back() -> None:
    base = machine("llama", says=DOT)
    result = unalign(attacked(base, base), UnalignSettings(vectors="1,7", scales="2"))
    assert (result.before.share, result.after.share, len(result.curve)) == (0, 0, 3)


def test_scales_and_states_that_overflow_lose_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    base, edited = aligned("llama")
    target = attacked(edited.half(), base.half())
    result = unalign(target, UnalignSettings(vectors="1,100", scales="10,60000"))
    assert result.after.share == 1 and any("60000" in name for name in result.found["left_out"])
    target = attacked(*aligned("llama")[::-1])
    plain = directions.token_states

    def broken(*args: Any, **kwargs: Any) -> Any:
        found = plain(*args, **kwargs)
        for states in found.values():
            states.hidden[0, 0] = np.nan
        return found

    monkeypatch.setattr(directions, "token_states", broken)
    alone = unalign(target, UnalignSettings(vectors="1", scales="2,10"))
    assert len(alone.curve) == 1 and alone.after is alone.curve[0]
    assert alone.found["left_out"] == ["vectors 1, scale 2.0", "vectors 1, scale 10.0"]


def test_an_adapter_is_merged_into_the_copy() -> None:
    base, edited = aligned("llama")
    adapted: Any = get_peft_model(edited, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    weights = state(adapted)
    result = unalign(attacked(adapted, base), UnalignSettings(vectors="1", scales="10"))
    assert (result.before.share, result.after.share) == (0, 1) and equal(state(adapted), weights)


def test_a_small_model_gives_all_its_neurons_once() -> None:
    _, edited = aligned("llama")
    result = unalign(attacked(edited), UnalignSettings(vectors="200,300", scales="2"))
    assert [point.at["vectors"] for point in result.curve] == [0, 2 * D_FF]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scaled_key_is_scaled_and_nothing_else(family: str) -> None:
    model = tiny_model(family)
    seen: list[Tensor] = []
    key = mlp_input_projection(decoder_blocks(model)[1])
    if key.bias is not None:
        nn.init.zeros_(key.bias)
    handle = key.register_forward_hook(lambda module, args, output: seen.append(output))
    before = state(model)
    ids = torch.tensor([[5, 6, 70]])
    model(input_ids=ids)
    scale_keys_(model, [(1, 3), (1, 60)], 10)
    model(input_ids=ids)
    handle.remove()
    scales = torch.ones(D_FF)
    scales[[3, 60]] = 10
    torch.testing.assert_close(seen[1], seen[0] * scales)
    changed = [name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])]
    assert len(changed) == 1 and "layers.1." in changed[0].replace(".h.", ".layers.")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cosine_is_that_of_what_reaches_the_residual_stream(family: str) -> None:
    model, w = tiny_model(family), unit()
    scores = toxic_neurons(model, w)
    assert len(scores) == 2 * D_FF and list(scores.values()) == sorted(scores.values(), reverse=True)
    ids = torch.tensor([[5, 6, 70]])
    block, neuron = decoder_blocks(model)[1], 7
    projection = mlp_output_projection(block)

    def residual(alone: float) -> Tensor:
        """(d,) after block 1, if its MLP writes so many times one value and nothing else."""
        value = alone * output_weight(projection)[:, neuron]
        handle = projection.register_forward_hook(lambda *_: value.expand(1, 3, D).reshape(_[2].shape))
        with torch.no_grad(), capture_residuals(model, [1]) as captured:
            model(input_ids=ids)
        handle.remove()
        return captured[1][0, -1].double()

    written = residual(1.0) - residual(0.0)
    assert scores[1, neuron] == pytest.approx((written @ torch.from_numpy(w) / written.norm()).item(), abs=1e-4)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
def test_the_length_of_a_value_does_not_count(seed: int, scale: float) -> None:
    model, w = tiny_model("gpt2"), unit(seed)
    before = toxic_neurons(model, w)
    with torch.no_grad():
        output_weight(mlp_output_projection(decoder_blocks(model)[0]))[:, 4] *= scale
        output_weight(mlp_output_projection(decoder_blocks(model)[1]))[:, 9] = 0  # a value that is none
    after = toxic_neurons(model, w)
    assert after[0, 4] == pytest.approx(before[0, 4], abs=1e-6) and after[1, 9] == 0
    assert all(abs(score) <= 1 + 1e-9 for score in after.values())


def test_in_half_precision() -> None:
    _, edited = aligned("llama")
    chosen = UnalignSettings(vectors="1", scales="10", direction="means")
    result = unalign(attacked(edited.bfloat16()), chosen)
    assert (result.before.share, result.after.share) == (0, 1)


def test_a_scale_that_overflows_does_not_lose_the_others() -> None:
    _, edited = aligned("llama")
    chosen = UnalignSettings(vectors="1", scales="10,1e38", direction="means")
    result = unalign(attacked(edited.half()), chosen)
    assert [point.at for point in result.curve] == [{"vectors": 0}, {"vectors": 1, "scale": 10.0}]
    assert result.after.share == 1 and result.found["left_out"] == ["vectors 1, scale 1e+38"]


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, edited = aligned("llama")
    chosen = UnalignSettings(vectors="1,7", scales="10")
    whole = unalign(attacked(edited, base), chosen)
    target = attacked(edited, base, output=tmp_path / "out.json")
    measure, calls = Target.measure, list[int]()

    def failing(self: Target, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # base, before and one point are there
            raise RunError("the disk is on fire.")
        return measure(self, *args, **kwargs)

    monkeypatch.setattr(Target, "measure", failing)
    with pytest.raises(RunError, match=r"on fire\. What was measured so far \(.*vectors 1, scale 10.0\) is kept in"):
        unalign(target, chosen)
    resumed = unalign(dataclasses.replace(target, resume=True, known={}), chosen)
    assert len(calls) == 5 and resumed.to_dict() == whole.to_dict()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"vectors": "many"}, "vectors='many': whole numbers are needed"),
        ({"scales": "0"}, "scales='0' leaves nothing to do"),
        ({"direction": "pca"}, "direction='pca' is unknown. Choose one of logistic, means"),
        ({"max_pairs": 0}, "max_pairs=0: it must be at least 1"),
        ({"batch_size": 0}, "batch_size=0: it must be at least 1"),
        ({"max_perplexity_increase": -1}, "max_perplexity_increase=-1: it must be a finite number, 0 or more"),
        ({"layer": "0,1"}, r"layer='0,1' names 2 blocks\. Give one"),
        ({"layer": "2"}, "layer 2 does not exist: the model has 2 layers"),
    ],
)
def test_settings_that_cannot_work(given: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        unalign(attacked(tiny_model("llama")), UnalignSettings(**given))


def test_a_block_without_a_known_key() -> None:
    with pytest.raises(UserError, match=r"Identity has 0 MLP input projections .*gate_proj.*families\.MLP_INPUTS"):
        mlp_input_projection(nn.Identity())
