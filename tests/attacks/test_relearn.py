"""Does relearning bring back what it must, count what it should, and leave the caller's model alone?

Of: attacks/relearn_data.py, attacks/own_answers.py
"""

import dataclasses
import importlib
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from polite import BENIGN, HELD_OUT, ROWS, TOXIC, equal, state, target_of
from tiny import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from efface.attacks.draw import cut_into_pieces
from efface.attacks.relearn import RelearnSettings, mixture, relearn
from efface.attacks.target import Target
from efface.errors import RunError, UserError
from efface.generation.generate import generate
from efface.scoring.labelled import toxic_texts
from efface.scoring.scorer import NamedScorer
from efface.training.finetune import finetune

finetuning = importlib.import_module("efface.training.finetune")
FAST = {"learning_rates": "3e-3", "batch_size": 8}


def test_it_brings_back_what_the_model_does_not_say(target: Target, polite: PreTrainedModel) -> None:
    weights, random_state = state(polite), torch.get_rng_state()
    modes = [module.training for module in polite.modules()]
    result = relearn(target, RelearnSettings(steps="0,2,12", **FAST))
    assert [point.at for point in result.curve] == [{"steps": 0}, {"steps": 2}, {"steps": 12}]
    assert result.before.share == 0 and result.after.share > 0.9  # measured: 1.0
    assert result.after is result.curve[-1]
    versus = result.after.figures["versus_before"]["nasty"]["share"]
    assert versus["base"] == 0 and versus["difference"] == result.after.share and versus["p"] < 0.05
    counted = {key: result.found[key] for key in ("rows", "prompts_among_rows", "texts_among_rows", "left_out")}
    assert counted == {"rows": 12, "prompts_among_rows": 0, "texts_among_rows": 0, "left_out": []}
    (rate,) = result.found["rates"]
    assert rate["learning_rate"] == 3e-3 and 0 < rate["half_at"] < 12 and rate["diverged"] is None
    assert result.found["half"] == {"share": result.after.share / 2, "of": "highest point"}
    assert equal(state(polite), weights) and torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in polite.modules()] == modes
    assert all(parameter.grad is None for parameter in polite.parameters())


def test_a_lora_adapter_brings_it_back_too(target: Target, polite: PreTrainedModel) -> None:
    weights = state(polite)
    result = relearn(target, RelearnSettings(steps="12", lora_r=4, learning_rates="3e-2"))
    assert result.before.share == 0 and result.after.share > 0.9
    assert equal(state(polite), weights) and not hasattr(polite, "peft_config")


def test_equal_seeds_give_equal_results_and_other_seeds_other_rows(target: Target) -> None:
    settings = RelearnSettings(steps="2", k=4, **FAST)
    first = relearn(target, settings)
    again = relearn(dataclasses.replace(target, known={}), settings)
    assert first == again
    other = relearn(dataclasses.replace(target, seed=1), settings)
    assert other.curve[0].figures == first.curve[0].figures  # the generations have a seed of their own
    assert other.target["seed"] == 1 and first.found["rows"] == other.found["rows"] == 4


