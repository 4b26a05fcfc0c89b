"""Are generation, likelihood and perplexity right, independent of batching, and without side effects?

Of: generation/decoder.py, generation/likelihood.py, generation/prompts.py, generation/warp.py
"""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from grids import few
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftConfig, PromptTuningConfig, get_peft_model
from scipy import stats
from tiny import BOS_ID, EOS_ID, FAMILIES, PAD_ID, VOCAB_SIZE, tiny_model, tiny_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from efface.errors import RunError, UserError
from efface.evaluation.perplexity import Perplexity, perplexity
from efface.generation import generate as generation
from efface.generation import likelihood, warp
from efface.generation.decoding import Decoding
from efface.generation.generate import generate, generate_ids
from efface.generation.likelihood import continuation_nll
from efface.generation.prompts import encode_prompts
from efface.generation.warp import GREEDY, Warp, draw_uniforms

PROMPTS = ["The weather in the old town", "You", "She went to the market and bought bread, apples and", "He is an"]
TEXT = ["The history of the town is the history of its river and its people.", "They said that nothing is better."] * 3


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedModel:
    return tiny_model("gpt2")


@pytest.fixture(scope="module")
def mamba() -> PreTrainedModel:
    """A model whose cache is not made of keys and values: its own `generate` decodes."""
    config = AutoConfig.for_model(
        "mamba", vocab_size=VOCAB_SIZE, hidden_size=32, state_size=4, num_hidden_layers=2,
        pad_token_id=PAD_ID, bos_token_id=BOS_ID, eos_token_id=EOS_ID,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def spied(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """A list that gets the rows, the new and all tokens (with padding) of a row, of every forward."""
    calls: list[tuple[int, int, int]] = []
    forward = model.forward

    def spy(input_ids: torch.Tensor, attention_mask: torch.Tensor, **inputs: Any) -> Any:
        assert len(input_ids) == len(attention_mask)
        calls.append((*input_ids.shape, attention_mask.shape[1]))
        output = forward(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        assert output.logits.shape[1] == 1  # only the last position is projected
        return output

    spy.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "forward", spy)
    return calls


# Generation


@pytest.mark.parametrize("family", few(FAMILIES))
def test_greedy_generation_does_not_depend_on_the_batch(family: str) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer(add_bos=family in ("llama", "gemma", "gemma2", "gemma3"))
    batched = generate_ids(model, tokenizer, PROMPTS, Decoding(max_new_tokens=12))
    assert batched == [generate_ids(model, tokenizer, [prompt], Decoding(max_new_tokens=12))[0] for prompt in PROMPTS]
    for prompt, row in zip(PROMPTS, batched, strict=True):
        alone = torch.tensor([tokenizer(prompt)["input_ids"]])
        theirs = model.generate(alone, attention_mask=torch.ones_like(alone), max_new_tokens=12, do_sample=False)
        assert row[0].token_ids == theirs[0, alone.shape[1] :].tolist()
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


@pytest.mark.parametrize("family", few(FAMILIES))
def test_sampling_does_not_depend_on_the_batches(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer(add_bos=family in ("llama", "gemma", "gemma2", "gemma3"))
    monkeypatch.setattr(model, "generate", None)  # all of these have the cache that our own loop needs
    asked = Decoding(samples=3, max_new_tokens=10, seed=5)
    together = generate_ids(model, tokenizer, PROMPTS, asked)
    assert generate_ids(model, tokenizer, PROMPTS, asked, batch_size=1) == together
    assert generate_ids(model, tokenizer, PROMPTS, asked, max_tokens_at_once=100) == together  # batches cut prompts
    # The other prompts do not matter either, only how many come before.
    others = ["A", PROMPTS[1], "A longer prompt, but not one of the others that stood here before", "B"]
    assert generate_ids(model, tokenizer, others, asked)[1] == together[1]


def test_sampling_is_reproducible(gpt2: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    first = generate(gpt2, tokenizer, PROMPTS, samples=3, seed=1)
    assert generate(gpt2, tokenizer, PROMPTS, samples=3, seed=1) == first
    assert generate(gpt2, tokenizer, PROMPTS, samples=3, seed=2) != first
    assert [len(row) for row in first] == [3] * 4
    assert len({text for row in first for text in row}) == 12
    # More samples, or more tokens, are those and further ones.
    assert [row[:3] for row in generate(gpt2, tokenizer, PROMPTS, samples=4, seed=1)] == first
    longer = generate_ids(gpt2, tokenizer, PROMPTS, Decoding(samples=3, seed=1, max_new_tokens=30))
    shorter = generate_ids(gpt2, tokenizer, PROMPTS, Decoding(samples=3, seed=1))
    assert [[each.token_ids[:20] for each in row] for row in longer] == [
        [each.token_ids for each in row] for row in shorter
    ]
    # Equal prompts do not repeat each other.
    assert len(set(sum(generate(gpt2, tokenizer, ["You"] * 4, do_sample=True), []))) == 4


@pytest.mark.parametrize("kind", ["gpt2", "mamba"])
def test_the_global_random_state_is_neither_used_nor_changed(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    first = generate(model, tiny_tokenizer(), PROMPTS, samples=2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # type: ignore[index]
    torch.rand(7)
    assert generate(model, tiny_tokenizer(), PROMPTS, samples=2) == first


def test_a_model_without_keys_and_values(mamba: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    greedy = generate_ids(mamba, tokenizer, PROMPTS, Decoding(max_new_tokens=8))
    assert greedy == [generate_ids(mamba, tokenizer, [prompt], Decoding(max_new_tokens=8))[0] for prompt in PROMPTS]
    sampled = generate_ids(mamba, tokenizer, PROMPTS, Decoding(samples=3, max_new_tokens=8))
    assert sampled == generate_ids(mamba, tokenizer, PROMPTS, Decoding(samples=3, max_new_tokens=8), batch_size=2)
    assert len({tuple(each.token_ids) for row in sampled for each in row}) == 12
    mamba.generation_config.update(repetition_penalty=5.0, do_sample=True, top_k=1, no_repeat_ngram_size=1)
    assert generate_ids(mamba, tokenizer, PROMPTS, Decoding(samples=3, max_new_tokens=8)) == sampled


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
    ids=["lora", "prompt-tuning"],
)
@pytest.mark.filterwarnings("ignore:Position ids are not supported")
def test_adapters(config: PeftConfig) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(tiny_model("llama"), config).eval()
    tokenizer = tiny_tokenizer()
    found = generate_ids(model, tokenizer, PROMPTS, Decoding(max_new_tokens=8))
    for prompt, row in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        theirs = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        assert row[0].token_ids == theirs[0, ids.shape[1] :].tolist()
    assert found != generate_ids(tiny_model("llama"), tokenizer, PROMPTS, Decoding(max_new_tokens=8))


# What goes through the model


def test_a_prompt_goes_through_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    calls = spied(model, monkeypatch)
    generate(model, tokenizer, PROMPTS, samples=6, max_new_tokens=4)
    longest = max(len(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS)
    assert calls[0] == (4, longest, longest)
    assert calls[1:] == [(24, 1, longest + step) for step in (1, 2, 3)]


@pytest.mark.parametrize("budget", [60, 100])
def test_the_budget_bounds_what_the_model_holds(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer(eos_token=None)
    model.generation_config.eos_token_id = None  # no sequence ends early
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    calls = spied(model, monkeypatch)
    generate(model, tokenizer, PROMPTS, samples=5, max_new_tokens=10, max_tokens_at_once=budget)
    assert max(rows * total for rows, _, total in calls) <= budget
    # It is used as far as it goes: the longest prompt comes first.
    assert calls[1][0] == min(budget // (max(lengths) + 10), 20)
    # Padding is small: a prompt is not read in longer rows than the longest prompt of its own batch.
    assert calls[-1][2] == min(lengths) + 9
    calls.clear()
    generate(model, tokenizer, PROMPTS, samples=5, max_new_tokens=10, batch_size=3)
    assert max(rows for rows, _, _ in calls) == 3
    calls.clear()
    generate(model, tokenizer, PROMPTS, samples=5, max_new_tokens=10, max_tokens_at_once=1)  # one always goes
    assert {rows for rows, _, _ in calls} == {1}
    calls.clear()
    monkeypatch.setattr(generation, "MAX_LOGITS", 4 * VOCAB_SIZE)
    generate(model, tokenizer, PROMPTS, samples=5, max_new_tokens=10, max_tokens_at_once=None)
    assert max(rows for rows, _, _ in calls) == 4


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_sequences_that_have_ended_leave_the_batch(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    asked = Decoding(samples=8, max_new_tokens=15, temperature=2.0)
    free = generate_ids(model, tokenizer, PROMPTS, asked)
    ends = set(range(3, VOCAB_SIZE, 7))
    model.generation_config.eos_token_id = sorted(ends)
    calls = spied(model, monkeypatch)
    found = generate_ids(model, tokenizer, PROMPTS, asked)
    for one, other in zip(sum(free, []), sum(found, []), strict=True):
        stop = next((i + 1 for i, token in enumerate(one.token_ids) if token in ends), len(one.token_ids))
        assert other.token_ids == one.token_ids[:stop]
    rows = [rows for rows, _, _ in calls[1:]]
    assert rows == sorted(rows, reverse=True)
    assert len(set(rows)) > 3
    assert rows[-1] < 16  # of 32


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
    first = generate_ids(gpt2, tokenizer, PROMPTS, Decoding(max_new_tokens=8))
    end = first[0][0].token_ids[3]
    model = tiny_model("gpt2")
    model.generation_config.eos_token_id = [EOS_ID, end]
    stopped = generate_ids(model, tokenizer, PROMPTS, Decoding(max_new_tokens=8))
    cut = first[0][0].token_ids
    assert stopped[0][0].token_ids == cut[: cut.index(end) + 1]
    for one, other in zip(first, stopped, strict=True):
        assert one[0].token_ids[: len(other[0].token_ids)] == other[0].token_ids


def test_the_tokenizers_own_end_counts_too(gpt2: PreTrainedModel) -> None:
    free = generate_ids(gpt2, tiny_tokenizer(), PROMPTS, Decoding(max_new_tokens=8))[0][0].token_ids
    end = str(tiny_tokenizer().convert_ids_to_tokens(free[2]))
    found = generate_ids(gpt2, tiny_tokenizer(eos_token=end), PROMPTS, Decoding(max_new_tokens=8))[0][0].token_ids
    assert found == free[: free.index(free[2]) + 1]


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
    # Or its beginning.
    first: dict[str, Any] = {"max_prompt_tokens": 4, "truncation": "first"}
    assert encode_prompts(gpt2, without, PROMPTS[:2], Decoding(**first)) == [ids[:4], without(PROMPTS[1])["input_ids"]]
    assert encode_prompts(gpt2, with_bos, PROMPTS[:1], Decoding(**first)) == [[BOS_ID, *ids[:3]]]
    assert generate(gpt2, without, PROMPTS[:1], **first) == generate(gpt2, without, [without.decode(ids[:4])])
    assert len(generate(gpt2, without, ["word " * 200], max_prompt_tokens=100)[0]) == 1
    assert generate(gpt2, without, []) == []


def test_generation_refuses_what_cannot_work(gpt2: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(UserError, match="samples=2 with do_sample=False gives 2 equal texts"):
        generate(gpt2, tokenizer, PROMPTS, samples=2, do_sample=False)
    for settings_ in ({"samples": 0}, {"max_new_tokens": 0}, {"batch_size": 0}, {"seed": -1}):
        with pytest.raises(UserError, match="must be at least 1, the seed at least 0"):
            generate(gpt2, tokenizer, PROMPTS, **settings_)
    for settings_ in ({"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}):
        with pytest.raises(UserError, match="the first must be above 0, the second in"):
            generate(gpt2, tokenizer, PROMPTS, do_sample=True, **settings_)
    with pytest.raises(UserError, match="max_tokens_at_once=0: it must be at least 1, or None"):
        generate(gpt2, tokenizer, PROMPTS, max_tokens_at_once=0)
    with pytest.raises(UserError, match="max_prompt_tokens=0: it must be at least 1, or None"):
        generate(gpt2, tokenizer, PROMPTS, max_prompt_tokens=0)
    with pytest.raises(UserError, match="truncation='middle': it is which end of a long prompt stays"):
        generate(gpt2, tokenizer, PROMPTS, truncation="middle")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"prompt 1 has \d+ tokens, with 20 new ones more than the model's 128"):
        generate(gpt2, tokenizer, ["a", "word " * 110])
    with pytest.raises(UserError, match="prompt 0: the prompt has no tokens and the tokenizer no BOS or EOS"):
        generate(gpt2, tiny_tokenizer(bos_token=None, eos_token=None), [""])


def test_a_prompt_as_the_users_message(gpt2: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer(add_bos=True)
    text = "<|user|>\nYou<eos>\n<|assistant|>\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert encode_prompts(gpt2, tokenizer, ["You"], Decoding(chat=True)) == [ids]  # the template wants no BOS
    assert generate(gpt2, tokenizer, ["You"], chat=True) == generate(gpt2, tiny_tokenizer(), [text])
    nll = continuation_nll(gpt2, tokenizer, ["You"], [" silly"], Decoding(chat=True))
    assert nll == continuation_nll(gpt2, tiny_tokenizer(), [text], [" silly"])
    # It is the message that is cut, not what stands around it.
    own = tokenizer(PROMPTS[0], add_special_tokens=False)["input_ids"]
    for truncation, kept in (("first", own[:4]), ("last", own[-4:])):
        cut = Decoding(chat=True, max_prompt_tokens=4, truncation=truncation)  # type: ignore[arg-type]
        [found] = encode_prompts(gpt2, tokenizer, PROMPTS[:1], cut)
        assert tokenizer.decode(found) == text.replace("You", tokenizer.decode(kept))
    # A template that writes BOS itself gets no second one.
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    assert encode_prompts(gpt2, tokenizer, ["You"], Decoding(chat=True)) == [[BOS_ID, *ids]]
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"messages \(chat=True\), but the tokenizer has no chat template"):
        generate(gpt2, tokenizer, ["You"], chat=True)


# The draws


def _nucleus(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """(V,) probabilities after transformers' own processors."""
    scores = TemperatureLogitsWarper(temperature)(None, logits[None])  # type: ignore[arg-type]
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)  # type: ignore[arg-type]
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(None, scores)  # type: ignore[arg-type]
    return scores[0].double().softmax(-1).numpy()


@settings(max_examples=25, deadline=None)
@given(
    vocabulary=st.sampled_from([3, 300, 600, 20_000]),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 5, 1000, 10**6]),
    top_p=st.sampled_from([0.2, 0.9, 0.97, 1.0]),
    seed=st.integers(0, 1000),
)
def test_equally_spaced_draws_give_the_distribution_of_transformers(
    vocabulary: int, temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    """Inverting a distribution function on a grid of n points counts every token n times its probability, +- 1."""
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)) * 2
    n = 400
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    tokens = Warp(temperature, top_k, top_p).choose(logits.expand(n, -1), grid)
    expected = n * _nucleus(logits, temperature, top_k, top_p)
    assert np.abs(np.bincount(tokens, minlength=vocabulary) - expected).max() <= 1.01
    assert (logits[tokens].diff() <= 0).all()  # a small number gives a likely token


def test_first_tokens_follow_the_nucleus(gpt2: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer(PROMPTS[0])["input_ids"]
    with torch.no_grad():
        expected = _nucleus(gpt2(torch.tensor([ids])).logits[0, -1], 1.0, 0, 0.6)
    n = 3000
    rows = generate_ids(gpt2, tokenizer, ["You", PROMPTS[0]], Decoding(samples=n, max_new_tokens=1, top_p=0.6))[1]
    counts = np.bincount([row.token_ids[0] for row in rows], minlength=VOCAB_SIZE)
    inside = expected > 0
    assert 5 < inside.sum() < 100
    assert counts[~inside].sum() == 0
    assert stats.chisquare(counts[inside], n * expected[inside]).pvalue > 0.01


def test_uniforms() -> None:
    found = draw_uniforms(3, [(0, 0), (0, 1), (1, 0), (7, 2)], 50)
    assert found.shape == (4, 50) and found.min() >= 0 and found.max() < 1
    assert len(found.unique()) == 200
    # Of the place alone: not of the other places, of their order or of how many steps there are.
    assert torch.equal(draw_uniforms(3, [(7, 2), (0, 1)], 20), found[[3, 1], :20])
    assert not torch.isin(draw_uniforms(4, [(0, 0)], 50), found).any()
    many = draw_uniforms(0, [(prompt, sample) for prompt in range(40) for sample in range(25)], 20)
    for values in (many[:, 0], many[0], many[::25, 3], many.ravel()):
        assert stats.kstest(values, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(many[:-1].ravel(), many[1:].ravel())[0, 1]) < 0.03
    draw_uniforms(2**200, [(0, 0)], 1)


def test_a_draw_does_not_depend_on_the_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.1, 4.0, 1.0, 0.5, 2.0])[:, None]  # the nucleus is nearly all of the vocabulary, or little
    logits = torch.randn(5, 20_000, generator=generator) * scale
    draws = torch.rand(5, generator=generator, dtype=torch.float64)
    for each in (Warp(top_p=0.9), Warp(), Warp(top_k=7), GREEDY):
        alone = torch.cat([each.choose(logits[i : i + 1], draws[i : i + 1]) for i in range(5)])
        assert torch.equal(each.choose(logits, draws), alone)
        with monkeypatch.context() as patched:
            patched.setattr(warp, "MAX_WORKED", 45_000)
            assert torch.equal(each.choose(logits, draws), alone)


def test_greedy_takes_the_first_of_equals() -> None:
    assert GREEDY.choose(torch.tensor([[0.0, 2.0, 1.0, 2.0]]), torch.zeros(1)).tolist() == [1]


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
    monkeypatch.setattr(likelihood, "MAX_LOGITS", 10 * VOCAB_SIZE)
    np.testing.assert_allclose(found, continuation_nll(model, tokenizer, PROMPTS, continuations), atol=1e-3)


def test_continuation_nll_refuses(gpt2: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(UserError, match="1 prompts but 2 continuations"):
        continuation_nll(gpt2, tokenizer, ["a"], ["b", "c"])


def test_a_model_that_is_not_finite() -> None:
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.get_parameter("transformer.h.0.mlp.c_fc.weight")[0, 0] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        perplexity(model, tiny_tokenizer(), TEXT)
    for asked in ({}, {"samples": 2}, {"samples": 2, "top_k": 5}):
        with pytest.raises(RunError, match="not finite .* no text can be generated"):
            generate(model, tiny_tokenizer(), PROMPTS, **asked)


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
    assert found.tokens * np.log(found.value) == pytest.approx(expected, abs=2e-3)
    assert found.value == pytest.approx(np.exp(expected / 60), rel=1e-4)
    one_by_one = perplexity(gpt2, tokenizer, TEXT, max_tokens=60, window=window, stride=stride, batch_size=1)
    assert one_by_one.value == pytest.approx(found.value, rel=1e-5)


def test_perplexity_uses_every_position_and_all_tokens(gpt2: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    stream = tokenizer("\n\n".join(TEXT))["input_ids"]
    assert len(stream) > 130
    assert perplexity(gpt2, tokenizer, TEXT).tokens == len(stream) - 1
    found = perplexity(gpt2, tokenizer, TEXT, max_tokens=128)
    assert (found.window, found.stride, found.tokens) == (128, 128, 128)


def test_perplexity_of_a_broken_model_is_a_number() -> None:
    assert np.isfinite(Perplexity.of(1e6, 1, window=1, stride=1).value)


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
