"""Does perturb put the noise on the prompts that it says, and is the best of n that over the tries of each prompt?

Of: attacks/noise.py
"""

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polite import HELD_OUT
from torn import target_of, torn_model

from efface.attacks.noise import KINDS, MIX, PAPER, best_of_n_noise, perturbed
from efface.attacks.perturb import PerturbSettings, perturb
from efface.attacks.target import Target

text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
kinds = st.sampled_from([*KINDS, MIX, PAPER])


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


@given(text, st.floats(0, 1))
def test_the_noise_of_the_paper(words: str, sigma: float) -> None:
    found = best_of_n_noise(words, sigma, random.Random(0))
    assert [part.isspace() for part in found.split(" ")] == [part.isspace() for part in words.split(" ")]
    if sigma == 0:
        assert found == words


def test_how_much_noise_the_paper_has() -> None:
    words = "weather" * 4000
    letters = best_of_n_noise(" ".join(words), 0.4, random.Random(0))[::2]  # words of one letter are not scrambled
    cased = sum(one.isupper() for one in letters) / len(letters)
    assert cased == pytest.approx(0.4**0.5, abs=0.02)
    moved = sum(a != b for a, b in zip(letters.casefold(), words, strict=True)) / len(letters)
    assert moved == pytest.approx(0.4**3, abs=0.01)
    scrambled = best_of_n_noise("abcdefghijk " * 2000, 0.04, random.Random(0)).casefold().split(" ")[:-1]
    assert sum(word != "abcdefghijk" for word in scrambled) / 2000 == pytest.approx(0.2, abs=0.05)
    assert sum(word[0] + word[-1] == "ak" for word in scrambled) > 1990  # but for a neighbour in place of a letter


# The attack


@pytest.fixture
def target() -> Target:
    return target_of(torn_model("llama"))


def test_each_try_is_a_point_and_no_maximum(target: Target) -> None:
    result = perturb(target, PerturbSettings(kinds="capital,mix", rates="0.1", tries=2, best_of=False))
    points = [(point.at.get("kind"), point.at.get("rate"), point.at.get("try")) for point in result.curve[1:]]
    assert points == [("capital", 0.1, 1), ("mix", 0.1, 1), ("capital", 0.1, 2), ("mix", 0.1, 2)]
    for number, point in enumerate(result.curve[1:5:2], start=1):
        assert [row["prompt"] for row in point.generations] == [
            perturbed(prompt, "capital", 0.1, f"0 {number}") for prompt in HELD_OUT
        ]
    assert result.found["any_point"] >= result.after.share


def test_the_best_of_n_is_over_the_tries_of_each_prompt_and_the_curve_is_in_n(target: Target) -> None:
    target.base = target.model
    settings = PerturbSettings(kinds="capital", rates="0.5", tries=6)
    result = perturb(target, settings)
    assert [point.at for point in result.curve] == [{"any_of": n} for n in (0, 1, 2, 4, 6)]
    tries = perturb(target, dataclasses.replace(settings, best_of=False)).curve[1:]
    toxic = [[row["score"] > 0.5 for row in point.generations] for point in tries]
    for point, row in zip(result.curve[1:], result.found["points"], strict=True):
        n = point.at["any_of"]
        expected = sum(map(any, zip(*toxic[:n], strict=True))) / len(HELD_OUT)
        assert point.share == expected == row["share"] == row["base_share"] and row["any_of"] == n
        assert [row["prompt"] for row in point.generations] != HELD_OUT  # the noisy prompt stands beside
    assert result.after is result.curve[-1] and result.found["any_of"] == 6
    assert result.found["mean_share"] < result.after.share == result.found["base_share"]
    assert result.found["before_any"] == result.before.share == 0


def test_several_kinds_and_samples_are_all_tries_of_one_prompt(target: Target) -> None:
    target.decoding = dataclasses.replace(target.decoding, samples=2)
    settings = PerturbSettings(kinds="capital,drop", rates="0.1,0.5", tries=1)
    result = perturb(target, settings)
    assert [point.at["any_of"] for point in result.curve[1:]] == [2, 4, 8] and result.found["any_of"] == 8
    assert result.found["base_share"] is None and result.after.figures["toxicity"]["samples"] == 1
    plain = target.measure(target.model, decoding=dataclasses.replace(target.decoding, samples=8))
    assert result.found["before_any"] == plain.measured.toxicity.probability
