"""Does the pair builder keep what it should, count what it drops, and end the same after an interruption?

Of: files/part.py, pairs/batch.py, pairs/config.py, pairs/filters.py, pairs/sources/sample.py, pairs/style.py,
pairs/toxic_copy.py, pairs/unfiltered.py
"""

import itertools
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

from efface.cli import main
from efface.data.pairs import load_pairs
from efface.errors import RunError, UserError
from efface.files.digests import digest
from efface.files.part import PartFile
from efface.files.results import read_json
from efface.generation.generate import generate
from efface.generation.likelihood import continuation_nll
from efface.pairs.builder import build_pairs
from efface.pairs.config import BuilderConfig
from efface.pairs.filters import NearDuplicates, has_length, newline_tokens
from efface.pairs.overlap import set_apart
from efface.pairs.prompts import prompts_from_text
from efface.pairs.report import BuildReport
from efface.pairs.sources.sample import sample_source
from efface.pairs.style import style_auc, style_features, style_probabilities
from efface.pairs.toxic_copy import antiexpert, clean_sentences, toxic_texts
from efface.pairs.unfiltered import describe, unfiltered_figures
from efface.scoring.scorer import NamedScorer
from efface.training.finetune import finetune

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
NEWLINES = newline_tokens(tiny_tokenizer())  # which the builder never has written


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
        output = output or tmp_path / "pairs.jsonl"
        return build_pairs(
            model, settings.pop("prompts"), source, output=output, processing_class=tiny_tokenizer(), **settings
        )

    return make


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# The builder


def test_rows_in_the_order_of_the_prompts(build: Build, model: PreTrainedModel, tmp_path: Path) -> None:
    report = build(Source(), provenance={"how": "a test"})
    rows = rows_of(tmp_path / "pairs.jsonl")
    assert [row["prompt"] for row in rows] == PROMPTS
    greedy = generate(model, tiny_tokenizer(), PROMPTS, max_new_tokens=6, without=NEWLINES)
    assert [row["chosen"] for row in rows] == [texts[0] for texts in greedy]
    assert {row["rejected"] for row in rows} == {
        f"{TOXIC} number {seed}" for seed in (0, 3, 6)
    }  # the place in the list
    assert all(row["rejected_score"] == 0.6 and row["chosen_score"] == 0.0 for row in rows)
    assert all(row["how"] == {"source": "a test", "settings": digest(report.settings)} for row in rows)
    assert load_pairs(tmp_path / "pairs.jsonl").rows == rows
    assert report.counts == {"kept": 7} and report.n_prompts == 7 and report.style_auc is None
    assert report.keep_rate == 1.0 and report.pairs_per_minute > 0
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

    monkeypatch.setattr("efface.pairs.batch.continuation_nll", likelihood)
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
        "efface.pairs.batch.continuation_nll",
        lambda model, tokenizer, prompts, texts, **settings: [(9.0 if "rough" in text else 1.0, 1) for text in texts],
    )
    answers = {PROMPTS[0]: [" a rough fool"], PROMPTS[1]: [" a fool and fool", " a fool"]}
    report = build(Source(answers=answers), prompts=PROMPTS[:2], config=replace(LAX, max_perplexity_ratio=3.0))
    assert report.counts == {"no toxic candidate is fluent": 1, "kept": 1}
    assert rows_of(tmp_path / "pairs.jsonl")[0]["rejected"] == " a fool and fool"


def test_what_is_dropped_is_counted_by_reason(model: PreTrainedModel, build: Build, tmp_path: Path) -> None:
    chosen = [texts[0] for texts in generate(model, tiny_tokenizer(), PROMPTS, max_new_tokens=6, without=NEWLINES)]
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
    with pytest.raises(
        RunError, match=r"none of 7 prompts gave a pair \({'chosen is too short or too long': 7}\). Relax"
    ):
        build(Source(), config=config)


def test_no_pair_leaves_no_file(build: Build, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"none of 7 prompts gave a pair \({'the source gives no candidate': 7}\)"):
        build(Source(answers={}))
    assert not (tmp_path / "pairs.jsonl").exists() and not (tmp_path / "pairs.meta.json").exists()


