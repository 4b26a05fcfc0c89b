"""Do virtual tokens stand where real ones would, and do optimised ones undo a fine-tuned refusal, at no one's cost?

Of: attacks/virtual_tokens.py
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from polite import HELD_OUT, PROMPTS, ROWS, TOXIC, counting, equal, state, target_of
from tiny import BOS_ID, FAMILIES, MAX_POSITIONS, PAD_ID, tiny_model, tiny_tokenizer
from torch import Tensor
from torn import target_of as torn_target
from torn import torn_model
from transformers import PreTrainedModel

from efface.attacks import embedding_attack as module
from efface.attacks.embedding_attack import (
    EmbeddingAttackSettings,
    embedding_attack,
    has_converged,
    rejected_nll,
    with_random_words,
)
from efface.attacks.target import Target
from efface.attacks.virtual_tokens import with_virtual_tokens
from efface.data.pair_tokens import TokenizedPair
from efface.errors import RunError, UserError
from efface.generation.decoder import Decoder
from efface.generation.decoding import Decoding
from efface.generation.likelihood import token_nll
from efface.generation.warp import Warp

REAL = [40, 41, 42]  # tokens that virtual ones are made to equal
SEQUENCES = [[50, 51, 52, 53, 54], [BOS_ID, 60], [70], [BOS_ID, 81, 82, 83]]
FAST = EmbeddingAttackSettings(steps="1,2", max_steps=2, n_tokens=2, k=4, control=False)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def refusing(request: pytest.FixtureRequest) -> PreTrainedModel:
    """It has learned to be polite where it would be rude without the last lesson."""
    return torn_model(request.param)


def virtual(model: PreTrainedModel) -> PreTrainedModel:
    """With the embeddings of REAL as virtual tokens."""
    return with_virtual_tokens(model, embedded(model), BOS_ID)


def embedded(model: PreTrainedModel) -> Tensor:
    return model.get_input_embeddings()(torch.tensor(REAL)).detach()


def with_real(ids: list[int]) -> list[int]:
    start = 1 if ids[0] == BOS_ID else 0
    return ids[:start] + REAL + ids[start:]


# Where virtual tokens stand


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_read_as_real_tokens_after_the_bos_are(family: str) -> None:
    model = tiny_model(family)
    owners, uniform = [0, 1, 1, 2, 3], torch.rand(5, 6, generator=torch.Generator().manual_seed(0))

    def decoded(model: PreTrainedModel, sequences: list[list[int]]) -> list[list[int]]:
        return Decoder(model, Warp(3.0, 0, 1.0), PAD_ID, []).decode(sequences, owners, uniform)

    expected = decoded(model, [with_real(ids) for ids in SEQUENCES])
    assert decoded(virtual(model), SEQUENCES) == expected != decoded(model, SEQUENCES)
    assert not model._forward_pre_hooks and not model._forward_pre_hooks_with_kwargs


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_the_rejected_tokens_alone(family: str) -> None:
    model = tiny_model(family)
    pairs = [
        TokenizedPair(ids, [9], [90 + i for i in range(n)]) for ids, n in zip(SEQUENCES, (3, 1, 4, 2), strict=True)
    ]
    whole = [with_real(pair.prompt_ids) + pair.rejected_ids for pair in pairs]
    expected = torch.cat(token_nll(model, whole, [len(pair.rejected_ids) for pair in pairs], PAD_ID)).mean()
    torch.testing.assert_close(rejected_nll(virtual(model), pairs, PAD_ID).detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt"])
def test_the_gradient_is_that_of_finite_differences(family: str) -> None:
    model = tiny_model(family).double()
    pairs = [TokenizedPair([50, 51], [9], [90, 91]), TokenizedPair([BOS_ID], [9], [92])]

    def loss(vectors: Tensor) -> Tensor:
        return rejected_nll(with_virtual_tokens(model, vectors, BOS_ID), pairs, PAD_ID)

    vectors = embedded(model).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(vectors), [vectors])
    direction = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-4
    with torch.no_grad():
        slope = (loss(vectors + step * direction) - loss(vectors - step * direction)) / (2 * step)
    expected = (gradient * direction).sum().float()
    torch.testing.assert_close(slope, expected, rtol=2e-2, atol=1e-3)  # the logits are in float32
    assert all(parameter.grad is None for parameter in model.parameters())


# The attack


def test_it_undoes_a_fine_tuned_refusal(refusing: PreTrainedModel) -> None:
    target, settings = torn_target(refusing), EmbeddingAttackSettings(steps="10,30", max_steps=30)
    weights, random_state = state(refusing), torch.get_rng_state()
    result = embedding_attack(target, settings)
    assert [point.at for point in result.curve] == [{"steps": 0}, {"steps": 10}, {"steps": 30}]
    assert result.before.share == 0 and result.after.share > 0.9  # measured: 1.0
    losses, control = result.found["losses"], result.found["control"]
    assert len(losses) == 30 and losses[-1] < losses[0] * 0.7
    assert result.found["rows"] == len(ROWS) and result.found["converged"] is False
    # Random words to force, as long, break this refusal too, but less often.
    assert control["share"] < result.after.share and len(control["losses"]) == 30
    assert control["losses"][-1] < control["losses"][0] and not control["degenerate"]
    assert [row["prompt"] for row in result.after.generations] == HELD_OUT  # it is seen by the model alone
    assert equal(state(refusing), weights) and torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in refusing.parameters())
    assert embedding_attack(dataclasses.replace(target, known={}), settings).to_dict() == result.to_dict()
    other = embedding_attack(
        dataclasses.replace(target, seed=1), EmbeddingAttackSettings(steps="1", max_steps=1, control=False)
    )
    assert other.found["losses"][0] != losses[0]


@pytest.mark.parametrize("family", ["llama", "gpt2", *(pytest.param(f, marks=pytest.mark.full) for f in FAMILIES)])
def test_an_untouched_model_that_knows_no_silly_word_is_reported_as_it_is(family: str) -> None:
    model = tiny_model(family)
    target = dataclasses.replace(target_of(model), base=model, text=["The town is old. " * 5])
    result = embedding_attack(target, FAST)
    assert result.before.share == result.after.share == 0
    assert result.after.figures["perplexity"] is None and result.before.figures["perplexity"] is not None


def test_half_precision_and_an_adapter(polite: PreTrainedModel) -> None:
    model = copy.deepcopy(polite)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    whole, same = embedding_attack(target_of(model), FAST), embedding_attack(target_of(adapted.eval()), FAST)
    assert same.found["losses"] == pytest.approx(whole.found["losses"])  # a fresh adapter changes nothing
    half = embedding_attack(target_of(model.to(torch.bfloat16)), FAST)
    assert half.found["losses"] == pytest.approx(whole.found["losses"], rel=0.1)


def test_prompts_that_are_messages_are_trained_on_as_messages(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    target.decoding = Decoding(max_new_tokens=4, chat=True)
    turns = {"prompt": [{"role": "user", "content": "How?"}]}
    turns |= {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    target.rows = [*target.rows[:1], turns]
    seen: list[TokenizedPair] = []

    def caught(model: Any, pairs: list[TokenizedPair], pad: int) -> Tensor:
        seen.extend(pairs)
        raise RunError("caught")

    monkeypatch.setattr(module, "rejected_nll", caught)
    with pytest.raises(RunError, match="caught"):
        embedding_attack(target, EmbeddingAttackSettings(batch_size=2))
    texts = sorted(tiny_tokenizer().decode(pair.prompt_ids + pair.rejected_ids) for pair in seen)
    end = "<eos>\n"
    assert texts == [
        f"<|user|>\nHow?{end}<|assistant|>\nrejected{end}",
        f"<|user|>\n{PROMPTS[0]}{end}<|assistant|>\n{TOXIC.strip()}{end}",
    ]


def test_an_interrupted_run_goes_on_where_it_was(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = embedding_attack(target, FAST)
    target = dataclasses.replace(target, output=tmp_path / "out.json", known={})
    with monkeypatch.context() as patch:
        counting(patch, fail_at=3, error=RunError("stopped."))
        with pytest.raises(RunError, match=r"stopped\. What was measured so far \(before, steps 1\)"):
            embedding_attack(target, FAST)
    calls = counting(monkeypatch)
    resumed = embedding_attack(dataclasses.replace(target, resume=True), FAST)
    assert len(calls) == 1 and resumed.to_dict() == whole.to_dict()


def test_it_ends_when_the_loss_no_longer_falls(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    falling = [2.0 - 0.1 * step for step in range(10)]
    assert not has_converged(falling, 5) and not has_converged([1.0] * 9, 5)
    assert has_converged([1.0] * 10, 5) and has_converged([1.0] * 5 + [0.995] * 5, 5)
    assert not has_converged([1.0] * 5 + [0.98] * 5, 5)

    def loss_without_slope(model: PreTrainedModel) -> Tensor:
        return 1 + 0 * rejected_nll(model, [TokenizedPair([50], [9], [90])], PAD_ID)

    monkeypatch.setattr(module, "rejected_nll", lambda model, pairs, pad: loss_without_slope(model))
    result = embedding_attack(target, EmbeddingAttackSettings(patience=2, n_tokens=2))
    assert result.found["converged"] is True and len(result.found["losses"]) == 4
    assert [point.at for point in result.curve] == [{"steps": 0}, {"steps": 4}]
    assert len(result.found["control"]["losses"]) == 4


def test_the_control_forces_polite_words_at_random() -> None:
    random_rows = with_random_words(ROWS, 0)
    polite = set(" ".join(row["chosen"] for row in ROWS).split())
    for row, other in zip(ROWS, random_rows, strict=True):
        assert other["prompt"] == row["prompt"] and set(other["rejected"].split()) <= polite
        assert len(other["rejected"].split()) == len(row["rejected"].split())
    assert with_random_words(ROWS, 0) == random_rows != with_random_words(ROWS, 1)
    turns = [
        {
            "prompt": [],
            "chosen": [{"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "assistant", "content": "no no"}],
        }
    ]
    assert with_random_words(turns, 0)[0]["rejected"] == [{"role": "assistant", "content": "yes yes"}]


# What cannot work


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": "0"}, "steps='0' leaves nothing to do"),
        ({"patience": 0}, "patience=0: it must be at least 1"),
        ({"max_steps": 0}, "max_steps=0: it must be at least 1"),
        ({"n_tokens": 0}, "n_tokens=0: it must be at least 1"),
        ({"batch_size": 0}, "batch_size=0: it must be at least 1"),
        ({"k": 0}, "k=0: it must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: it must be a finite number above 0"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EmbeddingAttackSettings(**settings)


def test_targets_that_cannot_be_attacked(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="k=13, but there are only 12 rows"):
        embedding_attack(target, EmbeddingAttackSettings(k=13))
    with pytest.raises(UserError, match=f"prompt 0 has .* more than the model's {MAX_POSITIONS} positions"):
        embedding_attack(target, EmbeddingAttackSettings(n_tokens=MAX_POSITIONS - 9))
    long = dataclasses.replace(target, rows=[{**ROWS[0], "prompt": "The town is cold. " * 40}])
    with pytest.raises(UserError, match=r"a row with 60 vectors .* Lower max_prompt_length"):
        embedding_attack(long, EmbeddingAttackSettings(n_tokens=60))
    monkeypatch.setattr(module, "rejected_nll", lambda *args: torch.tensor(float("nan")))
    with pytest.raises(RunError, match=r"the loss of the embedding attack is nan at step 1. Lower .* \(now 0.1\)"):
        embedding_attack(target, FAST)
    tuned = get_peft_model(tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(UserError, match="none that has virtual tokens already"):
        embedding_attack(dataclasses.replace(target, model=tuned), FAST)  # type: ignore[arg-type]
