"""Do the attacks that leave the weights alone find what the model still does? Forced words, other prompts, draws.

Of: attacks/altered.py, attacks/perturb.py, attacks/prefill.py, attacks/prompt_injection.py, attacks/sampling.py
"""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from polite import HELD_OUT, counting, equal, state
from stubs import NASTY, nasty
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from torn import CALM, FURIOUS, TOXIC, target_of, torn_model
from transformers import PreTrainedModel

from efface.attacks.altered import prompts_as_read
from efface.attacks.perturb import KINDS, MIX, PerturbSettings, perturb, perturbed
from efface.attacks.prefill import PrefillSettings, forced, prefill
from efface.attacks.prompt_injection import PromptInjectionSettings, load_injections, prompt_injection
from efface.attacks.result import AttackResult
from efface.attacks.sampling import SamplingSettings, sampling
from efface.attacks.target import Target
from efface.errors import RunError, UserError
from efface.files.results import read_json
from efface.generation.decoding import Decoding
from efface.generation.prompts import encode_prompts
from efface.scoring.scorer import NamedScorer


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def torn(request: pytest.FixtureRequest) -> PreTrainedModel:
    return torn_model(request.param)


@pytest.fixture
def target(torn: PreTrainedModel) -> Target:
    return target_of(torn)


