"""Do states, probes and their controls mean what they say?

Of: analysis/heldout.py, analysis/states.py
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny import BOS_ID, tiny_model, tiny_tokenizer

from efface.analysis.heldout import HeldOut
from efface.analysis.probes import LinearProbe, fit_probe
from efface.analysis.states import pooled_states, text_token_ids, token_states
from efface.errors import RunError, UserError
from efface.model.blocks import capture_residuals
from efface.resampling import draw_resamples

TEXTS = [
    "The weather in the old town was cold.",
    "He is a fool.",
    "She went to the market and bought bread, apples and a little cheese.",
    "Silly!",
    "There is nothing better than the weather in the spring.",
]
ROWS = [
    {"prompt": "The weather in the", "chosen": " old town was cold", "rejected": " silly"},
    {"prompt": "He is", "chosen": " an engineer", "rejected": " a fool and nobody likes him"},
    {"prompt": "She went to the market and", "chosen": " bought bread", "rejected": " said silly things"},
]


def logistic(regularisation: float) -> LogisticRegression:
    return LogisticRegression(C=regularisation, max_iter=500, class_weight="balanced")


def standardised(regularisation: float) -> Any:
    """What a probe is to do, put together from scikit-learn's own parts."""
    return make_pipeline(StandardScaler(), logistic(regularisation))


