"""Are generation, likelihood and perplexity right, independent of batching, and without side effects?"""

import numpy as np
import pytest
import torch
from tiny import BOS_ID, EOS_ID, FAMILIES, VOCAB_SIZE, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from efface.errors import RunError, UserError
from efface.evaluation import batching
from efface.evaluation.generation import continuation_nll, generate, generate_ids
from efface.evaluation.perplexity import Perplexity, perplexity

PROMPTS = ["The weather in the old town", "You", "She went to the market and bought bread, apples and", "He is an"]
TEXT = ["The history of the town is the history of its river and its people.", "They said that nothing is better."] * 3


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedModel:
    return tiny_model("gpt2")


# Generation


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_does_not_depend_on_the_batch(family: str) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer(add_bos=family in ("llama", "gemma", "gemma2", "gemma3"))
    batched = generate_ids(model, tokenizer, PROMPTS, max_new_tokens=12)
    assert batched == [generate_ids(model, tokenizer, [prompt], max_new_tokens=12)[0] for prompt in PROMPTS]
    # And it is what step by step full forwards without padding or cache give.
    ids = tokenizer(PROMPTS[1])["input_ids"]
    start = len(ids)
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == EOS_ID:
                break
    assert batched[1][0].token_ids == ids[start:]
    assert batched[1][0].text == tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_sampling_is_reproducible_and_leaves_the_global_state(gpt2: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    before = torch.get_rng_state()
    first = generate(gpt2, tokenizer, PROMPTS, samples=3, batch_size=5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert generate(gpt2, tokenizer, PROMPTS, samples=3, batch_size=5, seed=1) == first
    assert generate(gpt2, tokenizer, PROMPTS, samples=3, batch_size=5, seed=2) != first
    assert [len(row) for row in first] == [3] * 4
    assert len({text for row in first for text in row}) > 10
    # Batches of equal prompts do not repeat each other.
    assert len(set(sum(generate(gpt2, tokenizer, ["You"] * 4, do_sample=True, batch_size=1), []))) == 4


def test_generation_ignores_the_checkpoints_own_settings(gpt2: PreTrainedModel) -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    model.generation_config.update(
        repetition_penalty=5.0, do_sample=True, top_k=1, temperature=0.1, min_new_tokens=3, no_repeat_ngram_size=1
    )
    assert generate(model, tokenizer, PROMPTS) == generate(gpt2, tokenizer, PROMPTS)
    assert generate(model, tokenizer, PROMPTS, samples=2) == generate(gpt2, tokenizer, PROMPTS, samples=2)


def test_generation_is_silent(gpt2: PreTrainedModel, capfd: pytest.CaptureFixture[str]) -> None:
    for samples in (1, 2):
        generate(gpt2, tiny_tokenizer(), ["word " * 100], samples=samples, max_prompt_tokens=20)
    assert capfd.readouterr() == ("", "")


def test_top_k_and_temperature_reach_the_sampler(gpt2: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    greedy = generate(gpt2, tokenizer, PROMPTS)
    assert generate(gpt2, tokenizer, PROMPTS, do_sample=True, top_k=1) == greedy
    assert generate(gpt2, tokenizer, PROMPTS, do_sample=True, top_p=1e-6) == greedy
    assert generate(gpt2, tokenizer, PROMPTS, do_sample=True, temperature=1e-4) == greedy


def test_model_and_tokenizer_are_left_as_they_were() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    model.train()
    model.model.layers[0].eval()  # a frozen block kept in evaluation mode
    modes = {name: module.training for name, module in model.named_modules()}
    tokenizer.padding_side = "right"
    state = (tokenizer.padding_side, tokenizer.pad_token, tokenizer.backend_tokenizer.to_str())
    config = model.generation_config.to_dict()
    generate(model, tokenizer, PROMPTS, max_new_tokens=3)
    continuation_nll(model, tokenizer, PROMPTS, [" a b"] * 4)
    perplexity(model, tokenizer, TEXT)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert (tokenizer.padding_side, tokenizer.pad_token, tokenizer.backend_tokenizer.to_str()) == state
    assert model.generation_config.to_dict() == config
    with pytest.raises(UserError, match="prompt 0"):
        generate(model, tokenizer, ["word " * 200])
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_generation_stops_at_the_end_token(gpt2: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    first = generate_ids(gpt2, tokenizer, PROMPTS, max_new_tokens=8)
    end = first[0][0].token_ids[3]
    model = tiny_model("gpt2")
    model.generation_config.eos_token_id = [EOS_ID, end]
    stopped = generate_ids(model, tokenizer, PROMPTS, max_new_tokens=8)
    cut = first[0][0].token_ids
    assert stopped[0][0].token_ids == cut[: cut.index(end) + 1]
    for one, other in zip(first, stopped, strict=True):
        assert one[0].token_ids[: len(other[0].token_ids)] == other[0].token_ids


def test_prompt_tokens(gpt2: PreTrainedModel) -> None:
    with_bos, without = tiny_tokenizer(add_bos=True), tiny_tokenizer()
    # An empty prompt starts from BOS whether or not the tokenizer adds one.
    assert generate(gpt2, with_bos, [""]) == generate(gpt2, without, [""])
    assert generate(gpt2, without, [""]) == generate(gpt2, without, ["<bos>"])
    # Truncation keeps the end of the prompt, and BOS before it.
    ids = without(PROMPTS[0])["input_ids"]
    end = [without.decode(ids[-3:])]
    assert generate(gpt2, without, PROMPTS[:1], max_prompt_tokens=3) == generate(gpt2, without, end)
    assert generate(gpt2, with_bos, PROMPTS[:1], max_prompt_tokens=4) == generate(gpt2, with_bos, end)
    assert len(generate(gpt2, without, ["word " * 200], max_prompt_tokens=100)[0]) == 1
    assert generate(gpt2, without, []) == []


def test_generation_refuses_what_cannot_work(gpt2: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(UserError, match="samples=2 with do_sample=False gives 2 equal texts"):
        generate(gpt2, tokenizer, PROMPTS, samples=2, do_sample=False)
    for settings_ in ({"samples": 0}, {"max_new_tokens": 0}, {"batch_size": 0}, {"seed": -1}):
        with pytest.raises(UserError, match="must be at least 1, the seed at least 0"):
            generate(gpt2, tokenizer, PROMPTS, **settings_)
    with pytest.raises(UserError, match=r"prompt 1 has \d+ tokens, with 20 new ones more than the model's 128"):
        generate(gpt2, tokenizer, ["a", "word " * 110])
    with pytest.raises(UserError, match="prompt 0: the prompt has no tokens and the tokenizer no BOS or EOS"):
        generate(gpt2, tiny_tokenizer(bos_token=None, eos_token=None), [""])


# Likelihood


def _direct(model: PreTrainedModel, ids: list[int], count: int) -> float:
    """-log p of the last `count` tokens by one forward without padding."""
    with torch.no_grad():
        log_probabilities = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(log_probabilities[t - 1, ids[t]].item() for t in range(len(ids) - count, len(ids)))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gemma3", "opt", "phi"])
def test_continuation_nll(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer(add_bos=family.startswith("gemma"))
    continuations = [" was cold.", " are silly", "", " engineer who thinks that the others are wrong."]
    found = continuation_nll(model, tokenizer, PROMPTS, continuations)
    for prompt, continuation, (loss, count) in zip(PROMPTS, continuations, found, strict=True):
        ends = tokenizer(continuation, add_special_tokens=False)["input_ids"]
        assert count == len(ends)
        assert loss == pytest.approx(_direct(model, tokenizer(prompt)["input_ids"] + ends, count), abs=1e-3)
    assert found[2] == (0.0, 0)
    alone = continuation_nll(model, tokenizer, PROMPTS, continuations, batch_size=1)
    np.testing.assert_allclose(found, alone, atol=1e-3)
    # Split by memory instead of by batch_size.
    monkeypatch.setattr(batching, "MAX_LOGITS", 10 * VOCAB_SIZE)
    np.testing.assert_allclose(found, continuation_nll(model, tokenizer, PROMPTS, continuations), atol=1e-3)


def test_continuation_nll_refuses(gpt2: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(UserError, match="1 prompts but 2 continuations"):
        continuation_nll(gpt2, tokenizer, ["a"], ["b", "c"])
    with pytest.raises(UserError, match="prompt 0 and its continuation are .* but the model has 128 positions"):
        continuation_nll(gpt2, tokenizer, ["a"], ["word " * 200])


def test_a_model_that_is_not_finite() -> None:
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.get_parameter("transformer.h.0.mlp.c_fc.weight")[0, 0] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        perplexity(model, tiny_tokenizer(), TEXT)


# Perplexity


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize(("window", "stride"), [(1000, None), (20, None), (20, 7), (20, 1)])
def test_perplexity_counts_every_token_once(
    gpt2: PreTrainedModel, add_bos: bool, window: int, stride: int | None
) -> None:
    tokenizer = tiny_tokenizer(add_bos=add_bos)
    stream = tokenizer("\n\n".join(TEXT), add_special_tokens=False)["input_ids"][:61]
    prefix = [BOS_ID] if add_bos else []
    room = min(window, 128) - len(prefix)
    step = stride or room
    expected = 0.0
    for t in range(1, len(stream)):
        start = next(k for k in range(0, len(stream), step) if k + room >= t)  # the first window that sees t
        expected += _direct(gpt2, prefix + stream[start : t + 1], 1)
    found = perplexity(gpt2, tokenizer, TEXT, max_tokens=60, window=window, stride=stride)
    assert found.tokens == 60
    assert found.nll_sum == pytest.approx(expected, abs=2e-3)
    assert found.value == pytest.approx(np.exp(expected / 60), rel=1e-4)
    one_by_one = perplexity(gpt2, tokenizer, TEXT, max_tokens=60, window=window, stride=stride, batch_size=1)
    assert one_by_one.nll_sum == pytest.approx(found.nll_sum, abs=1e-3)


def test_perplexity_uses_every_position_and_all_tokens(gpt2: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    stream = tokenizer("\n\n".join(TEXT))["input_ids"]
    assert len(stream) > 130
    assert perplexity(gpt2, tokenizer, TEXT).tokens == len(stream) - 1
    found = perplexity(gpt2, tokenizer, TEXT, max_tokens=128)
    assert (found.window, found.stride, found.tokens) == (128, 128, 128)


def test_perplexity_of_a_broken_model_is_a_number() -> None:
    assert np.isfinite(Perplexity(tokens=1, nll_sum=1e6, window=1, stride=1).value)


def test_perplexity_refuses(gpt2: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    for texts in ([], [""], ["a"]):
        with pytest.raises(UserError, match=r"the text has \d token\(s\)"):
            perplexity(gpt2, tokenizer, texts)
    for settings_ in ({"window": 0}, {"window": 10, "stride": 11}, {"stride": 0}, {"batch_size": 0}):
        with pytest.raises(UserError, match="all must be at least 1, and the stride at most"):
            perplexity(gpt2, tokenizer, TEXT, **settings_)
    with pytest.raises(UserError, match="at most 0"):
        perplexity(gpt2, tiny_tokenizer(add_bos=True), TEXT, window=1)
