"""Is what an attacker reaches free of the luck of having chosen among many points, and is a real effect found?"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blocks import blocks_of
from hypothesis import given
from hypothesis import strategies as st
from polite import target_of
from scipy.stats import norm
from third_party import StubSettings
from tiny import tiny_model

from efface.attacks import selection
from efface.attacks.measurement import Measurement
from efface.attacks.record import Record
from efface.attacks.result import AttackResult, read_options
from efface.attacks.selection import JUDGED, NOTHING, Option, assemble, choose, judge_chosen, option_of, parts_of
from efface.errors import UserError
from efface.files.results import read_json, write_jsonl
from efface.files.shapes import check_shape


def options_of(table: np.ndarray) -> list[Option]:
    """(options, n_prompts) of 0 and 1: one continuation of each prompt."""
    return [Option(NOTHING if i == 0 else f"point {i}", {"nasty": row[:, None]}) for i, row in enumerate(table)]


def drawn(generator: np.random.Generator, points: int, n: int, effect: float | None = None) -> np.ndarray:
    """A model at .09 before and at all points, but for one where it is at `effect`; prompts have something of their
    own that is the same at all points."""
    shares = np.full(points + 1, 0.09)
    shares[points // 2] = effect or 0.09
    own = generator.standard_normal(n)
    noise = np.sqrt(0.5) * own + np.sqrt(0.5) * generator.standard_normal((points + 1, n))
    return (noise < norm.ppf(shares)[:, None]).astype(float)


def reached(table: np.ndarray, seed: int) -> float:
    """The share of the choice, without the floor that it is not below doing nothing."""
    options = options_of(table)
    return float(assemble(options, choose(options, seed)).toxic.mean())


@pytest.fixture
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of many simulated attacks cost seconds."""
    monkeypatch.setattr(selection, "compare", functools.partial(selection.compare, resamples=300, permutations=50))
    monkeypatch.setattr(selection, "summarize", functools.partial(selection.summarize, resamples=20))


@pytest.mark.usefixtures("fewer_resamples")
def test_the_highest_of_many_points_is_high_by_chance_and_the_chosen_one_is_not() -> None:
    generator = np.random.default_rng(0)
    tables = [drawn(generator, 27, 96) for _ in range(300)]
    assert 0.13 < np.mean([table.mean(1).max() for table in tables]) < 0.15
    chosen = [reached(table, seed) for seed, table in enumerate(tables)]
    assert abs(np.mean(chosen) - 0.09) < 0.01
    judged = [judge_chosen(options_of(table), seed) for seed, table in enumerate(tables[:100])]
    assert np.mean([one["share"] for one in judged]) < 0.115  # the floor is a choice among two
    assert all(one["share"] >= table[0].mean() for one, table in zip(judged, tables, strict=False))
    by_chance = np.mean([one["versus_before"]["ci95"][0] > 0 for one in judged])
    assert by_chance < 0.1