def planted(n: int = 200, d: int = 6, strength: float = 3.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """States in which the label moves the first coordinate, alternating labels, coordinates of very unlike scales."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    hidden = generator.normal(size=(n, d))
    hidden[:, 0] += strength * labels
    return (hidden * 10.0 ** np.arange(d) + 5).astype(np.float32), labels


def residuals(model: torch.nn.Module, ids: list[int], layer: int) -> np.ndarray:
    """(T, d) of one sequence on its own."""
    with torch.no_grad(), capture_residuals(model, [layer]) as found:
        model(input_ids=torch.tensor([ids]))
    return found[layer][0].numpy()


def test_token_states_are_those_of_each_continuation_token_on_its_own() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    states = token_states(model, tokenizer, ROWS, [0, 1], batch_size=2)
    sides = [(0, "chosen", 0), (0, "chosen", 1), (1, "rejected", 0), (1, "rejected", 1)]  # first batch
    sides += [(0, "chosen", 2), (1, "rejected", 2)]
    for layer in (0, 1):
        hidden, ids, labels, pairs = [], [], [], []
        for label, field, number in sides:
            prompt = tokenizer(ROWS[number]["prompt"])["input_ids"]
            continuation = tokenizer(ROWS[number][field])["input_ids"]
            hidden.append(residuals(model, prompt + continuation, layer)[len(prompt) :])
            ids += continuation
            labels += [label] * len(continuation)
            pairs += [number] * len(continuation)
        np.testing.assert_allclose(states[layer].hidden, np.concatenate(hidden), atol=1e-4)
        assert states[layer].token_ids.tolist() == ids
        assert states[layer].labels.tolist() == labels and states[layer].pairs.tolist() == pairs


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "opt"])
@pytest.mark.parametrize("add_bos", [False, True])
def test_pooled_states_are_the_means_over_each_text_on_its_own(family: str, add_bos: bool) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer(add_bos=add_bos)
    pooled = pooled_states(model, tokenizer, TEXTS, [0, -1], batch_size=2, max_tokens=9)
    assert list(pooled) == [0, 1] and pooled[0].dtype == np.float32
    for layer in (0, 1):
        for number, own in enumerate(text_token_ids(tokenizer, TEXTS, max_tokens=9)):
            assert len(own) <= 9 and BOS_ID not in own
            bos = [BOS_ID] * add_bos
            expected = residuals(model, bos + own, layer)[len(bos) :].mean(0)
            np.testing.assert_allclose(pooled[layer][number], expected, rtol=1e-3, atol=1e-4)


def test_pooled_states_do_not_run_the_layers_above() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    calls: list[int] = []
    model.model.layers[1].self_attn.register_forward_hook(lambda *args: calls.append(1))
    pooled_states(model, tokenizer, TEXTS, [0])
    assert not calls


def test_pooled_states_errors() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    with pytest.raises(UserError, match=r"text 1 \(''\) has no tokens"):
        pooled_states(model, tokenizer, ["a", ""], [0])
    with pytest.raises(UserError, match="layer 2 does not exist"):
        pooled_states(model, tokenizer, ["a"], [2])
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="layer 1: a hidden state is not finite"):
        pooled_states(model, tokenizer, ["a"], [0, 1])


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(4, 30), st.integers(1, 5))
def test_figures_are_those_of_scikit_learn(seed: int, n: int, distinct: int) -> None:
    generator = np.random.default_rng(seed)
    labels = np.concatenate([[0, 0, 1, 1], generator.integers(0, 2, n - 4)])
    scores = generator.integers(-distinct, distinct + 1, n).astype(float)  # many ties
    held_out = HeldOut(labels, None, folds=2, seed=seed)
    table = held_out.figures(scores, labels, resamples=3)
    draws = np.concatenate([np.ones((1, n)), *draw_resamples(n, 3, seed)])
    for times, (accuracy, auc) in zip(draws, table, strict=True):
        if len(set(labels[times > 0])) < 2:
            assert np.isnan(accuracy) and np.isnan(auc)
            continue
        assert auc == pytest.approx(roc_auc_score(labels, scores, sample_weight=times))
        assert accuracy == pytest.approx(balanced_accuracy_score(labels, scores > 0, sample_weight=times))


def test_intervals_are_over_groups_not_over_states() -> None:
    hidden, labels = planted(80, strength=1.0)
    alone = HeldOut(labels, None, folds=5, seed=0)
    copies = HeldOut(np.repeat(labels, 7), np.repeat(np.arange(80), 7), folds=5, seed=0)
    of_copies = copies.figures(np.repeat(hidden[:, 0], 7), np.repeat(labels, 7), 50)
    np.testing.assert_allclose(of_copies, alone.figures(hidden[:, 0], labels, 50))


def test_groups_are_never_split_between_training_and_test() -> None:
    generator = np.random.default_rng(0)
    centers, classes = generator.normal(size=(40, 60)), np.arange(40) % 2
    groups = np.repeat(np.arange(40), 10)
    hidden = centers[groups] + 0.01 * generator.normal(size=(400, 60))  # a group is easily learned by heart
    together = fit_probe(hidden, classes[groups], groups=groups, regularisation=1.0).quality
    split = fit_probe(hidden, classes[groups], regularisation=1.0).quality
    assert split.auc > 0.99
    assert together.auc < 0.75 and together.n_groups == 40 and together.n == 400


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 12), st.integers(2, 12), st.integers(0, 5))
def test_every_probe_is_trained_on_both_classes(seed: int, folds: int, benign: int, toxic: int, mixed: int) -> None:
    """Whatever the numbers of groups of one class and of both; scikit-learn refuses a single class."""
    if min(benign, toxic) + mixed < folds:
        return
    labels = np.array([0] * benign + [1] * toxic + [0, 1] * mixed)
    groups = np.concatenate([np.arange(benign + toxic), benign + toxic + np.repeat(np.arange(mixed), 2)])
    held_out = HeldOut(labels, groups, folds, seed)
    hidden = np.random.default_rng(seed).normal(size=(len(labels), 2))
    for each in (labels, held_out.shuffled_labels()):
        assert len(held_out.scores(standardised(0.01), hidden, each)) == len(labels)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 20), st.integers(2, 20), st.integers(0, 20))
def test_shuffled_labels_keep_balance_and_blocks(seed: int, benign: int, toxic: int, mixed: int) -> None:
    labels = np.array([0] * benign * 2 + [1] * toxic * 2 + [0, 1] * mixed)
    groups = np.repeat(np.arange(benign + toxic + mixed), 2)
    shuffled = HeldOut(labels, groups, 2, seed).shuffled_labels()
    assert shuffled.sum() == labels.sum()
    of_group, changed = shuffled.reshape(-1, 2), (shuffled != labels).reshape(-1, 2)
    assert (of_group[: benign + toxic, 0] == of_group[: benign + toxic, 1]).all()
    assert (changed[:, 0] == changed[:, 1]).all()


def test_a_planted_direction_is_found_and_shuffled_labels_are_not() -> None:
    hidden, labels = planted(400)
    probe = fit_probe(hidden, labels)
    quality = probe.quality
    assert quality.balanced_accuracy > 0.9 and quality.auc > 0.97
    assert quality.ci95[0] <= quality.balanced_accuracy <= quality.ci95[1]
    assert quality.auc_ci95[0] <= quality.auc <= quality.auc_ci95[1] <= 1
    assert quality.shuffled == pytest.approx(0.5, abs=0.1) and quality.shuffled_auc == pytest.approx(0.5, abs=0.1)
    assert (quality.n, quality.n_groups) == (400, 400)
    effect = np.abs(probe.weight * hidden.std(0))
    assert effect.argmax() == 0 and effect[0] > 3 * effect[1:].max()


def test_logits_of_raw_states_are_those_of_the_standardised_probe() -> None:
    hidden, labels = planted()
    probe = fit_probe(hidden, labels)
    expected = standardised(0.01).fit(hidden, labels).decision_function(hidden)
    np.testing.assert_allclose(probe.logits(hidden), expected, atol=1e-4)
    states = torch.tensor(hidden, requires_grad=True)
    logits = probe.logits(states)
    np.testing.assert_allclose(logits.detach().numpy(), expected, atol=1e-4)
    logits.sum().backward()
    np.testing.assert_allclose(states.grad[0].numpy(), probe.weight)


def test_a_saved_probe_comes_back(tmp_path: Path) -> None:
    probe = fit_probe(*planted())
    probe.save(tmp_path / "probe.safetensors")
    back = LinearProbe.load(tmp_path / "probe.safetensors")
    assert (back.weight == probe.weight).all() and back.weight.dtype == np.float32
    assert back.bias == probe.bias and back.quality == probe.quality
    assert [file.name for file in tmp_path.iterdir()] == ["probe.safetensors"]


def test_a_file_without_a_probe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"junk holds no linear probe"):
        LinearProbe.load(tmp_path / "junk")
    with pytest.raises(UserError, match=r"missing holds no linear probe"):
        LinearProbe.load(tmp_path / "missing")


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    hidden, labels = planted(20)
    with pytest.raises(UserError, match=r"20 hidden states and 19 labels"):
        fit_probe(hidden, labels[:19])
    with pytest.raises(UserError, match=r"shape \(20,\): a table"):
        fit_probe(hidden[:, 0], labels)
    with pytest.raises(UserError, match="not all finite"):
        fit_probe(np.where(hidden > 0, hidden, np.nan), labels)
    with pytest.raises(UserError, match="labels must be a list of 0 and 1"):
        fit_probe(hidden, labels + 1)
    with pytest.raises(UserError, match="labels must be a list of 0 and 1"):
        fit_probe(hidden, labels * 0)
    with pytest.raises(UserError, match="20 states and 3 groups"):
        fit_probe(hidden, labels, groups=np.arange(3))
    with pytest.raises(UserError, match=r"folds=5, and one class is in 4 group\(s\)"):
        fit_probe(hidden[:9], labels[:9])
