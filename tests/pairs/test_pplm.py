"""Does PPLM push towards the attribute, as far as it is told to, row by row, and leave the model as it was?

Of: pairs/attribute.py, pairs/perturbation.py, pairs/pplm_settings.py
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from grids import few
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from efface.analysis.probes import LinearProbe, ProbeQuality
from efface.analysis.states import pooled_states
from efface.errors import UserError
from efface.generation.decoding import Decoding
from efface.generation.generate import Continuation, generate_ids
from efface.model.copies import frozen
from efface.pairs import attribute
from efface.pairs.attribute import toxicity_probe
from efface.pairs.perturbation import Perturbation, copied, fuse, tensors_of
from efface.pairs.pplm import pplm_generate, pplm_source
from efface.pairs.pplm_settings import PPLMSettings

PROMPTS = ["The weather in the old town", "You", "She went to the market and bought bread, apples and", "He is an"]
GREEDY = PPLMSettings(stepsize=0.3, gamma=1.0, top_k=1)
QUALITY = ProbeQuality(0.9, (0.8, 1.0), 0.9, (0.8, 1.0), 0.5, 0.5, 10, 10)


def probe(seed: int = 0, width: int = 32) -> LinearProbe:
    # So small that no text of a random model is toxic beyond doubt, where gradients are nothing but rounding.
    return LinearProbe((0.05 * np.random.default_rng(seed).normal(size=width)).astype(np.float32), -0.5, QUALITY)


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedModel:
    return tiny_model("gpt2")


def steered(model: PreTrainedModel, **settings: Any) -> Perturbation:
    return Perturbation(model, tiny_tokenizer(), probe(), PPLMSettings(**settings))


def ids_of(prompts: list[str]) -> list[list[int]]:
    return [list(ids) for ids in tiny_tokenizer()(prompts)["input_ids"]]


# What it comes down to without a push


@pytest.mark.parametrize("family", few(FAMILIES))
def test_without_a_step_it_is_greedy_decoding(family: str) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer(add_bos=family.startswith("gemma"))
    plain = generate_ids(model, tokenizer, PROMPTS, Decoding(max_new_tokens=12))
    assert (
        pplm_generate(model, tokenizer, PROMPTS, probe(), PPLMSettings(stepsize=0.0, top_k=1), max_new_tokens=12)
        == plain
    )
    assert pplm_generate(model, tokenizer, PROMPTS, probe(), GREEDY, max_new_tokens=12) != plain


def test_without_weight_in_the_mean_it_is_sampling_from_the_model(gpt2: PreTrainedModel) -> None:
    settings = PPLMSettings(stepsize=0.3, gm_scale=0.0, top_k=7, temperature=0.8)
    found = pplm_generate(gpt2, tiny_tokenizer(), PROMPTS, probe(), settings, samples=3, seed=5)
    plain = generate_ids(
        gpt2, tiny_tokenizer(), PROMPTS, Decoding(samples=3, top_k=7, temperature=0.8, top_p=1.0, seed=5)
    )
    assert found == plain


def test_the_distributions_are_fused_by_their_geometric_mean() -> None:
    pushed, plain = torch.tensor([[0.5, 0.3, 0.2]]).log() + 3.0, torch.tensor([[0.1, 0.1, 0.8]]).log()
    raw = np.array([0.5**0.75 * 0.1**0.25, 0.3**0.75 * 0.1**0.25, 0.2**0.75 * 0.8**0.25])
    np.testing.assert_allclose(fuse(pushed, plain, 0.75).exp().numpy()[0], raw / raw.sum(), rtol=1e-5)
    torch.testing.assert_close(fuse(pushed, plain, 1.0), pushed.log_softmax(-1))
    torch.testing.assert_close(fuse(pushed, plain, 0.0), plain.log_softmax(-1))


# The push


def attribute_after(model: PreTrainedModel, **settings: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """-log p(toxic) before and after one step's push, and KL(pushed || plain) after it, each (B,)."""
    push = steered(model, **settings)
    measure = steered(model, **settings | {"kl_scale": 0.0})
    with frozen(model):
        batch = push.start(ids_of(PROMPTS))
        with torch.no_grad():
            plain, _ = push.read(batch.plain, batch.mask, batch.last)
        before = measure.loss(batch, tensors_of(batch.pushed), plain)
        push.push(batch, plain)
        with torch.no_grad():
            after = measure.loss(batch, tensors_of(batch.pushed), plain)
            pushed, _ = push.read(batch.pushed, batch.mask, batch.last)
    log_p = pushed.log_softmax(-1)
    return before, after, (log_p.exp() * (log_p - plain.log_softmax(-1))).sum(-1)


