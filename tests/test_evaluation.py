"""Are the figures right, is degenerate text caught, and does `evaluate` write what the design says?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny import VOCAB_SIZE, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from efface.errors import RunError, UserError
from efface.evaluation import Evaluation, evaluate
from efface.evaluation.degeneration import Degeneration, measure
from efface.evaluation.evaluate import generations_path
from efface.evaluation.generation import continuation_nll, generate
from efface.evaluation.scorers import NamedScorer
from efface.evaluation.toxicity import Ratio, ratio_ci, summarize

PROMPTS = ["The weather in the old town", "You", "She went to the market and bought bread, apples and", "He is an"]
TEXT = ["The history of the town is the history of its river and its people.", "They said that nothing is better."] * 3


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedModel:
    return tiny_model("gpt2")


def half(texts: Sequence[str]) -> np.ndarray:
    return np.array([0.9 if len(text) % 2 else 0.1 for text in texts])


SCORER = NamedScorer("half", half)


# Toxicity


def test_figures_by_hand() -> None:
    scores = np.array([[0.1, 0.6, 0.2], [0.5, 0.3, 0.4], [0.9, 0.8, 0.7]])
    found = summarize(scores, scorer="s", decoding="d").to_dict()
    assert found["mean"] == pytest.approx(0.5)
    assert found["share"] == pytest.approx(4 / 9)  # 0.5 itself does not count
    assert found["expected_maximum"] == pytest.approx((0.6 + 0.5 + 0.9) / 3)
    assert found["probability"] == pytest.approx(2 / 3)
    keys = "scorer decoding n_prompts samples mean share expected_maximum probability ci95"
    assert list(found) == keys.split()
    assert (found["scorer"], found["decoding"], found["n_prompts"], found["samples"]) == ("s", "d", 3, 3)
    json.dumps(found, allow_nan=False)


tables = st.tuples(st.integers(1, 8), st.integers(1, 4)).flatmap(
    lambda shape: arrays(float, shape, elements=st.floats(0, 1))
)


@settings(max_examples=50, deadline=None)
@given(tables)
def test_figures_are_ordered(scores: np.ndarray) -> None:
    found = summarize(scores, scorer="s", decoding="d", resamples=200)
    assert 0 <= found.share <= found.probability <= 1
    assert 0 <= found.mean <= found.expected_maximum + 1e-12 <= 1 + 2e-12
    for lower, upper in found.ci95.values():
        assert 0 <= lower <= upper <= 1
    if scores.shape[1] == 1:
        assert found.share == found.probability and found.mean == found.expected_maximum


def test_interval_contains_the_estimate_and_covers() -> None:
    scores = np.random.default_rng(0).beta(0.4, 1.5, size=(200, 4))
    found = summarize(scores, scorer="s", decoding="d")
    for figure, (lower, upper) in found.ci95.items():
        assert lower < getattr(found, figure) < upper
    # For one sample per prompt the bootstrap agrees with the normal interval of a mean.
    one = summarize(scores[:, :1], scorer="s", decoding="d")
    width = 2 * 1.96 * scores[:, 0].std() / np.sqrt(200)
    assert np.diff(one.ci95["mean"])[0] == pytest.approx(width, rel=0.1)
    assert summarize(scores, scorer="s", decoding="d") == found
    # Four equal samples of a prompt are no more evidence than one.
    repeated = summarize(np.repeat(scores[:, :1], 4, axis=1), scorer="s", decoding="d")
    np.testing.assert_allclose(repeated.ci95["mean"], one.ci95["mean"])


def test_interval_of_many_prompts_in_blocks() -> None:
    found = summarize(np.full((5000, 1), 0.25), scorer="s", decoding="d")
    np.testing.assert_allclose(found.ci95["mean"], [0.25, 0.25])


def test_figures_refuse() -> None:
    for shape in ((0, 3), (3, 0), (3,)):
        with pytest.raises(UserError, match="scores of shape"):
            summarize(np.zeros(shape), scorer="s", decoding="d")
    for bad in (np.nan, 1.5):
        with pytest.raises(UserError, match="must be finite and within 0 and 1"):
            summarize(np.array([[bad]]), scorer="s", decoding="d")


def test_ratio() -> None:
    generator = np.random.default_rng(0)
    base = (generator.random((300, 2)) < 0.5).astype(float)
    edited = base * (generator.random((300, 2)) < 0.2)
    found = ratio_ci(edited, base)
    assert found.ratio == pytest.approx((edited > 0.5).mean() / (base > 0.5).mean())
    assert found.lower < found.ratio < found.upper < 0.35
    assert ratio_ci(base, base) == (1.0, 1.0, 1.0)  # paired: no spread at all
    assert ratio_ci(edited[:, :1], base, figure="mean").ratio < 0.3


def test_ratio_over_a_base_that_is_not_toxic() -> None:
    zero, one = np.zeros((20, 1)), np.ones((20, 1))
    assert ratio_ci(one, zero) == (np.inf, np.inf, np.inf)
    assert ratio_ci(zero, zero) == (np.inf, np.inf, np.inf)  # nothing was reduced
    base = zero.copy()
    base[0] = 1.0  # about a third of the resamples hold no toxic prompt
    found = ratio_ci(zero, base)
    assert found.ratio == 0.0 and found.upper == np.inf
    assert found.to_list() == [0.0, 0.0, None]
    assert Ratio(0.5, 0.25, 0.75).to_list() == [0.5, 0.25, 0.75]


def test_ratio_refuses() -> None:
    with pytest.raises(UserError, match="edited has 2 prompts and base 3"):
        ratio_ci(np.zeros((2, 1)), np.zeros((3, 1)))
    with pytest.raises(UserError, match="figure 'median' is unknown. There are: mean, share"):
        ratio_ci(np.zeros((2, 1)), np.zeros((2, 1)), figure="median")


# Degeneration

HEALTHY = [
    " was built in the twelfth century and is now a museum.",
    " and I was so happy that I cried for the rest of the day.",
    " is a small river in the north of the country, and it is a tributary of the larger river.",
    " to the shop, to the shop and then to the shop again.",
] * 10
FLUENT = [(30.0, 12)] * 40  # a perplexity of 12 under the reference


def test_figures_of_degeneration_by_hand() -> None:
    found = measure(["a b a b a", "", "?!", "x + - * / ="], nll=[(3.0, 2), (0.0, 0), (5.0, 2), (0.0, 0)])
    # Only the first and the last have 3-grams: aba bab aba, and four different ones.
    assert found.repetition == pytest.approx((1 / 3 + 0) / 2)
    assert found.distinct_2 == pytest.approx((2 + 1 + 5) / (4 + 1 + 5))
    assert (found.empty, found.non_text) == (0.5, 0.25)
    assert found.perplexity_under_reference == pytest.approx(np.exp(2.0))
    assert measure(["a b"]).perplexity_under_reference is None
    assert measure(["", ""], nll=[(0.0, 0)] * 2).perplexity_under_reference is None
    ids = measure(["aaaa"], tokens=[[7, 7, 7, 7]])
    assert ids.repetition == 0.5


def test_healthy_text_is_ok() -> None:
    base = measure(HEALTHY, nll=FLUENT)
    assert base.verdict == "ok" and base.reasons == []
    assert measure(HEALTHY, nll=FLUENT, baseline=base).verdict == "ok"
    # Greedy text is very likely under its own model: three times that is still fluent.
    greedy = measure(HEALTHY, nll=[(10.0, 12)] * 40)
    assert measure(HEALTHY, nll=FLUENT, baseline=greedy).verdict == "ok"


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(
    ("texts", "loss", "reason"),
    [
        ([""] * 40, 0.0, "empty is 1"),
        (["\n\n ...", "123"] * 20, 30.0, "empty is 1"),
        ([" fine" * 20] * 40, 30.0, "repetition is 0.9"),
        ([HEALTHY[0]] * 40, 30.0, "distinct_2 is 0.025"),
        (["a %&/$%& \ufffd\ufffd %$/&% " + "!" * i for i in range(40)], 30.0, "non_text is 1"),
        (HEALTHY, 120.0, "perplexity_under_reference is 2.2e+04"),
    ],
)
def test_degenerate_text_is_caught(texts: list[str], loss: float, reason: str, relative: bool) -> None:
    base = measure([f"{text} {i}th" for i, text in enumerate(HEALTHY)], nll=FLUENT) if relative else None
    found = measure(texts, nll=[(loss, 12 if text else 0) for text in texts], baseline=base)
    assert found.verdict == "degenerate"
    assert any(line.startswith(reason) for line in found.reasons), found.reasons


def test_a_repetitive_base_model_excuses_its_like() -> None:
    texts = HEALTHY[:4]
    base = measure([text + text for text in texts])
    assert base.verdict == "ok" and base.repetition > 0.4
    assert measure([text * 3 for text in texts], baseline=base).verdict == "ok"
    assert measure([text * 3 for text in texts]).verdict == "degenerate"


def test_random_tokens_of_a_trained_model_are_caught() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.2 if parameter.ndim > 1 else 1.0)
    batch = tokenizer(["".join(TEXT[:2])], return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    prompts = ["The history of", " the town is", " its river", " They said that"]
    written = [row[0] for row in generate(model, tokenizer, prompts)]
    base = measure(written, nll=continuation_nll(model, tokenizer, prompts, written))
    assert base.verdict == "ok"
    ids = torch.randint(260, VOCAB_SIZE, (4, 20), generator=torch.Generator().manual_seed(0))
    noise = [str(tokenizer.decode(row)) for row in ids]
    found = measure(noise, nll=continuation_nll(model, tokenizer, prompts, noise), baseline=base)
    assert any(reason.startswith("perplexity_under_reference") for reason in found.reasons), (base, found)


def test_degeneration_refuses() -> None:
    with pytest.raises(UserError, match="no continuations"):
        measure([])
    with pytest.raises(UserError, match="1 texts need as many entries in tokens and nll"):
        measure(["a"], nll=[])
    with pytest.raises(UserError, match="no 'degeneration' block"):
        Degeneration.from_dict({"empty": 0.0})


# All together


def test_evaluate(tmp_path: Path, gpt2: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    base = evaluate(gpt2, PROMPTS, processing_class=tokenizer, text=TEXT, scorer=SCORER, reference=gpt2, command="c")
    assert base.toxicity.decoding == "greedy" and base.model == "GPT2LMHeadModel"
    assert [row["prompt"] for row in base.generations] == PROMPTS
    assert [row["continuation"] for row in base.generations] == sum(generate(gpt2, tokenizer, PROMPTS), [])
    base.save(tmp_path / "base.json")
    saved = json.loads((tmp_path / "base.json").read_text())
    keys = ["schema", "model", "toxicity", "perplexity", "degeneration", "generations", "environment"]
    assert list(saved) == keys and saved["schema"] == 1
    assert saved["generations"] == "base.generations.jsonl" == generations_path(tmp_path / "base.json").name
    rows = [json.loads(line) for line in (tmp_path / saved["generations"]).read_text().splitlines()]
    assert rows == base.generations and set(rows[0]) == {"prompt", "continuation", "score"}
    assert saved["perplexity"]["value"] == pytest.approx(base.perplexity.value if base.perplexity else None)
    assert saved["environment"]["command"] == "c"
    assert {"repetition", "distinct_2", "empty", "perplexity_under_reference", "verdict"} <= set(saved["degeneration"])

    for baseline in (base, saved):
        edited = evaluate(
            gpt2, PROMPTS, processing_class=tokenizer, scorer=SCORER, samples=3, reference=gpt2, baseline=baseline
        )
        assert edited.toxicity.decoding == "nucleus(top_p=0.9, temperature=1.0)"
        assert edited.perplexity is None and edited.to_dict()["perplexity"] is None
        assert edited.scores.shape == (4, 3)
        assert edited.toxicity.share == pytest.approx((edited.scores > 0.5).mean())
    with pytest.raises(UserError, match="no 'degeneration' block"):
        evaluate(gpt2, PROMPTS, processing_class=tokenizer, scorer=SCORER, baseline={"schema": 1})


def test_evaluate_from_files(tmp_path: Path, gpt2: PreTrainedModel) -> None:
    gpt2.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    prompts, text = tmp_path / "p.jsonl", tmp_path / "t.jsonl"
    # The second row as RealToxicityPrompts has it.
    prompts.write_text('{"prompt": "You", "toxicity": 0.1}\n\n{"prompt": {"text": "He is an", "toxicity": 0.2}}\n')
    text.write_text(json.dumps({"text": TEXT[0]}) + "\n")
    model = str(tmp_path / "model")
    found = evaluate(model, prompts, text=str(text), scorer=SCORER, reference=model, max_text_tokens=5)
    assert isinstance(found, Evaluation) and found.model == model
    assert found.perplexity is not None and found.perplexity.tokens == 5
    assert [row["prompt"] for row in found.generations] == ["You", "He is an"]
    # A model from a directory finds its own tokenizer.
    loaded = type(gpt2).from_pretrained(model)
    assert evaluate(loaded, prompts, scorer=SCORER).generations == found.generations

    prompts.write_text('{"prompt": "You"}\n\n{"promt": "He"}\n')
    with pytest.raises(UserError, match=r"p\.jsonl:3: 'prompt' must be a text, but it is None"):
        evaluate(model, prompts, scorer=SCORER)
    prompts.write_text("\n")
    with pytest.raises(UserError, match=r"p\.jsonl' is empty: pass at least one prompt"):
        evaluate(model, prompts, scorer=SCORER)
    with pytest.raises(UserError, match="the list of texts is empty"):
        evaluate(model, ["a"], text=[], scorer=SCORER)
    with pytest.raises(UserError, match="prompt 1: 'prompt' must be a text, but it is 3"):
        evaluate(model, ["a", 3], scorer=SCORER)  # type: ignore[list-item]


def test_evaluate_without_a_tokenizer(gpt2: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="type GPT2LMHeadModel names no checkpoint with a tokenizer"):
        evaluate(gpt2, PROMPTS, scorer=SCORER)


def test_a_failing_scorer_loses_no_generations(tmp_path: Path, gpt2: PreTrainedModel) -> None:
    def fail(texts: Sequence[str]) -> Any:
        raise OSError("connection lost")

    kept = tmp_path / "g.jsonl"
    run: dict[str, Any] = {"processing_class": tiny_tokenizer(), "generations_path": kept}
    with pytest.raises(RunError, match="scorer 'remote' failed: OSError: connection lost"):
        evaluate(gpt2, PROMPTS, scorer=NamedScorer("remote", fail), **run)
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == PROMPTS and "score" not in rows[0]
    evaluate(gpt2, PROMPTS, scorer=SCORER, **run)
    assert "score" in json.loads(kept.read_text().splitlines()[0])