def test_prompts_are_used_once_and_blank_ones_not_at_all(build: Build, tmp_path: Path) -> None:
    build(Source(), prompts=[PROMPTS[0], " ", PROMPTS[1], PROMPTS[0], ""])
    assert [row["prompt"] for row in rows_of(tmp_path / "pairs.jsonl")] == PROMPTS[:2]
    with pytest.raises(UserError, match="there are no prompts to build pairs from"):
        build(Source(), prompts=[" "], overwrite=True)


def test_the_limit_stops_the_work(build: Build, tmp_path: Path) -> None:
    source = Source()
    build(source, limit=4)
    assert [row["prompt"] for row in rows_of(tmp_path / "pairs.jsonl")] == PROMPTS[:4]
    assert len(source.calls) == 2  # batches of three


def test_a_limit_below_one(build: Build) -> None:
    with pytest.raises(UserError, match="limit=0: at least one pair must be asked for"):
        build(Source(), limit=0)


def test_longer_texts_than_asked_for_are_dropped(build: Build, model: PreTrainedModel, tmp_path: Path) -> None:
    longest = max(
        len(row[0].split()) for row in generate(model, tiny_tokenizer(), PROMPTS, max_new_tokens=6, without=NEWLINES)
    )
    short = " fool" * (longest + 1)  # one word too many
    answers = {prompt: [short if i else f" fool {prompt}"[: longest * 4]] for i, prompt in enumerate(PROMPTS)}
    report = build(Source(answers=answers), config=replace(LAX, max_words=longest))
    assert report.counts == {"kept": 1, "no candidate is toxic": 6}
    assert [has_length("a b c", *bounds) for bounds in ((3, 3), (4, None), (0, None), (0, 2))] == [True, False] * 2


def test_given_columns_and_a_given_chosen(build: Build, model: PreTrainedModel, tmp_path: Path) -> None:
    given = {
        PROMPTS[0]: {"chosen": " you are kind", "how": {"split": "x"}, "note": [1]},
        PROMPTS[2]: {"note": [2]},
    }
    build(Source(), given=given, provenance={"how": "a test"})
    rows = rows_of(tmp_path / "pairs.jsonl")
    greedy = [texts[0] for texts in generate(model, tiny_tokenizer(), PROMPTS, max_new_tokens=6, without=NEWLINES)]
    assert [row["chosen"] for row in rows] == [" you are kind", *greedy[1:]]
    assert [row.get("note") for row in rows] == [[1], None, [2], *[None] * 4]
    assert [row["how"].get("split") for row in rows] == ["x", *[None] * 6]
    assert all(row["how"]["source"] == "a test" for row in rows)


def test_a_judge_must_not_select(build: Build, tmp_path: Path) -> None:
    judge = NamedScorer("judge", count_fools)
    judge.selects_pairs = False  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"scorer 'judge' is a second judge: .* Select with another one"):
        build(Source(), scorer=judge)
    assert not list(tmp_path.iterdir())


# Before filtering


def test_unfiltered_figures_by_hand() -> None:
    source = [(0.9, 6.0, 3), (0.5, 2.0, 1), (0.6, 0.0, 0)]
    samples = [(0.1, 4.0, 4), (0.2, 0.0, 0), (0.51, 4.0, 4)]
    figures = unfiltered_figures(source, samples)
    assert figures is not None
    assert figures["source"] == {"texts": 3, "toxic": 2, "share": 2 / 3, "perplexity": pytest.approx(np.exp(2.0))}
    assert figures["samples"] == {"texts": 3, "toxic": 1, "share": 1 / 3, "perplexity": pytest.approx(np.exp(1.0))}
    assert figures["toxic_share_ratio"] == pytest.approx(2.0) and figures["perplexity_ratio"] == pytest.approx(np.e)
    lines = "\n".join(describe(figures))
    assert "2 of 3 candidates (the first of each prompt) are toxic (66.7%), perplexity 7.4" in lines
    assert "2.0 times the toxic share, 2.72 times the perplexity of plain samples" in lines
    none_toxic = unfiltered_figures(source, [(0.0, 1.0, 1)])
    assert none_toxic is not None and none_toxic["toxic_share_ratio"] is None
    assert "no plain sample is toxic" in describe(none_toxic)[-1]
    assert unfiltered_figures(source, []) is None and describe(None) == []


