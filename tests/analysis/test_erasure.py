"""Is what an edit took out of the hidden states found to be gone, and what it left to be there?"""

import json

import numpy as np
import pytest
from tiny import tiny_model, tiny_tokenizer

from efface.analysis.conditional import conditional_probe
from efface.analysis.erasure import ERASURE, compare_erasure, probe_states, probed_layers
from efface.analysis.states import TokenStates
from efface.errors import UserError
from efface.files.shapes import check_shape

ROWS = [
    {"prompt": f"The town {i}", "chosen": " is quiet and old", "rejected": " is a place of silly fools"}
    for i in range(20)
]


def planted(told: float, seed: int = 0, pairs: int = 30, length: int = 16) -> TokenStates:
    """Pairs whose tokens say nothing; the first coordinate of a state tells its label, `told` standard deviations."""
    generator = np.random.default_rng(seed)
    groups, labels = np.repeat(np.arange(pairs), length), np.tile(np.arange(length) % 2, pairs)
    token_ids = generator.integers(0, 20, len(labels))
    hidden = np.random.default_rng(1).standard_normal((len(labels), 4))
    hidden[:, 0] += told * (labels - 0.5)
    return TokenStates(hidden.astype(np.float32), token_ids, labels, groups)


def test_what_fell_is_found_where_it_fell() -> None:
    full, half, none = planted(2.0), planted(1.0), planted(0.0)
    found = json.loads(json.dumps(compare_erasure({1: full, 5: full}, {1: full, 5: none}, resamples=200)))
    check_shape(found, ERASURE, "found")
    assert (found["n_layers"], found["n_pairs"], list(found["layers"])) == (6, 30, ["1", "5"])
    same, gone = found["layers"].values()
    assert same["change"] == 0 and same["left"] == 1 and same["change_ci95"] == [0, 0]
    assert gone["change_ci95"][1] < -0.1 and abs(gone["left"]) < 0.2
    most = found["most"]
    assert most["fall"]["layer"] == 5 and most["fall"]["auc_gain"] == pytest.approx(-gone["change"])
    assert most["fall"]["auc_gain_ci95"][0] > 0.1 and most["rise"]["auc_gain"] == 0
    assert most["edited"]["layer"] == 1 and most["edited"]["auc_gain_ci95"][0] > 0.1
    grown = compare_erasure({1: half}, {1: full}, resamples=200)
    assert grown["most"]["rise"]["auc_gain_ci95"][0] > 0 > grown["most"]["fall"]["auc_gain_ci95"][1]
    assert grown["layers"]["1"]["left"] > 1
    assert compare_erasure({1: none}, {1: full}, resamples=200)["layers"]["1"]["left"] is None


def test_the_gains_are_those_of_the_linear_probe() -> None:
    base, edited = planted(2.0), planted(1.0)
    found = compare_erasure({0: base}, {0: edited}, resamples=100, seed=3)["layers"]["0"]
    for side, states in (("base", base), ("edited", edited)):
        assert found[side] == conditional_probe(states, hidden_layer=False, resamples=100, seed=3).to_dict()


@pytest.mark.parametrize(
    ("n_layers", "expected"), [(30, [7, 14, 22, 29]), (12, [2, 5, 8, 11]), (3, [0, 1, 2]), (1, [0])]
)
def test_quarters_of_the_depth(n_layers: int, expected: list[int]) -> None:
    assert probed_layers(n_layers) == expected


def test_states_are_of_the_tokens_of_both_sides_at_these_layers() -> None:
    states = probe_states(tiny_model("gpt2"), tiny_tokenizer(), ROWS)
    assert list(states) == [0, 1]
    assert set(states[0].labels.tolist()) == {0, 1} and set(states[0].pairs.tolist()) == set(range(20))
    found = compare_erasure(states, states, resamples=50)
    assert found["n_pairs"] == 20 and found["most"]["fall"]["auc_gain"] == 0


def test_pairs_of_one_prompt_are_never_parted() -> None:
    """They share what they begin with and, mostly, what is chosen: a probe that has seen one has seen the others."""
    rows = [row | {"rejected": f"{row['rejected']} {number}"} for row in ROWS for number in range(2)]
    states = probe_states(tiny_model("gpt2"), tiny_tokenizer(), rows)
    assert set(states[0].pairs.tolist()) == set(range(40))
    assert states[0].groups.tolist() == (states[0].pairs // 2).tolist(), "in the order in which prompts come"
    found = compare_erasure(states, states, resamples=50)
    assert found["n_pairs"] == 40 and found["layers"]["1"]["base"]["n_groups"] == 20
    with pytest.raises(UserError, match="one class is in 10 texts or prompts"):
        compare_erasure(*[probe_states(tiny_model("gpt2"), tiny_tokenizer(), rows[:20])] * 2, resamples=50)


def test_pairs_of_different_prompts_are_groups_of_their_own() -> None:
    states = probe_states(tiny_model("gpt2"), tiny_tokenizer(), ROWS[::-1])[1]
    assert np.array_equal(states.groups, states.pairs)
