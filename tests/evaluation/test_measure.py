"""Are the figures right, is degenerate text caught, and does `evaluate` write what the design says?

Of: evaluation/degeneration.py, evaluation/perplexity.py, evaluation/settings.py, evaluation/toxicity.py,
report/table.py, resampling.py
"""

import copy
import inspect
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from efface.errors import RunError, UserError
from efface.evaluation.comparison import Ratio, ratio_ci
from efface.evaluation.degeneration import Degeneration, measure
from efface.evaluation.measure import evaluate
from efface.evaluation.perplexity import perplexity
from efface.evaluation.prompt_sets import draw_prompts, load_prompts
from efface.evaluation.result import Evaluation, generations_path
from efface.evaluation.settings import OrdinaryText, PromptSet, RunSettings, UtilityTasks
from efface.evaluation.toxicity import summarize
from efface.generation.decoding import Decoding
from efface.generation.generate import generate
from efface.report.table import evaluation_table
from efface.scoring.scorer import NamedScorer

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
    keys = "scorer decoding n_prompts samples mean share expected_maximum probability ci95 invalid clean"
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
    same = ratio_ci(base, base)  # paired: hardly any spread
    assert same.ratio == 1.0 and 0.95 < same.lower < 1 < same.upper < 1.05
    assert ratio_ci(base, base, figure="mean") == (1.0, 1.0, 1.0)
    assert ratio_ci(edited[:, :1], base, figure="mean").ratio < 0.3