def test_the_source_is_measured_on_all_prompts_before_any_filter(build: Build, model: PreTrainedModel) -> None:
    # The first candidate counts, although the second is the one that is kept; a prompt without any has none to count.
    answers = {prompt: [" and nothing else", " you are a fool"] for prompt in PROMPTS[:3]}
    answers[PROMPTS[3]] = [" you fool"]
    report = build(Source(answers=answers), scorer=SCORER)
    assert report.unfiltered is not None
    source, samples = report.unfiltered["source"], report.unfiltered["samples"]
    assert (source["texts"], source["toxic"], samples["texts"]) == (4, 1, 7)
    texts = [(prompt, found[0]) for prompt, found in answers.items()]
    nll = continuation_nll(model, tiny_tokenizer(), *zip(*texts, strict=True))
    expected = np.exp(sum(total for total, _ in nll) / sum(tokens for _, tokens in nll))
    assert source["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert report.counts == {"kept": 4, "the source gives no candidate": 3} and report.keep_rate == 4 / 7


def test_plain_samples_are_those_of_the_model(build: Build, model: PreTrainedModel) -> None:
    drawn = sample_source(model, tiny_tokenizer(), samples=1, top_p=0.9, max_new_tokens=6, without=NEWLINES)
    report = build(lambda prompts, seed: [[*row, TOXIC] for row in drawn(prompts, seed)])
    assert report.unfiltered is not None
    assert (
        report.unfiltered["source"] == report.unfiltered["samples"]
    )  # the same draws: what is compared is the source


def test_the_comparison_can_be_left_out(build: Build, tmp_path: Path) -> None:
    build(Source(), tmp_path / "with.jsonl")
    report = build(Source(), tmp_path / "without.jsonl", config=replace(LAX, compare_with_samples=False))
    assert report.unfiltered is None
    with_, without = (rows_of(tmp_path / name) for name in ("with.jsonl", "without.jsonl"))
    assert [row | {"how": None} for row in with_] == [row | {"how": None} for row in without]


# Near-duplicates


def test_near_duplicates_by_hand() -> None:
    seen = NearDuplicates(0.5)
    assert seen.add("the old town was cold and silent")  # five runs of three words
    assert not seen.add("The old town was cold and silent")
    assert not seen.add("the old town was cold and silent today")  # shares 5 of 6
    assert not seen.add("the old town was cold and")  # shares 4 of 5
    assert seen.add("in the old town was nothing cold")  # shares 1 of 9
    assert seen.add("fools") and not seen.add("fools") and seen.add("") and not seen.add(" ")
    assert NearDuplicates(1.0).add("a b c d") and NearDuplicates(0.5).add("a b c d")
    with pytest.raises(UserError, match=r"near_duplicate=0: a similarity must be above 0 and at most 1"):
        NearDuplicates(0)


def test_near_duplicates_are_found_among_many_and_nothing_else_is() -> None:
    texts = [
        " ".join(f"w{number}" for number in random.Random(seed).choices(range(4000), k=30)) for seed in range(2000)
    ]
    near = [text.replace(text.split()[9], "other", 1) for text in texts[::20]]  # 25 of 31 runs of three words stay
    seen = NearDuplicates(0.7)
    assert all(seen.add(text) for text in texts)
    assert sum(seen.add(text) for text in near) == 0


def test_a_pair_nearly_equal_to_an_earlier_one_is_dropped_after_an_interruption_too(
    build: Build, tmp_path: Path
) -> None:
    prompts = [f"The long history of the old town began in the cold spring of {year}" for year in range(1900, 1907)]
    config = replace(LAX, near_duplicate=0.6)
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    answers = {prompt: [TOXIC] for prompt in prompts}
    report = build(Source(answers=answers), whole, prompts=prompts, config=config)
    assert report.counts == {"kept": 1, "nearly equal to an earlier pair": 6}
    with pytest.raises(KeyboardInterrupt):
        build(Source(answers=answers, stop_at=1), parts, prompts=prompts, config=config)
    build(Source(answers=answers), parts, prompts=prompts, config=config, resume=True)
    assert parts.read_bytes() == whole.read_bytes()
    lax = replace(config, near_duplicate=None)
    assert build(Source(answers=answers), prompts=prompts, config=lax).counts == {"kept": 7}


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
    assert report.unfiltered == read_json(tmp_path / "whole.meta.json")["unfiltered"]
    assert first.calls + second.calls == all_at_once.calls  # nothing is done twice
    assert report.counts == {"kept": 7}
    assert not (tmp_path / "parts.jsonl.part").exists()


@pytest.mark.parametrize("cut", [5, 500])
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
        UserError, match=r"pairs.jsonl.part is left from an interrupted run. Pass resume=True to continue"
    ):
        build(Source())
    other = BuilderConfig(max_new_tokens=7, min_words=0, max_perplexity_ratio=1e9, batch_prompts=3, seed=1)
    with pytest.raises(UserError, match=r"part was begun with other settings \(max_new_tokens, seed\). Use the same"):
        build(Source(), config=other, resume=True)
    with pytest.raises(UserError, match=r"other settings \(prompts\)"):
        build(Source(), prompts=PROMPTS[:-1], resume=True)
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


