"""Is what neurons write along a direction all that the MLPs add to it, and is a planted neuron found?

Of: analysis/mlp_check.py
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from transformers import GraniteConfig, GraniteForCausalLM

from efface.analysis.mlp_check import check_writing
from efface.analysis.neurons import (
    GROUPS,
    Spoken,
    Writing,
    activity,
    compare_writing,
    cumulative,
    lengths_of,
    random_fall,
    values_of,
    writing,
)
from efface.errors import UserError
from efface.model.blocks import capture_residuals, decoder_blocks
from efface.model.interventions import Intervention, attach_
from efface.model.projections import mlp_output_projection, output_weight

SPOKEN = [Spoken(list(range(5, 25)), 6), Spoken(list(range(30, 42)), 3), Spoken(list(range(50, 90)), 20)]


def written(model: torch.nn.Module, w: np.ndarray, **given: int) -> Writing:
    return writing(model, activity(model, tiny_tokenizer(), SPOKEN, **given), w)


def direction(model: torch.nn.Module) -> np.ndarray:
    w = np.random.default_rng(0).standard_normal(model.config.hidden_size)
    return w / np.linalg.norm(w)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_change_of_one_mlp_falls_on_its_neurons_alone(family: str) -> None:
    """Of the last block, so that nothing else can change: the sum over neurons is the whole fall, to rounding."""
    base, edited = tiny_model(family), tiny_model(family)
    with torch.no_grad():
        output_weight(mlp_output_projection(decoder_blocks(edited)[1]))[:, 7] *= 0.25
    w = direction(base)
    before, after = (written(model, w) for model in (base, edited))
    change = compare_writing(before, after)
    tokens = activity(base, tiny_tokenizer(), SPOKEN).n_tokens
    assert tokens == sum(len(one.ids) - one.start for one in SPOKEN)
    assert abs(change.drop) > 1e-5 and change.fall.sum() == pytest.approx(change.drop, rel=1e-3, abs=1e-6)
    assert change.by_neurons == pytest.approx(1, rel=1e-3)
    np.testing.assert_allclose(change.fires_less + change.moved, change.fall, atol=1e-12)
    if family not in ("gemma2", "gemma3"):  # whose norm scales all others with it
        assert np.flatnonzero(np.abs(change.fall) > 1e-9).tolist() == [64 + 7]
        assert change.moved[1, 7] == pytest.approx(change.fall[1, 7])
    same = compare_writing(before, before)
    assert same.drop == same.by_neurons == 0 and not same.fall.any()


def granite() -> Any:
    """What its MLPs write counts .22 of it."""
    shape = tiny_model("llama").config.to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    torch.manual_seed(0)
    config = GraniteConfig(**{name: shape[name] for name in kept}, residual_multiplier=0.22)
    return GraniteForCausalLM(config).eval()


def norm_over_both() -> Any:
    """As OPT-350m has it."""
    return tiny_model("opt", do_layer_norm_before=False, word_embed_proj_dim=32)


@pytest.mark.parametrize("make", [granite, norm_over_both])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_changes_what_its_mlps_write_is_refused(make: Any, dtype: torch.dtype) -> None:
    model = make().to(dtype)
    with pytest.raises(UserError, match="block 0 changes what its MLP writes before it is in the residual stream"):
        activity(model, tiny_tokenizer(), SPOKEN)
    assert activity(model, tiny_tokenizer(), SPOKEN, exact=False).n_tokens, "neurons can still be ranked"
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_and_interventions_are_no_reason_to_refuse(family: str) -> None:
    model = tiny_model(family).to(torch.bfloat16)
    attach_(model, [Intervention(0, -torch.ones(32, 1) / 32, torch.ones(1, 32), torch.ones(32))])
    check_writing(model)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_batches_do_not_matter_and_the_height_is_that_of_the_states(family: str) -> None:
    model = tiny_model(family)
    w = direction(model)
    one, all_at_once = (written(model, w, batch_size=size) for size in (1, 16))
    np.testing.assert_allclose(one.means, all_at_once.means, rtol=1e-4, atol=1e-6)
    assert one.height == pytest.approx(all_at_once.height, rel=1e-4)
    with torch.no_grad():
        found = []
        for spoken in SPOKEN:
            with capture_residuals(model, [1]) as residuals:
                model(torch.tensor([spoken.ids]))
            found.append(residuals[1][0, spoken.start :].double())
    assert one.height == pytest.approx((torch.cat(found) @ torch.from_numpy(w)).mean().item(), rel=1e-4)


def test_a_neuron_that_is_silenced_stops_firing_and_one_that_is_turned_moves() -> None:
    base, quiet, turned = (tiny_model("llama") for _ in range(3))
    w = direction(base)
    with torch.no_grad():
        decoder_blocks(quiet)[1].mlp.up_proj.weight[7] = 0
        output_weight(mlp_output_projection(decoder_blocks(turned)[1]))[:, 7] *= -1
    before = written(base, w)
    for model, part, other in ((quiet, "fires_less", "moved"), (turned, "moved", "fires_less")):
        change = compare_writing(before, written(model, w))
        assert np.abs(change.fall).argmax() == 64 + 7
        assert getattr(change, part)[1, 7] == pytest.approx(change.fall[1, 7]) and not getattr(change, other).any()
    group = compare_writing(before, before).groups[1, 7]
    assert GROUPS[group].startswith("toxic") == (before.along[1, 7] > 0)
    assert GROUPS[group].endswith("firing") == (before.means[1, 7] > 0)


def test_the_curve_of_a_planted_neuron_is_there_at_once_and_that_of_random_ones_is_not() -> None:
    base, edited = tiny_model("llama"), tiny_model("llama")
    w = direction(base)
    before = written(base, w)
    layer, neuron = 1, int(np.argmax(before.contributions[1]))  # it raises <h, w>, so that without it there is a fall
    with torch.no_grad():
        output_weight(mlp_output_projection(decoder_blocks(edited)[layer]))[:, neuron] = 0
    after = written(edited, w)
    change = compare_writing(before, after)
    assert change.drop > 0 and cumulative(change.fall, change.drop, [1, 5, 10**6]) == pytest.approx([1, 1, 1])
    lengths, moved = lengths_of(edited, base)
    expected = values_of(decoder_blocks(base)[0])[:, 3].norm().item() / 32**0.5
    assert lengths[0, 3] == pytest.approx(expected) and np.count_nonzero(moved) == 1
    random = [random_fall(before, after, lengths, moved, seed).sum() for seed in range(200)]
    assert abs(np.mean(random)) < 3 * np.std(random) / 200**0.5 + 1e-12
    assert cumulative(np.zeros((2, 3)), 0.0, [1]) == [0.0]


def test_the_models_are_left_as_they_are() -> None:
    model = tiny_model("gemma3").train()
    state = copy.deepcopy(model.state_dict())
    written(model, direction(model))
    assert model.training and not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