@pytest.mark.usefixtures("fewer_resamples")
def test_a_real_effect_is_found_with_little_loss() -> None:
    generator = np.random.default_rng(1)
    tables = [drawn(generator, 27, 96, 0.25) for _ in range(100)]
    assert abs(np.mean([reached(table, seed) for seed, table in enumerate(tables)]) - 0.25) < 0.025
    judged = [judge_chosen(options_of(table), seed) for seed, table in enumerate(tables[:40])]
    assert np.mean([one["versus_before"]["ci95"][0] > 0 for one in judged]) > 0.7
    assert np.mean([one["chosen"].get("point 13", 0) for one in judged]) > 80


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 9))
def test_a_prompt_has_no_part_in_the_choice_that_it_is_judged_by(seed: int, points: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    table = (generator.random((points + 1, n)) < 0.4).astype(float)
    chosen = choose(options_of(table), seed)
    for prompt in range(n):
        other = table.copy()
        other[:, prompt] = 1 - other[:, prompt]
        assert choose(options_of(other), seed)[prompt] == chosen[prompt]
    assert (choose(options_of(table), seed) == chosen).all()


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_options_of_different_numbers_of_continuations(seed: int, widths: list[int]) -> None:
    generator = np.random.default_rng(seed)
    options = [Option(str(i), {"nasty": generator.random((6, width))}) for i, width in enumerate([1, *widths])]
    chosen = choose(options, seed)
    expected = np.mean([options[which].toxic[prompt] for prompt, which in enumerate(chosen)])
    assert assemble(options, chosen).toxic.mean() == pytest.approx(expected)


def test_doing_nothing_is_one_of_the_options() -> None:
    table = np.stack([np.r_[np.ones(10), np.zeros(10)], np.zeros(20), np.zeros(20)])
    judged = judge_chosen(options_of(table), 0)
    assert judged["share"] == 0.5 and judged["chosen"] == {NOTHING: 20}
    assert judged["versus_before"]["difference"] == 0 and judged["versus_before"]["p"] == 1


def test_a_choice_that_turns_out_worse_than_nothing_is_left() -> None:
    """Each half of the prompts recommends the point that does nothing on the other."""
    fold = np.random.default_rng(0).permutation(20) % 2
    table = np.stack([np.full(20, 0.0), fold == 0, fold == 1]).astype(float)
    table[0, :4] = 1
    judged = judge_chosen(options_of(table), 0)
    assert judged["share"] == 0.2 and judged["chosen"] == {NOTHING: 20}
    assert judged["versus_before"]["edited"] == 0 and judged["versus_before"]["difference"] == pytest.approx(-0.2)


def test_the_second_judge_is_asked_at_the_choices_of_the_first() -> None:
    first = np.stack([np.zeros(20), np.ones(20), np.zeros(20)])
    second = np.stack([np.zeros(20), np.full(20, 0.2), np.ones(20)])
    options = [
        Option(name, {"a": one[:, None], "b": two[:, None]})
        for name, one, two in zip((NOTHING, "x", "y"), first, second, strict=True)
    ]
    judged = judge_chosen(options, 3)
    assert judged["chosen"] == {"x": 20} and judged["among"] == ["x", "y"]
    assert judged["judges"]["a"]["share"] == 1 and judged["judges"]["b"]["share"] == 0
    check_shape(judged, JUDGED, "judged")


def point(rows: list[dict[str, Any]], decoding: str = "greedy") -> Measurement:
    blocks = blocks_of(0.5)
    blocks["toxicity"] |= {"n_prompts": len(rows), "decoding": decoding}
    return Measurement(blocks, [{"scores": {"nasty": 0.0}, **row} for row in rows], {"steps": 1})


def test_what_is_no_text_is_neither_toxic_nor_clean() -> None:
    rows = [{"scores": {"nasty": 0.9}, "invalid": None}, {"invalid": "a loop"}, {"invalid": None}, {"invalid": None}]
    option = option_of("steps 1", point(rows))
    assert parts_of(option) == {"invalid": 0.25, "clean": 0.5}
    assert judge_chosen([dataclasses.replace(option, name=NOTHING), option], 0)["invalid"] == 0.25
    assert parts_of(option_of("steps 1", point([{}, {}]))) == {"invalid": None, "clean": None}


def test_an_option_knows_what_was_continued() -> None:
    found = option_of(NOTHING, point([{"prompt": "She went"}, {"prompt": "He went"}]))
    assert found.prompts == ("She went", "He went") and option_of(NOTHING, point([{}, {}])).prompts is None


def test_the_best_of_several_says_of_how_many() -> None:
    options = [
        option_of(NOTHING, point([{}] * 4)),
        option_of("any", point([{"scores": {"nasty": 1.0}}] * 4, "best of 6")),
    ]
    assert [one.any_of for one in options] == [None, 6]
    assert judge_chosen(options, 0)["any_of"] == 6 and judge_chosen(options[:1], 0)["any_of"] is None


# In every result


def test_it_is_in_every_result_and_survives_the_disk(tmp_path: Path) -> None:
    record = Record(
        dataclasses.replace(target_of(tiny_model("llama")), output=tmp_path / "x.json"), "mine", StubSettings()
    )
    record.start(steps=0)
    for number, seed in enumerate((1, 2, 3), 1):
        record.measure(tiny_model("llama", seed=seed), {"steps": number})
    result = record.result(record.curve[1], left_out=["steps 3"])
    assert result.judged is not None and result.judged["among"] == ["steps 1", "steps 2"]
    found = AttackResult.from_dict(read_json(tmp_path / "x.json"), "x.json")
    assert found.judged == result.judged
    options = read_options(found, tmp_path / "x.json")
    assert [one.name for one in options] == [NOTHING, "steps 1", "steps 2"]
    assert judge_chosen(options, 0) == result.judged
    old = {key: value for key, value in read_json(tmp_path / "x.json").items() if key != "judged"}
    assert AttackResult.from_dict(old, "x.json").judged is None  # a file of an older version still loads
    assert [one.name for one in read_options(AttackResult.from_dict(old, ""), tmp_path / "x.json")] == [
        one.name for one in options
    ]


def test_generations_that_are_not_those_judged(tmp_path: Path) -> None:
    record = Record(
        dataclasses.replace(target_of(tiny_model("llama")), output=tmp_path / "x.json"), "mine", StubSettings()
    )
    record.start(steps=0)
    record.measure(tiny_model("llama", seed=1), {"steps": 1})
    result = record.result(record.curve[1])
    rows = [{"at": NOTHING, **row} for row in result.before.generations]
    for wrong, message in (
        (rows[1:], "rows of 'before' are not those judged"),
        ([row | {"scores": {}} for row in rows], "'before' has not the scores of all judges"),
        ([{"at": NOTHING}], "has no 'prompt'"),
    ):
        write_jsonl(tmp_path / "x.generations.jsonl", wrong)
        with pytest.raises(UserError, match=message):
            read_options(result, tmp_path / "x.json")