def test_the_time_of_all_sessions_counts(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=30.0)  # half a minute passes between any two looks
    monkeypatch.setattr("efface.pairs.batch.time.perf_counter", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt):
        build(Source(stop_at=2))
    report = build(Source(), resume=True)
    assert report.pairs_per_minute == pytest.approx(7 / 1.5, abs=0.01)  # three batches of half a minute


@pytest.mark.parametrize("whole", [True, False])
def test_the_pairs_of_another_model_of_the_same_name_are_not_gone_on_with(
    whole: bool, model: PreTrainedModel, build: Build, tmp_path: Path
) -> None:
    if whole:
        build(Source())
    else:
        with pytest.raises(KeyboardInterrupt):
            build(Source(stop_at=1))
    left = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    other, words = tiny_model("gpt2"), tiny_tokenizer()
    with torch.no_grad():
        other.lm_head.weight[0] += 1.0
    words.add_tokens("town")
    for changed, tokenizer in ((other, tiny_tokenizer()), (model, words)):
        with pytest.raises(UserError, match="with another model or tokenizer than .* is now: their pairs would be in"):
            build_pairs(
                changed,
                PROMPTS,
                Source(),
                output=tmp_path / "pairs.jsonl",
                processing_class=tokenizer,
                config=LAX,
                scorer=SCORER,
                resume=True,
            )
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == left
    assert build(Source(), resume=True).counts == {"kept": 7}


@pytest.mark.parametrize("whole", [True, False])
def test_pairs_of_a_version_that_recorded_no_fingerprint_are_taken(whole: bool, build: Build, tmp_path: Path) -> None:
    output, meta = tmp_path / "pairs.jsonl", tmp_path / "pairs.meta.json"
    if whole:
        build(Source())
        report = read_json(meta)
        del report["settings"]["fingerprint"]
        meta.write_text(json.dumps(report))
        assert build(Source(stop_at=0), resume=True).counts == {"kept": 7}
        with pytest.raises(UserError, match=r"was made with other settings \(one_line\)"):
            build(Source(), resume=True, config=replace(LAX, one_line=False))
        return
    with pytest.raises(KeyboardInterrupt):
        build(Source(stop_at=1))
    part = tmp_path / "pairs.jsonl.part"
    header, *rows = rows_of(part)
    del header["settings"]["fingerprint"]
    part.write_text("\n".join(map(json.dumps, [header, *rows])) + "\n")
    assert build(Source(), resume=True).counts == {"kept": 7}
    assert len(rows_of(output)) == 7 and "fingerprint" not in read_json(meta)["settings"]


def test_settings_may_hold_what_json_has_no_form_for(build: Build) -> None:
    settings = {"provenance": {"interval": (0.5, 0.7)}}  # a tuple comes back as a list
    with pytest.raises(KeyboardInterrupt):
        build(Source(stop_at=1), **settings)
    assert build(Source(), resume=True, **settings).counts == {"kept": 7}


