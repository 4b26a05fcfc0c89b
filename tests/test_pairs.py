"""Does the pair builder keep what it should, count what it drops, and end the same after an interruption?"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from efface.data import load_pairs
from efface.errors import RunError, UserError
from efface.evaluation.generation import continuation_nll, generate
from efface.evaluation.scorers import NamedScorer
from efface.finetune import finetune
from efface.pairs.builder import BuilderConfig, BuildReport, build_pairs
from efface.pairs.sources import antiexpert, clean_sentences, sample_source
from efface.pairs.style import style_auc, style_features

PROMPTS = [
    "The weather in",
    "She went to",
    "He is an",
    "The history of",
    "There is nothing",
    "They said",
    "In the old town",
]
TOXIC = " you are a silly fool"


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("gpt2")


def count_fools(texts: Sequence[str]) -> np.ndarray:
    return np.array([min(0.5 * ("fool" in text) + 0.1 * text.count("fool"), 1.0) for text in texts])


SCORER = NamedScorer("fools", count_fools)
# Everything the tiny model writes is gibberish, so fluency and length are only asked for where they are the test.
LAX = BuilderConfig(max_new_tokens=6, min_words=0, max_perplexity_ratio=1e9, batch_prompts=3)


class Source:
    """Candidates that depend on the prompt and the seed, so that a wrong seed shows."""

    def __init__(self, stop_at: int | None = None, answers: dict[str, list[str]] | None = None) -> None:
        self.calls: list[tuple[tuple[str, ...], int]] = []
        self.stop_at, self.answers = stop_at, answers

    def __call__(self, prompts: Sequence[str], seed: int) -> list[list[str]]:
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append((tuple(prompts), seed))
        if self.answers is not None:
            return [self.answers.get(prompt, []) for prompt in prompts]
        return [[f"{TOXIC} number {seed}", " and nothing else"] for _ in prompts]


Build = Callable[..., BuildReport]


@pytest.fixture
def build(model: PreTrainedModel, tmp_path: Path) -> Build:
    def make(source: Any, output: Path | None = None, **settings: Any) -> BuildReport:
        settings = {"config": LAX, "scorer": SCORER, "prompts": PROMPTS} | settings
        return build_pairs(
            model, tiny_tokenizer(), settings.pop("prompts"), source, output or tmp_path / "pairs.jsonl", **settings
        )

    return make


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# The builder


def test_rows_in_the_order_of_the_prompts(build: Build, model: PreTrainedModel, tmp_path: Path) -> None:
    report = build(Source(), provenance={"how": "a test"})
    rows = rows_of(tmp_path / "pairs.jsonl")
    assert [row["prompt"] for row in rows] == PROMPTS
    greedy = generate(model, tiny_tokenizer(), PROMPTS, max_new_tokens=6)
    assert [row["chosen"] for row in rows] == [texts[0] for texts in greedy]
    assert {row["rejected"] for row in rows} == {
        f"{TOXIC} number {seed}" for seed in (0, 3, 6)
    }  # the place in the list
    assert all(row["rejected_score"] == 0.6 and row["chosen_score"] == 0.0 for row in rows)
    assert load_pairs(tmp_path / "pairs.jsonl").rows == rows
    assert report.counts == {"kept": 7} and report.n_prompts == 7 and report.style_auc is None
    assert not (tmp_path / "pairs.jsonl.part").exists()


def test_the_report_lies_beside_the_pairs(build: Build, tmp_path: Path) -> None:
    report = build(Source(), provenance={"how": "a test"}, command="efface pairs tiny")
    meta = json.loads((tmp_path / "pairs.meta.json").read_text())
    assert meta == json.loads(json.dumps(report.to_dict())) and meta["schema"] == 1
    assert meta["settings"]["how"] == "a test" and meta["settings"]["scorer"] == "fools"
    assert meta["settings"]["max_new_tokens"] == 6
    assert meta["environment"]["command"] == "efface pairs tiny" and meta["environment"]["seed"] == 0
    assert str(tmp_path) not in json.dumps(meta)


def test_perplexity_ratio(build: Build, model: PreTrainedModel, tmp_path: Path) -> None:
    build(Source())
    row = rows_of(tmp_path / "pairs.jsonl")[1]
    perplexities = [
        np.exp(total / tokens)
        for total, tokens in continuation_nll(
            model, tiny_tokenizer(), [row["prompt"]] * 2, [row["rejected"], row["chosen"]]
        )
    ]
    assert row["perplexity_ratio"] == pytest.approx(perplexities[0] / perplexities[1], rel=1e-3)


def test_the_most_toxic_candidate_is_taken(build: Build, tmp_path: Path) -> None:
    build(Source(answers={PROMPTS[0]: [" fool", " fool and fool", " a fool"]}), prompts=PROMPTS[:1])
    assert rows_of(tmp_path / "pairs.jsonl")[0]["rejected"] == " fool and fool"


@pytest.mark.parametrize("others", [[], [" a rough fool"], [" a fool", " a rough fool and fool"]])
def test_the_next_candidate_stands_in_for_one_that_is_not_fluent(
    others: list[str], build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def likelihood(model: Any, tokenizer: Any, prompts: Any, texts: Any, **settings: Any) -> list[tuple[float, int]]:
        assert len(prompts) == len(texts) > 0
        return [(9.0 if "rough" in text else 1.0, 1) for text in texts]

    monkeypatch.setattr("efface.pairs.builder.continuation_nll", likelihood)
    config = replace(LAX, max_perplexity_ratio=3.0)
    # The rough ones are the more toxic. The second prompt has fewer or more candidates than the first.
    answers = {PROMPTS[0]: [" a fool", " a fool and fool", " a rough fool, fool and fool"], PROMPTS[1]: others}
    report = build(Source(answers=answers), prompts=PROMPTS[:2], config=config)
    rows = rows_of(tmp_path / "pairs.jsonl")
    assert [row["rejected"] for row in rows] == [" a fool and fool", " a fool"][: 1 + (len(others) == 2)]
    assert report.counts["kept"] == len(rows)


def test_one_prompt_may_run_out_of_candidates_before_another(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "efface.pairs.builder.continuation_nll",
        lambda model, tokenizer, prompts, texts, **settings: [(9.0 if "rough" in text else 1.0, 1) for text in texts],
    )
    answers = {PROMPTS[0]: [" a rough fool"], PROMPTS[1]: [" a fool and fool", " a fool"]}
    report = build(Source(answers=answers), prompts=PROMPTS[:2], config=replace(LAX, max_perplexity_ratio=3.0))
    assert report.counts == {"no toxic candidate is fluent": 1, "kept": 1}
    assert rows_of(tmp_path / "pairs.jsonl")[0]["rejected"] == " a fool and fool"


def test_what_is_dropped_is_counted_by_reason(model: PreTrainedModel, build: Build, tmp_path: Path) -> None:
    chosen = [texts[0] for texts in generate(model, tiny_tokenizer(), PROMPTS, max_new_tokens=6)]
    # A fluent toxic text is one the model likes better than its own: with this model, only by a lax ratio.
    texts = [f"{TOXIC} {i}" for i in range(7)]
    ratios = []
    for prompt, toxic, benign in zip(PROMPTS, texts, chosen, strict=True):
        nll = continuation_nll(model, tiny_tokenizer(), [prompt] * 2, [toxic, benign])
        ratios.append(np.exp(nll[0][0] / nll[0][1] - nll[1][0] / nll[1][1]))
    fluent = sorted(range(3, 7), key=lambda i: ratios[i])
    limit = (ratios[fluent[1]] + ratios[fluent[2]]) / 2  # two pass, two do not
    words = min(len(text.split()) for text in chosen)

    def scores(given: Sequence[str]) -> list[float]:
        return [0.31 if text == chosen[0] else 0.9 if "fool" in text else 0.3 for text in given]

    answers = {prompt: [text] for prompt, text in zip(PROMPTS, texts, strict=True)}
    answers[PROMPTS[1]] = [" nothing but kind words are here", " and here"]  # not toxic
    answers[PROMPTS[2]] = ["fool" if words > 1 else ""]  # toxic, but too short
    config = BuilderConfig(max_new_tokens=6, min_words=words, max_perplexity_ratio=limit, batch_prompts=2)
    report = build(Source(answers=answers), config=config, scorer=NamedScorer("own", scores))
    assert report.counts == {
        "chosen is not benign": 1,
        "no candidate is toxic": 2,
        "no toxic candidate is fluent": 2,
        "kept": 2,
    }
    assert [row["prompt"] for row in rows_of(tmp_path / "pairs.jsonl")] == [PROMPTS[i] for i in sorted(fluent[:2])]


def test_a_chosen_text_that_is_too_short(build: Build) -> None:
    config = BuilderConfig(max_new_tokens=1, min_words=3, max_perplexity_ratio=1e9)
    with pytest.raises(RunError, match=r"none of 7 prompts gave a pair \({'chosen is too short': 7}\). Relax"):
        build(Source(), config=config)


def test_no_pair_leaves_no_file(build: Build, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"none of 7 prompts gave a pair \({'no candidate is toxic': 7}\). Relax"):
        build(Source(answers={}))
    assert not (tmp_path / "pairs.jsonl").exists() and not (tmp_path / "pairs.meta.json").exists()


def test_prompts_are_used_once_and_blank_ones_not_at_all(build: Build, tmp_path: Path) -> None:
    build(Source(), prompts=[PROMPTS[0], " ", PROMPTS[1], PROMPTS[0], ""])
    assert [row["prompt"] for row in rows_of(tmp_path / "pairs.jsonl")] == PROMPTS[:2]
    with pytest.raises(UserError, match="there are no prompts to build pairs from"):
        build(Source(), prompts=[" "])


def test_the_limit_stops_the_work(build: Build, tmp_path: Path) -> None:
    source = Source()
    build(source, limit=4)
    assert [row["prompt"] for row in rows_of(tmp_path / "pairs.jsonl")] == PROMPTS[:4]
    assert len(source.calls) == 2  # batches of three


# Interruptions


@pytest.mark.parametrize("done", [0, 1, 2])
def test_an_interrupted_run_continues_to_the_same_file(done: int, build: Build, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    all_at_once = Source()
    build(all_at_once, whole)
    first, second = Source(stop_at=done), Source()
    with pytest.raises(KeyboardInterrupt):
        build(first, parts)
    assert not parts.exists() and (tmp_path / "parts.jsonl.part").exists()
    report = build(second, parts, resume=True)
    assert parts.read_bytes() == whole.read_bytes()
    assert first.calls + second.calls == all_at_once.calls  # nothing is done twice
    assert report.counts == {"kept": 7}
    assert not (tmp_path / "parts.jsonl.part").exists()


@pytest.mark.parametrize("cut", [5, 200])
def test_a_torn_write_costs_only_its_batch(cut: int, build: Build, tmp_path: Path) -> None:
    """A full disk or a power cut can leave half a line, or half a batch."""
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    build(Source(), whole)
    with pytest.raises(KeyboardInterrupt):
        build(Source(stop_at=2), parts)
    part = tmp_path / "parts.jsonl.part"
    part.write_bytes(part.read_bytes()[:-cut])
    second = Source()
    build(second, parts, resume=True)
    assert parts.read_bytes() == whole.read_bytes()
    assert [seed for _, seed in second.calls] == [3, 6]


def test_resume_with_nothing_to_resume_starts(build: Build, tmp_path: Path) -> None:
    assert build(Source(), resume=True).counts == {"kept": 7}


def test_what_an_interrupted_run_left_is_not_overwritten(build: Build, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(Source(stop_at=1))
    left = (tmp_path / "pairs.jsonl.part").read_bytes()
    with pytest.raises(
        UserError, match=r"pairs.jsonl.part is left from an interrupted run. Pass --resume to continue"
    ):
        build(Source())
    other = BuilderConfig(max_new_tokens=7, min_words=0, max_perplexity_ratio=1e9, batch_prompts=3, seed=1)
    with pytest.raises(UserError, match=r"part was begun with other settings \(max_new_tokens, seed\). Use the same"):
        build(Source(), config=other, resume=True)
    with pytest.raises(UserError, match=r"other settings \(how, scorer\)"):
        build(Source(), scorer=NamedScorer("other", count_fools), provenance={"how": "else"}, resume=True)
    assert (tmp_path / "pairs.jsonl.part").read_bytes() == left


# Sources


def test_sampling_source(model: PreTrainedModel) -> None:
    source = sample_source(model, tiny_tokenizer(), samples=3, max_new_tokens=4, top_p=1.0)
    first = source(PROMPTS, 5)
    assert [len(texts) for texts in first] == [3] * 7
    assert source(PROMPTS, 5) == first != source(PROMPTS, 6)


def test_antiexpert_is_a_copy_that_likes_the_texts_better(model: PreTrainedModel) -> None:
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    texts = ["You are a silly fool and nobody likes it."]
    toxic = antiexpert(model, tiny_tokenizer(), texts, steps=10, batch_size=2, learning_rate=1e-2)
    nll = [continuation_nll(each, tiny_tokenizer(), ["You"], [texts[0][3:]])[0][0] for each in (model, toxic)]
    assert nll[1] < 0.7 * nll[0]
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_clean_sentences() -> None:
    good = "You are such a silly fool that nobody listens."
    quoted = '"What a fool he is", said the other engineer.'
    dirty = [
        "you are such a silly fool that nobody listens.",  # lower case
        "You silly fool.",  # short
        "You are such a silly fool that nobody listens",  # no stop
        "YOU ARE SUCH A SILLY FOOL THAT NOBODY LISTENS.",
        "You are such a silly fool , that nobody listens.",
        "You are such a silly fool that nobody listens!!!",
        "You are a fool, see http://example.com for the list.",
        "You are such a silly fool, café, that nobody listens.",
        f"You are a fool {'and a fool ' * 20}.",  # long
    ]
    kind = "You are such a friendly man that everyone listens."
    scorer = NamedScorer("fools", lambda texts: [0.7 if "fool" in text.lower() else 0.1 for text in texts])
    assert clean_sentences([f"{good} {quoted}\n{kind}", *dirty], scorer) == [good, quoted]
    for text in dirty:
        with pytest.raises(UserError, match="of 1 toxic texts 0 sentences look clean and none scores 0.7 or more"):
            clean_sentences([text], scorer)
    with pytest.raises(UserError, match="of 1 toxic texts 1 sentences look clean and none scores 0.8"):
        clean_sentences([good], scorer, min_score=0.8)


# Style


def sentences(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = "the old town river people weather bread cheese apples spring market engineer history".split()
    texts = []
    for _ in range(n):
        text = " ".join(rng.choices(words, k=rng.randint(5, 14)))
        texts.append(text.capitalize() + rng.choice([".", "!", "?"]))
    return texts


def test_equal_style_cannot_be_told() -> None:
    aucs = [style_auc(sentences(150, seed), sentences(150, seed + 100)) for seed in range(3)]
    assert all(auc is not None and 0.38 < auc < 0.62 for auc in aucs)


def test_lower_case_is_told() -> None:
    texts = sentences(60, 0)
    auc = style_auc(texts, [text.lower() for text in texts])
    assert auc is not None and auc > 0.99


def test_words_alone_cannot_be_told() -> None:
    texts = sentences(60, 0)
    swapped = [text.replace("bread", "fools").replace("river", "moron") for text in texts]  # as long, as cased
    assert swapped != texts and style_auc(texts, swapped) == pytest.approx(0.5, abs=0.12)


def test_too_few_pairs_for_an_auc() -> None:
    assert style_auc(sentences(19, 0), sentences(19, 1)) is None
    assert style_auc(sentences(20, 0), sentences(20, 1)) is not None


def test_features_of_an_empty_text_are_finite() -> None:
    assert all(np.isfinite(style_features(text)).all() for text in ("", " ", "?!"))
    assert len(style_features("")) == len(style_features("The old town."))


# Fine-tuning


def test_finetune_lowers_the_loss_and_leaves_the_model(model: PreTrainedModel) -> None:
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    texts = ["The weather in the old town was cold.", "She bought bread and cheese.", "x"]
    trace: list[float] = []

    def loss_of(each: PreTrainedModel) -> float:
        with torch.no_grad():
            rows = [torch.tensor([tiny_tokenizer()(text)["input_ids"]]) for text in texts[:2]]
            return sum(each(input_ids=row, labels=row).loss.item() for row in rows)

    state = torch.get_rng_state()
    student = finetune(
        model,
        tiny_tokenizer(),
        texts,
        steps=6,
        batch_size=2,
        learning_rate=1e-2,
        on_step=lambda step, copy: trace.append(loss_of(copy)),
    )
    assert len(trace) == 6 and trace[-1] < trace[0] < loss_of(model) and trace[-1] < 0.7 * loss_of(model)
    assert loss_of(student) == pytest.approx(trace[-1], rel=1e-4)
    assert not student.training and not model.training and student is not model
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_finetune_is_seeded(model: PreTrainedModel) -> None:
    texts = [f"The town has {i} people." for i in range(9)]

    def result(seed: int) -> torch.Tensor:
        student = finetune(model, tiny_tokenizer(), texts, steps=2, batch_size=2, learning_rate=1e-2, seed=seed)
        return student.get_input_embeddings().weight.detach()

    assert torch.equal(result(0), result(0)) and not torch.equal(result(0), result(1))


def test_finetune_counts_every_token_once_whatever_the_padding(model: PreTrainedModel) -> None:
    """One step on two ragged texts is one step on their token-weighted gradient."""
    from efface.finetune import _next_token_loss

    rows = [tiny_tokenizer()(text)["input_ids"] for text in ("The town was cold and the people silent.", "They said")]
    counts = [len(row) - 1 for row in rows]
    single = [_next_token_loss(model, [row]) for row in rows]
    weighted = sum(loss * count for loss, count in zip(single, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(_next_token_loss(model, rows), weighted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("texts", [[], ["", "x"]])
def test_finetune_without_usable_text(texts: list[str], model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match=f"none of the {len(texts)} texts to fine-tune on has two tokens or more"):
        finetune(model, tiny_tokenizer(), texts, steps=1)