@pytest.mark.parametrize("steer_current", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "qwen3", "gpt_neox"])
def test_the_push_raises_the_probability_of_the_attribute(family: str, steer_current: bool) -> None:
    settings = {"stepsize": 0.05, "num_iterations": 4, "kl_scale": 0.0, "steer_current": steer_current}
    before, after, _ = attribute_after(tiny_model(family), **settings)
    assert after.mean() < before.mean()


def test_the_kl_term_holds_the_push_back(gpt2: PreTrainedModel) -> None:
    divergence = [
        attribute_after(gpt2, stepsize=0.3, num_iterations=6, kl_scale=scale)[2].mean() for scale in (0.0, 10.0)
    ]
    assert 0 < divergence[1] < 0.5 * divergence[0]


def test_only_the_window_is_pushed(gpt2: PreTrainedModel) -> None:
    push = steered(gpt2, stepsize=0.3, window_length=2)
    batch = push.start(ids_of(PROMPTS))
    old = [layer.values.clone() for layer in batch.pushed.layers]
    with torch.no_grad():
        plain, _ = push.read(batch.plain, batch.mask, batch.last)
    push.push(batch, plain)
    for before, layer in zip(old, batch.pushed.layers, strict=True):
        moved = (layer.values != before).any(-1).any(1)  # (B, T)
        assert moved[2].tolist() == [False] * (moved.shape[1] - 2) + [True] * 2
        assert moved[1].sum() == 1  # "You" is two tokens, of which one is cached: its padding is not pushed


def test_steps_are_equally_long_at_gamma_one_and_the_gradient_itself_at_gamma_zero(gpt2: PreTrainedModel) -> None:
    gradients = [torch.full((2, 1, 3, 1), value) for value in (3.0, 4.0, 0.0, 0.0)]  # two layers: keys, values
    unit = steered(gpt2, gamma=1.0).normalised(gradients)
    norm = math.sqrt(3 * (9 + 16))
    torch.testing.assert_close(unit[0], gradients[0] / norm)
    torch.testing.assert_close(unit[1], gradients[1] / norm)
    assert not unit[2].any()  # no gradient, no step
    torch.testing.assert_close(steered(gpt2, gamma=0.0).normalised(gradients), gradients)


# What the attribute model sees