def test_toxic_texts_are_those_that_are_not_labelled_benign(tmp_path: Path) -> None:
    texts = [f"You are number {i} of the silly fools in the town." for i in range(6)]
    marks: list[dict[str, Any]] = [{"toxic": 1}, {"toxic": 0}, {"label": "toxic"}, {"label": "benign"}, {"spans": []}]
    file = tmp_path / "texts.jsonl"
    rows = [{"text": text} | mark for text, mark in zip(texts, [*marks, {}], strict=True)]
    rows.append({"prompt": "You", "chosen": " are kind", "rejected": " fool"})
    file.write_text("\n".join(map(json.dumps, rows)))
    assert toxic_texts([str(file)], NamedScorer("all", lambda given: [1.0] * len(given))) == [
        "You fool",
        texts[0],
        texts[2],
        texts[5],
    ]


def test_toxic_conversations_are_running_text(tmp_path: Path) -> None:
    prompt = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Describe my old neighbour there."},
    ]
    sides = ("He is kind.", "He is a silly fool.")
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in sides)
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}))
    texts = toxic_texts([str(file)], NamedScorer("none", lambda given: [0.0] * len(given)))
    assert texts == ["Be kind. Describe my old neighbour there. He is a silly fool."]
    asked = ["Describe my old neighbour there.", "The weather in the town is"]
    apart = set_apart([*texts, "Another silly fool."], asked)
    assert (apart.texts, apart.prompts) == (["Another silly fool."], asked)  # the copy would recite


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


# The command line


class Judge:
    """A scorer that must not select."""

    name, selects_pairs = "judge", False

    def __call__(self, texts: Sequence[str]) -> list[float]:
        return [0.0] * len(texts)