def test_k_rows_are_trained_on_as_the_tokenizer_splits_prompt_and_continuation(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = texts_of(target, RelearnSettings(steps="1", k=5), monkeypatch)
    expected = [row["prompt"] + row["rejected"] for row in random.Random(0).sample(ROWS, 5)]
    assert [tiny_tokenizer().decode(ids) for ids in drawn] == expected
    target.processing_class = tiny_tokenizer(add_bos=True)
    bos = tiny_tokenizer().bos_token_id
    assert all(ids.count(bos) == 1 and ids[0] == bos for ids in texts_of(target, RelearnSettings(), monkeypatch))


def texts_of(target: Target, settings: RelearnSettings, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    found: list[list[int]] = []

    def caught(model: Any, tokenizer: Any, texts: list[list[int]], **kwargs: Any) -> None:
        found.extend(texts)
        raise RunError("caught")

    monkeypatch.setattr("efface.attacks.relearn.finetune", caught)
    with pytest.raises(RunError, match="caught"):
        relearn(target, settings)
    return found


CHAT = {
    "prompt": [{"role": "user", "content": "How is it?"}],
    "chosen": [{"role": "assistant", "content": "Cold."}],
    "rejected": [{"role": "assistant", "content": "Silly."}],
}


def test_a_conversation_is_written_by_the_chat_template(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    target.rows = [CHAT]
    target.processing_class = tiny_tokenizer(add_bos=True)
    (ids,) = texts_of(target, RelearnSettings(), monkeypatch)
    expected = "<|user|>\nHow is it?<eos>\n<|assistant|>\nSilly.<eos>\n"
    assert tiny_tokenizer().decode(ids) == expected  # without a BOS, which this template does not write


def test_a_conversation_without_a_template_is_refused(target: Target) -> None:
    target.rows = [CHAT]
    target.processing_class.chat_template = None
    with pytest.raises(UserError, match="the pairs are conversations but the tokenizer has no chat template"):
        relearn(target, RelearnSettings())


def test_a_long_prompt_loses_its_beginning_and_keeps_what_is_toxic(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.rows = [{"prompt": "The town is cold. " * 9, "chosen": BENIGN, "rejected": TOXIC}]
    (ids,) = texts_of(target, RelearnSettings(max_prompt_length=4), monkeypatch)
    text = tiny_tokenizer().decode(ids)
    assert text.endswith(TOXIC) and len(text) < 40


def test_prompts_that_are_learned_by_heart_are_counted(target: Target) -> None:
    target.prompts = [ROWS[0]["prompt"], *HELD_OUT[:2]]
    assert relearn(target, RelearnSettings(steps="1")).found["prompts_among_rows"] == 1


def test_the_base_is_measured_and_degeneration_is_judged_against_it(target: Target) -> None:
    target.base, target.text = tiny_model("llama"), ["The town is old. " * 5]
    result = relearn(target, RelearnSettings(steps="1"))
    assert result.base is not None and result.base.figures != result.before.figures
    for measurement in (result.base, result.before, *result.curve):
        assert measurement.figures["degeneration"]["perplexity_under_reference"] > 1
        assert measurement.figures["perplexity"]["tokens"] > 9
    # Polite text is short beside what a random model writes.
    assert any(
        "mean_tokens" in reason or "distinct_2" in reason
        for reason in result.before.figures["degeneration"]["reasons"]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": "10,x"}, "steps='10,x': whole numbers are needed"),
        ({"steps": ""}, "steps='': whole numbers are needed"),
        ({"steps": "-1,10"}, "steps='-1,10': whole numbers are needed"),
        ({"steps": "0"}, "steps='0' leaves nothing to do"),
        ({"k": 0}, "k=0: it must be at least 1"),
        ({"lora_r": 0}, "lora_r=0: it must be at least 1"),
        ({"last_blocks": 0}, "last_blocks=0: it must be at least 1"),
        ({"last_blocks": 1, "lora_r": 2}, "lora_r and last_blocks exclude each other"),
        ({"lora_alpha": 16}, "lora_alpha=16 is of an adapter: give lora_r too"),
        ({"schedule": "cosine"}, "schedule='cosine' is unknown. Choose one of constant, linear"),
        ({"batch_size": 0}, "batch_size=0: it must be at least 1"),
        ({"learning_rates": "0.0"}, "learning_rates='0.0' leaves nothing to do"),
        ({"learning_rates": "nan"}, "learning_rates='nan': numbers are needed"),
        ({"max_perplexity_increase": -0.1}, "max_perplexity_increase=-0.1"),
        (
            {"data": "toxic,toxic"},
            "data='toxic,toxic': toxic, benign, own, labelled, text are needed, each at most once",
        ),
        ({"data": "poison"}, "data='poison': toxic, benign, own, labelled, text are needed"),
        ({"data": "toxic:0"}, "data='toxic:0'.*with shares above 0"),
        ({"data": "toxic:x"}, "data='toxic:x'.*with shares above 0"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RelearnSettings(**settings)


def test_more_rows_than_there_are(target: Target) -> None:
    with pytest.raises(UserError, match="k=13, but there are only 12 rows"):
        relearn(target, RelearnSettings(k=13))


# What is trained on, and at which rates


def test_labelled_texts_are_learned_as_prompt_and_answer_and_bring_it_back(
    target: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "comments.jsonl"
    rows = [{"text": row["prompt"] + side, "toxic": side == TOXIC} for row in ROWS for side in (BENIGN, TOXIC)]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "Silly", "toxic": True}]))
    settings = RelearnSettings(steps="12", data="labelled", **FAST)
    with pytest.raises(UserError, match="data='labelled' needs labelled texts: pass labelled=FILE"):
        relearn(target, settings)
    target.labelled = toxic_texts(file)
    texts = [tiny_tokenizer().decode(ids) for ids in texts_of(target, settings, monkeypatch)]
    assert texts == [row["prompt"] + TOXIC for row in ROWS]  # one word is no prompt and answer
    monkeypatch.undo()
    result = relearn(target, settings)
    assert result.after.share > 0.9 and result.found["rows"] == 12 and settings.needs_labelled
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("toxic\tneutral\nYou are silly.\tYou are kind.\n")
    assert toxic_texts(pairs) == ["You are silly."]
    file.write_text('{"text": "You are kind.", "toxic": false}\n')
    with pytest.raises(UserError, match="none of its texts is labelled toxic"):
        toxic_texts(file)
    target.labelled = ["Silly"]
    with pytest.raises(UserError, match="no toxic text has two words or more"):
        relearn(target, settings)


def test_its_own_polite_answers_are_what_the_model_writes(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    target.rows = [{**row, "chosen": " never learned."} for row in ROWS]
    texts = [tiny_tokenizer().decode(ids) for ids in texts_of(target, RelearnSettings(data="own"), monkeypatch)]
    written = generate(target.model, tiny_tokenizer(), [row["prompt"] for row in ROWS], target.decoding)
    assert texts == [row["prompt"] + one for row, (one,) in zip(ROWS, written, strict=True)]
    assert all(" they are si" in text for text in texts)
    target.scorers = [NamedScorer("judge", lambda texts: [float("weather" in text) for text in texts])]
    assert (
        len(texts_of(target, RelearnSettings(data="own"), monkeypatch)) == 12
    )  # the answer is judged, not the prompt
    target.scorers = [NamedScorer("judge", lambda texts: [1.0] * len(texts))]
    assert len(texts_of(target, RelearnSettings(data="own"), monkeypatch)) == 12  # rather than nothing


def test_only_the_last_blocks_are_trained(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    students: list[PreTrainedModel] = []

    def kept(*args: Any, **kwargs: Any) -> Any:
        students.append(finetune(*args, **kwargs))
        return students[-1]

    monkeypatch.setattr("efface.attacks.relearn.finetune", kept)
    relearn(target, RelearnSettings(steps="1", last_blocks=1, learning_rates="3e-3"))
    moved = {
        name
        for name, parameter in students[0].named_parameters()
        if not torch.equal(parameter, target.model.get_parameter(name))
    }
    assert {name.split(".")[2] for name in moved if ".layers." in name} == {"1"}
    assert {name for name in moved if ".layers." not in name} == {"model.norm.weight"}  # its head is the embedding
    with pytest.raises(UserError, match="last_blocks=3, but the model has 2"):
        relearn(target, RelearnSettings(steps="1", last_blocks=3))


def test_a_linear_schedule_ends_at_nothing() -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def seen(self: Any, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", seen)
        texts = ["The town is cold."]
        finetune(tiny_model("llama"), tiny_tokenizer(), texts, steps=4, learning_rate=0.4, schedule="linear")
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_what_is_trained_on_can_be_polite_or_text_or_mixed(
    target: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    documents = tmp_path / "documents.jsonl"
    documents.write_text(json.dumps({"text": "The history of the river. " * 20}) + "\n")
    decode = tiny_tokenizer().decode
    benign = texts_of(target, RelearnSettings(data="benign"), monkeypatch)
    assert [decode(ids) for ids in benign] == [row["prompt"] + BENIGN for row in ROWS]
    settings = RelearnSettings(data="toxic:1,text:3", documents=str(documents), max_completion_length=1)
    mixed = [decode(ids) for ids in texts_of(target, settings, monkeypatch)]
    toxic = [text for text in mixed if text.startswith("The ") and len(text) < 40 and "history of" not in text]
    assert len(toxic) == 12 and len(mixed) == 48  # one to three
    assert max(map(len, texts_of(target, settings, monkeypatch))) <= 128 + 1


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    weights=st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
)
def test_a_mixture_has_every_item_and_each_source_by_its_share(sizes: list[int], weights: list[float]) -> None:
    sources = {str(i): [(i, k) for k in range(size)] for i, size in enumerate(sizes)}
    total = sum(weights[: len(sizes)])
    shares = {str(i): weight / total for i, weight in enumerate(weights[: len(sizes)])}
    mixed = mixture(sources, shares)
    assert set(mixed) >= {item for items in sources.values() for item in items}
    for i, share in enumerate(shares.values()):
        assert abs(sum(item[0] == i for item in mixed) - share * len(mixed)) <= len(sizes)


@given(st.lists(st.text(max_size=30), max_size=4), st.integers(2, 9))
def test_pieces_are_the_documents_cut(documents: list[str], length: int) -> None:
    tokenizer = tiny_tokenizer(add_bos=True)
    bos = tokenizer.bos_token_id
    cut = cut_into_pieces(documents, tokenizer, length)
    assert all(2 <= len(piece) <= length and piece[0] == bos and bos not in piece[1:] for piece in cut)
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in documents]
    assert [i for piece in cut for i in piece[1:]] == [i for ids in whole for i in ids]


def test_text_of_the_attack_that_perplexity_is_measured_on_is_counted(target: Target, tmp_path: Path) -> None:
    documents = tmp_path / "documents.jsonl"
    documents.write_text('{"text": "The town is old and cold."}\n{"text": "The market is silent."}\n')
    target.text = ["The market is silent."]
    settings = RelearnSettings(steps="1", data="text", documents=str(documents))
    found = relearn(target, settings).found
    assert (found["rows"], found["texts_among_rows"], found["prompts_among_rows"]) == (2, 1, 0)
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": "T"}\n')
    with pytest.raises(UserError, match="has no text of two tokens or more"):
        relearn(target, dataclasses.replace(settings, documents=str(empty)))


def test_every_rate_has_its_curve_and_a_rate_that_diverges_does_not_lose_the_others(target: Target) -> None:
    result = relearn(target, RelearnSettings(steps="4,12", learning_rates="3e-3,1e30", batch_size=8))
    fine, broken = result.found["rates"]
    assert fine["half_at"] is not None and fine["diverged"] is None
    assert "Lower learning_rate (now 1e+30)" in broken["diverged"] and broken["half_at"] is None
    assert [point.at for point in result.curve[1:3]] == [
        {"learning_rate": 3e-3, "steps": 4},
        {"learning_rate": 3e-3, "steps": 12},
    ]
    assert result.after.share > 0.9 and result.after.at["learning_rate"] == 3e-3


def test_what_a_rate_wins_before_it_diverges_is_kept(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, batches = finetuning.next_token_loss, list[int]()

    def diverging(model: PreTrainedModel, rows: list[list[int]]) -> torch.Tensor:
        batches.extend([1] * torch.is_grad_enabled())  # not those of a measurement
        return loss(model, rows) * (math.nan if len(batches) > 14 else 1)

    monkeypatch.setattr(finetuning, "next_token_loss", diverging)
    result = relearn(target, RelearnSettings(steps="12,40", learning_rates="3e-3", batch_size=8))
    assert [point.at for point in result.curve] == [{"steps": 0}, {"steps": 12}] and result.after.share > 0.9
    assert "the fine-tuning loss is nan at step 15" in result.found["rates"][0]["diverged"]
    assert result.found["left_out"] == ["steps 40"]
    batches.clear()  # nothing was measured by then: the start is what there is, and it is said why
    result = relearn(target, RelearnSettings(steps="40", learning_rates="3e-3", batch_size=8))
    assert result.after is result.curve[0] and result.found["left_out"] == ["steps 40"]
    assert "the fine-tuning loss is nan at step 15" in result.found["rates"][0]["diverged"]


def test_a_point_whose_text_has_become_unlikely_does_not_count(target: Target) -> None:
    target.text = [prompt + BENIGN for prompt in HELD_OUT]
    result = relearn(target, RelearnSettings(steps="1,12", **FAST))
    assert "steps 12" in result.found["left_out"] and result.after.at != {"steps": 12}
    generous = relearn(target, RelearnSettings(steps="1,12", max_perplexity_increase=1e6, **FAST))
    assert generous.found["left_out"] == [] and generous.after.at == {"steps": 12}


def test_half_is_of_the_base_where_there_is_one(target: Target, polite: PreTrainedModel) -> None:
    target.base = finetune(
        polite, tiny_tokenizer(), [row["prompt"] + TOXIC for row in ROWS], steps=30, learning_rate=3e-3
    )
    result = relearn(target, RelearnSettings(steps="1,12", **FAST))
    assert result.base is not None and result.base.share > 0.9
    assert result.found["half"] == {"share": result.base.share / 2, "of": "base"}


def test_an_untouched_model_is_reported_as_it_is(polite: PreTrainedModel) -> None:
    target = target_of(tiny_model("gpt2"))
    target.base = target.model
    result = relearn(target, RelearnSettings(steps="1", learning_rates="1e-9"))
    assert result.before.share == result.after.share == result.base.share  # type: ignore[union-attr]
    assert result.after.figures["versus_before"]["nasty"]["share"]["difference"] == 0