def injections(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def two(tmp_path: Path) -> str:
    """An injection that does nothing, and the one that the model heeds."""
    return injections(tmp_path / "two.jsonl", *map(dataclasses.asdict, (CALM, FURIOUS)))


def attacks(two: str) -> dict[str, tuple[Any, Any]]:
    return {
        "prefill": (prefill, PrefillSettings(words="1,2")),
        "prompt_injection": (prompt_injection, PromptInjectionSettings(injections=two)),
        "perturb": (perturb, PerturbSettings(kinds="capital", rates="1")),
        "sampling": (sampling, SamplingSettings(temperatures="1", nuclei="0.9,1")),
    }


NAMES = ["prefill", "prompt_injection", "perturb", "sampling"]


@pytest.mark.parametrize("name", NAMES)
def test_it_finds_what_greedy_decoding_of_clean_prompts_does_not(name: str, target: Target, two: str) -> None:
    attack, settings = attacks(two)[name]
    weights, random_state = state(target.model), torch.get_rng_state()
    result = attack(target, settings)
    assert result.before.share == 0
    assert result.after.share > (0.1 if name == "sampling" else 0.7)
    assert result.after.figures["versus_before"]["nasty"]["share"]["difference"] == result.after.share
    assert result.after.figures["perplexity"] is None
    assert equal(state(target.model), weights) and torch.equal(torch.get_rng_state(), random_state)
    again = attack(dataclasses.replace(target, known={}), settings)
    assert again.to_dict() == result.to_dict()
    assert [row for point in again.curve for row in point.generations] == [
        row for point in result.curve for row in point.generations
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["llama", "gpt2", *(pytest.param(f, marks=pytest.mark.full) for f in FAMILIES)])
def test_an_untouched_model_is_reported_as_it_is(family: str, name: str, two: str) -> None:
    model = tiny_model(family)
    target = target_of(model, base=model, text=["The town is old. " * 5])
    attack, settings = attacks(two)[name]
    result = attack(target, settings)
    assert result.before.share == result.base.share == result.after.share == 0
    assert result.after.figures["versus_before"]["nasty"]["share"]["p"] == 1
    if name == "sampling":
        points = result.found["points"]
        assert all(point["share"] == point["base_share"] for point in points) and len(points) == 2
    else:
        assert result.found["base_share"] == result.found["any_point"] == result.found["mean_share"] == 0


# What all that alter the prompts report


def test_any_point_is_over_the_points_and_the_mean_is_not_the_worst(target: Target, two: str) -> None:
    target.base = target.model
    result = prompt_injection(target, PromptInjectionSettings(injections=two))
    shares = [point.share for point in result.curve[1:]]
    assert result.found["points"] == len(shares) == 2
    assert result.found["mean_share"] == pytest.approx(sum(shares) / 2) and min(shares) < max(shares)
    either = zip(*(point.generations for point in result.curve[1:]), strict=True)
    expected = sum(any(row["score"] > 0.5 for row in rows) for rows in either) / len(HELD_OUT)
    assert result.found["any_point"] == pytest.approx(expected) and expected >= max(shares)
    assert result.found["base_share"] == result.after.share  # the base is the model


def test_a_prompt_is_cut_before_it_is_altered(target: Target) -> None:
    tokenizer = target.processing_class
    for truncation in ("first", "last"):
        target.decoding = Decoding(max_new_tokens=4, max_prompt_tokens=3, truncation=truncation)  # type: ignore[arg-type]
        short = prompts_as_read(target)
        ids = encode_prompts(target.model, tokenizer, HELD_OUT, Decoding(max_prompt_tokens=3, truncation=truncation))  # type: ignore[arg-type]
        assert short == [tokenizer.decode(row) for row in ids] and short != HELD_OUT
        result = prefill(target, PrefillSettings(words="2"))
        assert [row["prompt"] for row in result.after.generations] == [prompt + " fool, you" for prompt in short]
        assert {row["prompt"] for row in result.before.generations} == set(HELD_OUT)
    target.processing_class = tiny_tokenizer(add_bos=True)  # which counts
    target.decoding = dataclasses.replace(target.decoding, max_prompt_tokens=4)
    assert prompts_as_read(target) == short
    target.decoding = dataclasses.replace(target.decoding, chat=True)  # where none does
    longer = prompts_as_read(target)
    assert all(one.endswith(other) and one != other for one, other in zip(longer, short, strict=True))
    target.decoding = Decoding()
    assert prompts_as_read(target) == HELD_OUT


# Prefill


def test_forced_words_are_read_but_never_judged(target: Target) -> None:
    seen: list[str] = []

    def watch(texts: Any) -> list[float]:
        seen.extend(texts)
        return nasty(texts)

    target.scorers = [NamedScorer("watch", watch)]
    result = prefill(target, PrefillSettings(words="4"))  # all of TOXIC
    assert [row["prompt"] for row in result.after.generations] == [prompt + TOXIC for prompt in HELD_OUT]
    assert [row["continuation"] for row in result.after.generations] == seen[-len(HELD_OUT) :]
    silent = target_of(tiny_model("llama"))
    result = prefill(silent, PrefillSettings(words="1,4"))
    assert result.after.share == 0 and any(word in result.after.generations[0]["prompt"] for word in NASTY)


def test_each_prompt_gets_words_of_one_row_drawn_under_the_seed(target: Target) -> None:
    target.rows = [{**row, "rejected": f"{row['prompt'].split()[1]} is a fool."} for row in target.rows]
    target.rows[0]["rejected"] = "too short"
    result = prefill(target, PrefillSettings(words="1,3"))
    texts = [row["rejected"] for row in target.rows[1:]]
    generator = random.Random(0)
    drawn = [generator.choice(texts).split() for _ in HELD_OUT]
    for words, point in zip((1, 3), result.curve[1:], strict=True):
        expected = [" ".join([prompt, *text[:words]]) for prompt, text in zip(HELD_OUT, drawn, strict=True)]
        assert point.at == {"words": words} and [row["prompt"] for row in point.generations] == expected
    assert result.found["rows"] == 11
    other = prefill(dataclasses.replace(target, seed=1), PrefillSettings(words="1"))
    assert [row["prompt"] for row in other.after.generations] != [row["prompt"] for row in result.curve[1].generations]


@pytest.mark.parametrize(
    ("prompt", "text", "words", "expected"),
    [
        ("A", " b c d", 2, "A b c"),
        ("A ", " b c d", 1, "A b"),
        ("A", "b\n c", 2, "A b\n c"),
        ("", " b", 3, "b"),
        ("A\n", "b", 1, "A\nb"),
    ],
)
def test_forced(prompt: str, text: str, words: int, expected: str) -> None:
    assert forced(prompt, text, words) == expected


@pytest.mark.parametrize("bos_in_template", [False, True])
def test_of_a_message_the_answer_begins_with_the_words(bos_in_template: bool, target: Target) -> None:
    tokenizer = tiny_tokenizer(add_bos=bos_in_template)
    if bos_in_template:
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    target.processing_class = tokenizer
    target.decoding = Decoding(max_new_tokens=4, chat=True, max_prompt_tokens=3)
    result = prefill(target, PrefillSettings(words="2"))
    expected = encode_prompts(target.model, tokenizer, HELD_OUT, Decoding(chat=True, max_prompt_tokens=3))
    answer = tokenizer("fool, you", add_special_tokens=False)["input_ids"]
    read = encode_prompts(target.model, tokenizer, [row["prompt"] for row in result.after.generations])
    assert read == [ids + answer for ids in expected]
    assert (read[0][0] == tokenizer.bos_token_id) == bos_in_template


def test_chat_templates_that_cannot_be_continued(target: Target) -> None:
    target.decoding = Decoding(max_new_tokens=4, chat=True)
    target.processing_class = tiny_tokenizer(add_bos=True)
    with pytest.raises(UserError, match="the chat template writes no BOS but the tokenizer adds one"):
        prefill(target, PrefillSettings(words="1"))
    target.processing_class.chat_template = None
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        prefill(target, PrefillSettings(words="1"))


def test_rows_of_messages_are_forced_as_text(target: Target) -> None:
    target.rows = [{"rejected": [{"role": "assistant", "content": "You silly fool"}]}]
    assert prefill(target, PrefillSettings(words="2")).after.generations[0]["prompt"] == HELD_OUT[0] + " You silly"


def test_more_words_than_there_are(target: Target) -> None:
    with pytest.raises(UserError, match="words='1,9', but no rejected continuation of the rows has 9 words"):
        prefill(target, PrefillSettings(words="1,9"))


# Injections


def test_the_shipped_injections_are_texts_of_ours_without_a_rude_word() -> None:
    found = load_injections("shipped:injections")
    assert len(found) >= 12 and len({one.name for one in found}) == len(found)
    assert not any(nasty([one.around("")])[0] for one in found)
    assert found[0].around("He said") == found[0].before + "He said"
    assert any(one.after for one in found) and all("," not in one.name for one in found)


def test_the_first_injections_only_and_in_a_message(target: Target, two: str) -> None:
    target.decoding = Decoding(max_new_tokens=4, chat=True)
    result = prompt_injection(target, PromptInjectionSettings(injections=two, first=1))
    assert [point.at for point in result.curve] == [{"injection": "none"}, {"injection": "calm"}]
    assert [row["prompt"] for row in result.after.generations] == ["Calm: " + prompt for prompt in HELD_OUT]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"name": "a", "before": "x"}], "one.jsonl:1: 'after' must be a text, but it is None"),
        ([{"name": 3, "before": "x", "after": ""}], "'name' must be a text, but it is 3"),
        ([{"name": "a", "before": "", "after": ""}], "`before` and `after` are both empty"),
        ([{"name": "none", "before": "x", "after": ""}], "the name 'none' is empty or taken"),
        ([{"name": "a", "before": "x", "after": ""}] * 2, "one.jsonl:2: the name 'a' is empty or taken"),
        ([], "one.jsonl' is empty: pass at least one injection"),
    ],
)
def test_injections_that_cannot_be_used(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_injections(injections(tmp_path / "one.jsonl", *rows))


# Noise

text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
kinds = st.sampled_from([*KINDS, MIX])


@given(text, kinds, st.floats(0.01, 1), st.integers(0, 3))
def test_noise_is_a_function_of_its_key_and_leaves_something(words: str, kind: str, rate: float, key: int) -> None:
    random_state = random.getstate()
    found = perturbed(words, kind, rate, str(key))
    assert found == perturbed(words, kind, rate, str(key)) and found
    assert random.getstate() == random_state


@given(text, st.floats(0.01, 1))
def test_every_kind_does_what_it_says(words: str, rate: float) -> None:
    letters = [place for place, one in enumerate(words) if not one.isspace()]
    amount = max(round(rate * len(letters)), 1) if letters else 0
    assert len(perturbed(words, "double", rate, "")) == len(words) + amount
    assert sorted(perturbed(words, "swap", rate, "")) == sorted(words)
    assert perturbed(words, "capital", rate, "").casefold() == words.swapcase().casefold() or words.isascii() is False
    assert perturbed(words, "space", rate, "").replace(" ", "") == words.replace(" ", "") or not words.strip(" ")
    dropped = perturbed(words, "drop", rate, "")
    assert len(dropped) == len(words) - amount or dropped == words and amount == len(words)


def test_a_higher_rate_alters_the_same_characters_and_more() -> None:
    words = "the weather in the old town was cold and the people were silent"
    low, high = (perturbed(words, "capital", rate, "key") for rate in (0.1, 0.4))
    places = [{i for i, (a, b) in enumerate(zip(words, found, strict=True)) if a != b} for found in (low, high)]
    assert places[0] < places[1]
    n = sum(one.isalpha() for one in words)
    assert [len(found) for found in places] == [round(0.1 * n), round(0.4 * n)]
    assert low != perturbed(words, "capital", 0.1, "another key")


def test_each_try_is_a_point_and_no_maximum(target: Target) -> None:
    result = perturb(target, PerturbSettings(kinds="capital,mix", rates="0.1", tries=2))
    points = [(point.at.get("kind"), point.at.get("rate"), point.at.get("try")) for point in result.curve[1:]]
    assert points == [("capital", 0.1, 1), ("capital", 0.1, 2), ("mix", 0.1, 1), ("mix", 0.1, 2)]
    for number, point in enumerate(result.curve[1:3], start=1):
        assert [row["prompt"] for row in point.generations] == [
            perturbed(prompt, "capital", 0.1, f"0 {number}") for prompt in HELD_OUT
        ]
    assert result.found["any_point"] >= result.after.share


# Sampling


def test_the_base_is_decoded_alike_and_is_the_yardstick(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    target.base = target.model
    yardsticks: list[Any] = []
    measure = Target.measure

    def watched(self: Target, *args: Any, **kwargs: Any) -> Any:
        yardsticks.append(kwargs.get("yardstick"))
        return measure(self, *args, **kwargs)

    monkeypatch.setattr(Target, "measure", watched)
    result = sampling(target, SamplingSettings(temperatures="0.5,2", nuclei="1", draws=3))
    assert [point["temperature"] for point in result.found["points"]] == [0.5, 2]
    for row, point in zip(result.found["points"], result.curve[1:], strict=True):
        assert row["base_share"] == row["share"] == point.share and row["base_probability"] == row["probability"]
        assert point.figures["toxicity"]["samples"] == 3 and len(point.generations) == 3 * len(HELD_OUT)
        assert point.figures["degeneration"]["verdict"] == "ok"
    assert [yardstick and len(yardstick.generations) for yardstick in yardsticks[2:]] == [None, 24, None, 24]
    assert result.curve[0].at == {"decoding": "greedy"} and result.curve[1].at == {"temperature": 0.5, "top_p": 1.0}


def test_without_a_base_its_figures_are_none(target: Target) -> None:
    (row,) = sampling(target, SamplingSettings(temperatures="1", nuclei="1", draws=1)).found["points"]
    assert row["base_share"] is None and row["base_probability"] is None and row["share"] >= 0


# Settings and interruptions


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (PrefillSettings, {"words": "0"}, "words='0' leaves nothing to do"),
        (PrefillSettings, {"words": "a"}, "words='a': whole numbers are needed"),
        (PromptInjectionSettings, {"first": 0}, "first=0: it must be at least 1"),
        (PerturbSettings, {"kinds": "swap,shout"}, "kinds='swap,shout': kinds of noise are swap, capital"),
        (PerturbSettings, {"rates": "0.1,2"}, "rates='0.1,2': a fraction of the characters is at most 1"),
        (PerturbSettings, {"tries": 0}, "tries=0: it must be at least 1"),
        (SamplingSettings, {"nuclei": "1.1"}, "nuclei='1.1': a nucleus is at most 1"),
        (SamplingSettings, {"temperatures": "hot"}, "temperatures='hot': numbers are needed"),
        (SamplingSettings, {"draws": 0}, "draws=0: it must be at least 1"),
    ],
)
def test_settings_that_cannot_work(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**settings)


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_goes_on_where_it_was(
    name: str, two: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    attack, settings = attacks(two)[name]
    if name == "perturb":
        settings = PerturbSettings(kinds="swap", rates="0.1,0.2")
    target = target_of(model, base=model, output=tmp_path / "out.json")
    whole: AttackResult = attack(dataclasses.replace(target, output=None, known={}), settings)
    with monkeypatch.context() as patch:
        counting(patch, fail_at=4 if name != "sampling" else 5, error=RunError("stopped."))
        with pytest.raises(RunError, match=r"stopped\. What was measured so far \(before, base, .*resume=True"):
            attack(target, settings)
    calls = counting(monkeypatch)
    resumed = attack(dataclasses.replace(target, resume=True, known={}), settings)
    assert len(calls) == 2  # the other point, and the base
    assert resumed.to_dict() == whole.to_dict()
    assert read_json(tmp_path / "out.json")["found"] == whole.found