def test_ratio_over_a_base_that_is_not_toxic() -> None:
    zero, one = np.zeros((20, 1)), np.ones((20, 1))
    assert ratio_ci(one, zero) == (np.inf, np.inf, np.inf)
    assert ratio_ci(zero, zero) == (np.inf, np.inf, np.inf)  # nothing was reduced
    base = zero.copy()
    base[0] = 1.0
    assert ratio_ci(zero, base).ratio == 0.0 and ratio_ci(zero, base).upper > 1  # one of 20 shows no reduction
    found = ratio_ci(zero, base, figure="mean")  # about a third of the resamples hold no toxic prompt
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
    assert (found.distinct_1, found.distinct_3) == (pytest.approx((2 + 2 + 6) / 13), pytest.approx((2 + 4) / 7))
    assert found.mean_tokens == 13 / 4
    ids = measure(["aaaa"], tokens=[[7, 7, 7, 7]])
    assert (ids.repetition, ids.distinct_1, ids.mean_tokens) == (0.5, 0.25, 4)


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
    assert measure([text + text[: len(text) // 2] for text in texts], baseline=base).verdict == "ok"
    thrice = [text * 3 for text in texts]
    assert measure(thrice).verdict == "degenerate"
    assert measure(thrice, baseline=base).reasons[0].startswith("100.0% of the answers are invalid (loop 4); 25.0% of")


def test_text_that_ends_at_once_is_caught_relative_to_a_baseline() -> None:
    short = [f" It is {i}." for i in range(40)]
    base = measure(HEALTHY)
    assert measure(short, baseline=base).verdict == "ok"
    found = measure([" Word"] * 5 + [" It is"] * 35, baseline=base)
    assert any(reason.startswith("mean_tokens is 1.8") for reason in found.reasons), found.reasons


def test_a_block_of_an_older_version_is_read() -> None:
    block = {"repetition": 0.1, "distinct_2": 0.7, "empty": 0.0, "non_text": 0.0, "perplexity_under_reference": None}
    base = Degeneration.from_dict({**block, "verdict": "ok", "reasons": []})
    assert base.mean_tokens is None
    assert measure(HEALTHY, baseline=base).verdict == "degenerate"  # its distinct_2 is half of that
    assert Degeneration.from_dict(measure(HEALTHY).to_dict()).mean_tokens == measure(HEALTHY).mean_tokens


@pytest.fixture(scope="module")
def trained() -> PreTrainedModel:
    """A tiny model that knows its two sentences by heart."""
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
    return model.eval()


KNOWN = ["The history of", " the town is", " its river", " They said that"]


def one_token(model: PreTrainedModel) -> None:
    model.transformer.ln_f.bias.copy_(model.transformer.wte.weight[270])


def any_token(model: PreTrainedModel) -> None:
    """All logits are equal."""


@pytest.mark.parametrize(
    ("damage", "decoding", "reason"),
    [
        (one_token, Decoding(), "repetition is 0.944"),
        (any_token, Decoding(samples=4, top_p=1.0), "perplexity_under_reference"),
    ],
    ids=["one token", "random tokens"],
)
def test_a_model_broken_on_purpose_is_degenerate_however_low_its_toxicity(
    trained: PreTrainedModel, damage: Any, decoding: Decoding, reason: str
) -> None:
    run: dict[str, Any] = {"processing_class": tiny_tokenizer(), "reference": trained}
    nothing = NamedScorer("nothing", lambda texts: np.zeros(len(texts)))
    everything = NamedScorer("everything", lambda texts: np.ones(len(texts)))
    base = evaluate(trained, KNOWN, scorer=everything, decoding=replace(decoding, samples=1), **run)
    assert base.degeneration.verdict == "ok"
    broken = copy.deepcopy(trained)
    with torch.no_grad():
        broken.transformer.ln_f.weight.zero_()
        broken.transformer.ln_f.bias.zero_()
        damage(broken)
    found = evaluate(broken, KNOWN, scorer=nothing, decoding=decoding, baseline=base, **run)
    assert found.toxicity.share == 0.0
    assert found.degeneration.verdict == "degenerate"
    assert any(line.startswith(reason) for line in found.degeneration.reasons), found.degeneration
    table = " ".join(str(evaluation_table({"base": base.to_dict(), "broken": found.to_dict()})).split())
    assert "toxic share 1.000 [0.510, 1.000] (1) 0.000 [0.000, 0.490]" in table
    assert "ok degenerate (1)" in table and "(1) degenerate text, whose toxicity says nothing; " in table
    assert f"; {reason}" in table
    assert "degenerate" not in str(evaluation_table({"": base.to_dict()}))


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
    run: dict[str, Any] = {"processing_class": tokenizer, "scorer": SCORER, "reference": gpt2}
    base = evaluate(gpt2, PROMPTS, text=OrdinaryText(TEXT), run=RunSettings(command="c"), **run)
    assert base.toxicity.decoding == "greedy" and base.model == "GPT2LMHeadModel"
    assert [row["prompt"] for row in base.generations] == PROMPTS
    assert [row["continuation"] for row in base.generations] == sum(generate(gpt2, tokenizer, PROMPTS), [])
    base.save(tmp_path / "base.json")
    saved = json.loads((tmp_path / "base.json").read_text())
    keys = "schema model settings toxicity judges perplexity f1 utility identity degeneration versus_baseline"
    assert list(saved) == [*keys.split(), "generations", "environment"] and saved["schema"] == 1
    assert saved["generations"] == "base.generations.jsonl" == generations_path(tmp_path / "base.json").name
    rows = [json.loads(line) for line in (tmp_path / saved["generations"]).read_text().splitlines()]
    keys = "prompt continuation token_ids score scores invalid"
    assert rows == base.generations and set(rows[0]) == set(keys.split())
    assert saved["perplexity"]["value"] == pytest.approx(base.perplexity.value if base.perplexity else None)
    assert saved["environment"]["command"] == "c"
    assert {"repetition", "distinct_2", "empty", "perplexity_under_reference", "verdict"} <= set(saved["degeneration"])

    for baseline in (base, saved):
        edited = evaluate(gpt2, PROMPTS, decoding=Decoding(samples=3), baseline=baseline, **run)
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
    found = evaluate(model, prompts, text=OrdinaryText(str(text), max_tokens=5), scorer=SCORER, reference=model)
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
        evaluate(model, ["a"], text=OrdinaryText([]), scorer=SCORER)
    with pytest.raises(UserError, match="prompt 1: 'prompt' must be a text, but it is 3"):
        evaluate(model, ["a", 3], scorer=SCORER)  # type: ignore[list-item]


def test_the_prompts_are_the_shipped_ones_unless_others_are_named(gpt2: PreTrainedModel) -> None:
    found = evaluate(gpt2, PromptSet(limit=2), processing_class=tiny_tokenizer(), scorer=SCORER)
    assert found.settings["prompts"] == "shipped:prompts"
    assert [row["prompt"] for row in found.generations] == draw_prompts(load_prompts("shipped:prompts"), 2)
    assert len(inspect.signature(evaluate).parameters) <= 12


def test_evaluate_without_a_tokenizer(gpt2: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="type GPT2LMHeadModel names no checkpoint with a tokenizer"):
        evaluate(gpt2, PROMPTS, scorer=SCORER)


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("something was generated again")


def broken_scorer(output: Any) -> NamedScorer:
    def score(texts: Sequence[str]) -> Any:
        if isinstance(output, Exception):
            raise output
        return output

    return NamedScorer("remote", score)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (OSError("connection lost"), RunError, "scorer 'remote' failed: OSError: connection lost"),
        ([0.1, np.nan, 0.2, 0.3], UserError, "scorer 'remote' returned nan for text 1"),
        ([0.1], UserError, r"scorer 'remote' returned shape \(1,\) for 4 texts"),
    ],
)
def test_a_failing_scorer_loses_no_generations(
    tmp_path: Path, gpt2: PreTrainedModel, monkeypatch: Any, output: Any, error: type[Exception], message: str
) -> None:
    kept = tmp_path / "g.jsonl"
    run: dict[str, Any] = {"processing_class": tiny_tokenizer(), "run": RunSettings(generations_path=kept)}
    with pytest.raises(error, match=rf"{message}.*The 4 generations are kept in .*g\.jsonl: a run with the same"):
        evaluate(gpt2, PROMPTS, scorer=[SCORER, broken_scorer(output)], **run)
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == PROMPTS and "score" not in rows[0]
    with pytest.raises(error, match=message):  # with nothing kept, nothing is promised
        evaluate(gpt2, PROMPTS, scorer=broken_scorer(output), processing_class=tiny_tokenizer())

    monkeypatch.setattr("efface.generation.generate.generate_ids", refuse)
    again = evaluate(gpt2, PROMPTS, scorer=SCORER, **run | {"run": RunSettings(batch_size=2, generations_path=kept)})
    assert [row["continuation"] for row in again.generations] == [row["continuation"] for row in rows]
    assert [json.loads(line)["score"] for line in kept.read_text().splitlines()] == again.scores[:, 0].tolist()
    assert evaluate(gpt2, PROMPTS, scorer=SCORER, **run).degeneration == again.degeneration


def test_generations_of_anything_else_are_not_taken(tmp_path: Path, gpt2: PreTrainedModel, monkeypatch: Any) -> None:
    kept = tmp_path / "g.jsonl"
    run: dict[str, Any] = {
        "processing_class": tiny_tokenizer(),
        "run": RunSettings(generations_path=kept),
        "scorer": SCORER,
    }
    evaluate(gpt2, PROMPTS, **run)
    other = copy.deepcopy(gpt2)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    monkeypatch.setattr("efface.generation.generate.generate_ids", refuse)
    for model, prompts, changed in (
        (other, PROMPTS, {}),
        (gpt2, PROMPTS[:3], {}),
        (gpt2, PROMPTS, {"decoding": Decoding(max_new_tokens=5)}),
        (gpt2, PROMPTS, {"decoding": Decoding(chat=True)}),
        (gpt2, PROMPTS, {"processing_class": tiny_tokenizer(add_bos=True)}),
    ):
        with pytest.raises(AssertionError, match="generated again"):
            evaluate(model, prompts, **{**run, **changed})
    for content in (kept.read_text().partition("\n")[2], "no JSON\n"):  # a row was removed; no file of ours
        kept.write_text(content)
        with pytest.raises(AssertionError, match="generated again"):
            evaluate(gpt2, PROMPTS, **run)


def test_several_judges(gpt2: PreTrainedModel) -> None:
    never = NamedScorer("never", lambda texts: np.zeros(len(texts)))
    found = evaluate(gpt2, PROMPTS, processing_class=tiny_tokenizer(), scorer=[SCORER, never])
    block = found.to_dict()
    assert list(block["judges"]) == ["half", "never"]
    assert block["toxicity"] == block["judges"]["half"] and block["toxicity"]["scorer"] == "half"
    assert block["judges"]["never"]["mean"] == 0.0
    for row, value in zip(found.generations, found.scores[:, 0], strict=True):
        assert row["score"] == value and row["scores"] == {"half": value, "never": 0.0}
    table = str(evaluation_table({"": block}))
    assert "toxic share, half" in table and "mean score, never" in table
    for scorers, message in (([SCORER, SCORER], "half, half"), ([], "none at all")):
        with pytest.raises(UserError, match=f"the scorers are {message}: name at least one, and each once"):
            evaluate(gpt2, PROMPTS, processing_class=tiny_tokenizer(), scorer=scorers)


def test_perplexity_is_that_of_one_pass_over_the_whole_text(gpt2: PreTrainedModel) -> None:
    """Parity with the definition: every token given all before it, in one forward."""
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([tokenizer("\n\n".join(TEXT))["input_ids"][:128]])
    with torch.no_grad():
        direct = gpt2(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).mean().neg().exp().item()
    whole = perplexity(gpt2, tokenizer, TEXT, max_tokens=127, window=128)
    assert whole.tokens == 127 and whole.value == pytest.approx(direct, rel=1e-5)
    # With less context it is another figure; the smallest stride gives a window of it to every token.
    short = perplexity(gpt2, tokenizer, TEXT, max_tokens=127, window=16)
    assert short.value != pytest.approx(direct, rel=1e-3)
    found = evaluate(gpt2, PROMPTS, processing_class=tokenizer, scorer=SCORER,
                     text=OrdinaryText(TEXT, max_tokens=127, window=16, stride=1)).perplexity  # fmt: skip
    assert found == perplexity(gpt2, tokenizer, TEXT, max_tokens=127, window=16, stride=1)
    assert found is not None and (found.window, found.stride) == (16, 1)


def test_utility_and_identity(tmp_path: Path, gpt2: PreTrainedModel) -> None:
    pytest.importorskip("lm_eval", reason="utility is in the extra `eval`")
    tasks = tmp_path / "town.jsonl"
    row = {"query": "The history of the town is", "choices": ["the history of its river", "bread"], "gold": 0}
    tasks.write_text("".join(json.dumps({**row, "gold": i % 2}) + "\n" for i in range(4)))
    run: dict[str, Any] = {"processing_class": tiny_tokenizer(), "scorer": SCORER}
    all_rows, one = {"utility": UtilityTasks([tasks])}, PromptSet(PROMPTS, limit=1)
    base = evaluate(gpt2, one, **run, **all_rows)
    base.save(tmp_path / "base.json")
    saved = json.loads((tmp_path / "base.json").read_text())
    assert [item["metric"] for item in saved["utility"]] == ["acc", "acc_norm"] and saved["utility"][0]["n"] == 4
    found = evaluate(gpt2, one, baseline=tmp_path / "base.json", reference=gpt2, identity=True, **run, **all_rows)
    assert found.versus_baseline is not None and found.versus_baseline.not_compared == []
    changes = found.versus_baseline.utility
    assert [(item.metric, item.difference, item.paired) for item in changes] == [
        ("acc", 0.0, True),
        ("acc_norm", 0.0, True),
    ]
    assert found.identity is not None and found.identity.identity.excess == 0.0
    table = str(evaluation_table({"": found.to_dict()}))
    assert re.search("acc, town.jsonl +0.500", table) and "identity excess" in table
    # Rows of other questions are not compared.
    other = evaluate(gpt2, one, **run, utility=UtilityTasks([tasks], limit=2), baseline=base)
    assert other.versus_baseline is not None
    assert "were not measured on the same rows" in other.versus_baseline.not_compared[0]
    with pytest.raises(UserError, match=r"absent\.jsonl' does not exist"):
        evaluate("absent", PROMPTS, scorer=SCORER, utility=UtilityTasks(["absent.jsonl"]))
    with pytest.raises(UserError, match=r"absent\.jsonl' does not exist"):
        evaluate("absent", PROMPTS, scorer=SCORER, identity="absent.jsonl")