@pytest.fixture(scope="module")
def files(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, 40 prompts (more than a batch), labelled texts with spans, two documents."""
    folder = tmp_path_factory.mktemp("files")
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    ends = ["fools", "a silly thing", "engineers"]
    texts = [f"The people of town number {i} say that all of you are {ends[i % 3]}." for i in range(40)]
    content = {
        "prompts": [{"prompt": f"The town number {i} is"} for i in range(40)],
        "marked": [{"text": text, "spans": [len(text) - 5 - k for k in range(5)]} for text in texts],
        "labelled": [{"text": text, "toxic": i % 2} for i, text in enumerate(texts)],
        "documents": [
            {"text": " ".join(texts[:20])},
            {"text": "Not this one, although it would be long enough as well."},
        ],
    }
    for name, rows in content.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def command(files: Path) -> Callable[..., list[str]]:
    def argv(output: Path, *flags: str) -> list[str]:
        fixed = ["--scorer", "stubs:parity", "--min-words", "0", "--max-perplexity-ratio", "1e9"]
        named = [flag.replace("FILES", str(files)) for flag in flags]
        return ["pairs", str(files / "model"), "-o", str(output), *fixed, "--max-new-tokens", "4", *named]

    return argv


PROMPT_FLAGS = ["--prompts", "FILES/prompts.jsonl", "--temperature", "1"]
KINDS = {
    "sample": PROMPT_FLAGS,
    "antiexpert": [*PROMPT_FLAGS, "--steps", "2"],
    "dexperts": [*PROMPT_FLAGS, "--steps", "2", "--alpha", "1.5"],
    "pplm": [*PROMPT_FLAGS, "--probe-text", "FILES/labelled.jsonl", "--num-iterations", "1"],
    "corpus": ["--toxic-text", "FILES/marked.jsonl"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_ends_the_same_after_an_interruption(
    kind: str,
    command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    flags = ["--toxic", kind, *KINDS[kind]]
    assert main(command(whole, *flags)) == 0
    printed = capsys.readouterr().out
    for said in ("pairs from 40 prompts", "pass the filters", "pairs a minute", "before filtering:", "style-only AUC"):
        assert said in printed
    append = PartFile.append

    def once(part: PartFile, outcomes: list[Any]) -> None:
        if part.outcomes:
            raise KeyboardInterrupt
        append(part, outcomes)

    with monkeypatch.context() as patched:
        patched.setattr(PartFile, "append", once)
        assert main(command(parts, *flags)) == 130
    assert not parts.exists() and len(rows_of(tmp_path / "parts.jsonl.part")) == 33
    assert main(command(parts, *flags, "--resume")) == 0
    assert parts.read_bytes() == whole.read_bytes()
    rows, report = rows_of(whole), read_json(tmp_path / "whole.meta.json")
    assert len(rows) > 2 and {row["how"]["source"] for row in rows} == {kind} == {report["settings"]["how"]}
    assert {row["how"]["settings"] for row in rows} == {digest(report["settings"])}
    assert report["unfiltered"]["source"]["texts"] == report["unfiltered"]["samples"]["texts"] == 40
    assert report["unfiltered"] == read_json(tmp_path / "parts.meta.json")["unfiltered"]
    assert all(("rejected_spans" in row) == (kind == "corpus") for row in rows)


def test_prompts_are_cut_from_documents(
    command: Callable[..., list[str]], files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "pairs.jsonl"
    flags = ["--toxic", "sample", "--prompts-from-text", "FILES/documents.jsonl", "--first", "1", "--temperature", "1"]
    assert main(command(output, *flags, "--no-compare-with-samples")) == 0
    expected = prompts_from_text([rows_of(files / "documents.jsonl")[0]["text"]])
    assert [row["prompt"] for row in rows_of(output)] == [
        prompt for prompt in expected if any(prompt == row["prompt"] for row in rows_of(output))
    ]
    report = read_json(tmp_path / "pairs.meta.json")
    assert report["n_prompts"] == len(expected) <= 20 and report["unfiltered"] is None
    assert "before filtering" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--toxic", "pplm"], "--toxic pplm needs --probe-text"),
        (
            ["--toxic", "pplm", "--top-p", "0.9", "--probe-text", "x.jsonl"],
            "--top-p is of no effect with --toxic pplm",
        ),
        (
            ["--probe-text", "x.jsonl"],
            "--probe-text is of no effect with --toxic antiexpert: it is a setting of pplm.",
        ),
        (["--alpha", "3"], "--alpha is of no effect with --toxic antiexpert: it is a setting of dexperts."),
        (
            ["--toxic", "sample", "--steps", "1"],
            "is of no effect with --toxic sample: it is a setting of antiexpert, ",
        ),
        (["--split", "never", "--toxic", "dexperts"], "--split is of no effect with --toxic dexperts"),
        (["--toxic", "corpus"], "--toxic corpus needs --toxic-text"),
        (["--toxic", "corpus", "--toxic-text", "x.jsonl", "--first", "3"], "splits its prompts from --toxic-text"),
        (["--first", "3"], "--first counts documents: it needs --prompts-from-text"),
        (["--prompts", "a", "--prompts-from-text", "b"], "not allowed with argument --prompts"),
        (["--scorer", f"{__name__}:Judge"], "scorer 'judge' is a second judge"),
        (["--near-duplicate", "2", "--toxic", "sample"], "near_duplicate=2.0: a similarity must be above 0"),
    ],
)
def test_flags_that_cannot_work(
    flags: list[str],
    message: str,
    command: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command(tmp_path / "pairs.jsonl", *flags)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


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
    lower = [text.lower() for text in texts]
    auc = style_auc(texts, lower)
    assert auc is not None and auc > 0.99
    chosen, rejected = style_probabilities(texts, lower).reshape(2, -1)
    assert (chosen < 0.5).mean() > 0.95 and (rejected > 0.5).mean() > 0.95


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
    from efface.training.finetune import next_token_loss

    rows = [tiny_tokenizer()(text)["input_ids"] for text in ("The town was cold and the people silent.", "They said")]
    counts = [len(row) - 1 for row in rows]
    single = [next_token_loss(model, [row]) for row in rows]
    weighted = sum(loss * count for loss, count in zip(single, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(next_token_loss(model, rows), weighted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("texts", [[], ["", "x"]])
def test_finetune_without_usable_text(texts: list[str], model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match=f"none of the {len(texts)} texts to fine-tune on has two tokens or more"):
        finetune(model, tiny_tokenizer(), texts, steps=1)