@pytest.mark.parametrize("add_bos", [False, True])
def test_the_mean_is_the_one_the_probe_was_trained_on(gpt2: PreTrainedModel, add_bos: bool) -> None:
    tokenizer = tiny_tokenizer(add_bos=add_bos)
    ids = [list(row) for row in tokenizer(PROMPTS)["input_ids"]]
    batch = Perturbation(gpt2, tokenizer, probe(), PPLMSettings()).start(ids)
    # The last token is still to be read, so the mean so far is that of the text without it.
    texts = [tokenizer.decode(row[:-1], skip_special_tokens=True) for row in ids]
    np.testing.assert_allclose(
        (batch.total / batch.count).numpy(), pooled_states(gpt2, tokenizer, texts, [-1])[1], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_an_expected_token_that_is_certain_is_that_token(family: str) -> None:
    model = tiny_model(family)
    look = steered(model, horizon_length=2)
    batch = look.start(ids_of(PROMPTS))
    certain = torch.full((4, 300), -1e4)
    certain[range(4), batch.last] = 0.0
    with torch.no_grad():
        ahead = look.expect(copied(batch.plain), batch.mask, certain, project=True)
        read = look.read(batch.plain, batch.mask, batch.last)
    torch.testing.assert_close(ahead, read, rtol=1e-4, atol=1e-4)


# Batches


@pytest.mark.parametrize(
    "family", ["gpt2", *(pytest.param(f, marks=pytest.mark.full) for f in ("llama", "gemma3", "qwen2", "gpt_neox"))]
)
def test_a_sequence_does_not_depend_on_its_batch(family: str) -> None:
    # In double precision: rounding is amplified by the push, and random models are chaotic.
    model, tokenizer = tiny_model(family).double(), tiny_tokenizer(add_bos=family == "gemma3")
    settings = PPLMSettings(stepsize=0.3, gamma=1.0, horizon_length=2, top_k=5)

    def texts(prompts: list[str], **others: int) -> list[list[Continuation]]:
        asked = {"samples": 2, "max_new_tokens": 12, "seed": 3} | others
        return pplm_generate(model, tokenizer, prompts, probe(), settings, **asked)

    whole = texts(PROMPTS)
    assert texts(PROMPTS, batch_size=3) == whole
    assert texts(PROMPTS[:1]) == whole[:1]
    assert texts(PROMPTS, seed=4) != whole


def test_a_sequence_that_ends_leaves_the_others_alone() -> None:
    model, tokenizer = tiny_model("gpt2").double(), tiny_tokenizer()
    free = pplm_generate(model, tokenizer, PROMPTS, probe(), GREEDY, max_new_tokens=10)
    end = free[0][0].token_ids[3]
    model.generation_config.eos_token_id = end
    stopped = pplm_generate(model, tokenizer, PROMPTS, probe(), GREEDY, max_new_tokens=10)
    for one, other in zip(free, stopped, strict=True):
        ids = one[0].token_ids
        assert other[0].token_ids == (ids[: ids.index(end) + 1] if end in ids else ids)
    assert len({len(row[0].token_ids) for row in stopped}) > 1


def test_prompts_of_one_token_and_of_none(gpt2: PreTrainedModel) -> None:
    for add_bos in (False, True):
        texts = pplm_source(gpt2, tiny_tokenizer(add_bos=add_bos), probe(), GREEDY, max_new_tokens=5)(["", "a"], 0)
        assert [len(row) for row in texts] == [1, 1]
    assert pplm_source(gpt2, tiny_tokenizer(), probe(), GREEDY)([], 0) == []


# The model


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("llama").train()
    untrained = model.model.layers[0].mlp.up_proj.weight
    untrained.requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    pplm_generate(model, tiny_tokenizer(), PROMPTS, probe(), GREEDY, max_new_tokens=3)
    with pytest.raises(UserError, match="cannot"):
        with frozen(model):
            raise UserError("cannot")
    assert model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert parameter.requires_grad == (parameter is not untrained)


def test_what_cannot_work(gpt2: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(UserError, match="stepsize=-1.*negative"):
        PPLMSettings(stepsize=-1)
    with pytest.raises(UserError, match="gm_scale=1.5.*the first must be within 0 and 1"):
        PPLMSettings(gm_scale=1.5)
    with pytest.raises(UserError, match="4 equal texts"):
        pplm_generate(gpt2, tokenizer, PROMPTS, probe(), GREEDY, samples=4)
    with pytest.raises(UserError, match="max_new_tokens=0"):
        pplm_generate(gpt2, tokenizer, PROMPTS, probe(), max_new_tokens=0)
    with pytest.raises(UserError, match="states of 16 numbers, those of the model have 32"):
        pplm_generate(gpt2, tokenizer, PROMPTS, probe(width=16))
    with pytest.raises(UserError, match="prompt 0 has .* positions"):
        pplm_generate(gpt2, tokenizer, ["word " * 100], probe())
    config = AutoConfig.for_model("mamba", vocab_size=300, hidden_size=32, state_size=4, num_hidden_layers=2)
    with pytest.raises(UserError, match="MambaForCausalLM remembers in another way"):
        pplm_generate(AutoModelForCausalLM.from_config(config), tokenizer, PROMPTS, probe())


def test_the_papers_settings() -> None:
    paper = PPLMSettings.paper()
    assert (paper.stepsize, paper.num_iterations, paper.gamma) == (0.02, 3, 1.5)
    assert (paper.gm_scale, paper.kl_scale, paper.top_k) == (0.9, 0.01, 10)


# The probe

TEXTS = [f"{word} {number}" for number in range(12) for word in ("silly fool", "fine weather")] + ["fine town", " "]
LABELS = [1, 0] * 12 + [0, 1]


def test_the_probe_is_balanced_says_how_good_it_is_and_is_kept(
    gpt2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = toxicity_probe(gpt2, tiny_tokenizer(), TEXTS, LABELS)
    assert found.quality.n == 24
    assert found.quality.auc > 0.9
    states = pooled_states(gpt2, tiny_tokenizer(), ["silly fool", "fine weather"], [-1])[1]
    assert found.logits(states)[0] > 0 > found.logits(states)[1]
    smaller = toxicity_probe(gpt2, tiny_tokenizer(), TEXTS, LABELS, max_texts=14)
    assert smaller.quality.n == 14
    monkeypatch.setattr(attribute, "pooled_states", None)  # not to be called again
    again = toxicity_probe(gpt2, tiny_tokenizer(), TEXTS, LABELS)
    np.testing.assert_array_equal(again.weight, found.weight)
    assert (again.bias, again.quality) == (found.bias, found.quality)
    for other in ({"model": tiny_model("gpt2", seed=1)}, {"seed": 1}, {"texts": ["x", *TEXTS[1:]]}, {"max_tokens": 3}):
        arguments = {"model": gpt2, "processing_class": tiny_tokenizer(), "texts": TEXTS, "labels": LABELS} | other
        with pytest.raises(TypeError):
            toxicity_probe(**arguments)


def test_labels_that_make_no_probe(gpt2: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="2 texts but 1 labels"):
        toxicity_probe(gpt2, tiny_tokenizer(), ["a", "b"], [1])
    with pytest.raises(UserError, match="label 2 is neither"):
        toxicity_probe(gpt2, tiny_tokenizer(), ["a", "b"], [1, 2])
    with pytest.raises(UserError, match="12 toxic and 0 benign"):
        toxicity_probe(gpt2, tiny_tokenizer(), ["a"] * 12, [1] * 12)
