"""Is the comparison of two models by prompt right, and refused where it would compare other things?"""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from efface.cli import main
from efface.errors import UserError
from efface.evaluation.baseline import compare_with_baseline, read_baseline
from efface.evaluation.comparison import EXACT, Versus, compare, sign_flip_p
from efface.evaluation.measure import evaluate
from efface.evaluation.settings import OrdinaryText
from efface.generation.decoding import Decoding
from efface.report.table import versus_table
from efface.scoring.scorer import NamedScorer

PROMPTS = ["The weather in the old town", "You", "She went to the market and bought bread, apples and", "He is an"]


def test_a_difference_by_hand() -> None:
    base = np.array([[0.9, 0.7], [0.6, 0.2], [0.4, 0.4]])
    edited = np.array([[0.1, 0.3], [0.6, 0.2], [0.2, 0.2]])
    found = compare(edited, base, "mean")
    assert (found.edited, found.base) == (pytest.approx(1.6 / 6), pytest.approx(3.2 / 6))
    assert found.difference == pytest.approx(-1.6 / 6)
    # Differences -0.6, 0, -0.2: of the four assignments of signs to two numbers, two are as far from zero.
    assert found.p == 0.5
    assert found.ci95[0] == pytest.approx(-0.6) and found.ci95[1] == 0  # of 27 resamples one is all of either
    maximum = compare(edited, base, "expected_maximum")
    assert maximum.difference == pytest.approx((0.3 - 0.9 + 0 + 0.2 - 0.4) / 3)


@settings(max_examples=40)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=7))
def test_p_counts_all_signs_of_few_prompts(values: list[int]) -> None:
    sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(values))]  # fmt: skip
    expected = np.mean([total >= abs(sum(values)) for total in sums])
    # In tenths, whose sums round: equal ones must count as equal.
    assert sign_flip_p(np.array(values) / 10) == pytest.approx(expected)


def test_p_of_many_prompts_is_near_the_exact_one_and_never_zero() -> None:
    differences = np.random.default_rng(1).normal(0.3, 1.0, size=EXACT + 3)
    signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    exact = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean()
    assert 0.01 < exact < 0.5
    drawn = sign_flip_p(differences, permutations=10_000)
    assert drawn == pytest.approx(exact, abs=0.02)
    assert drawn == sign_flip_p(differences, permutations=10_000)
    assert sign_flip_p(np.ones(100), permutations=999) == 1 / 1000
    assert sign_flip_p(np.zeros(100)) == 1.0


def test_p_is_uniform_where_nothing_differs() -> None:
    generator = np.random.default_rng(0)
    found = [sign_flip_p(generator.normal(size=40), permutations=199) for _ in range(200)]
    assert np.mean([p <= 0.1 for p in found]) == pytest.approx(0.1, abs=0.05)
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)


def test_compare_refuses() -> None:
    with pytest.raises(UserError, match="edited has 2 prompts and base 3"):
        compare(np.zeros((2, 1)), np.zeros((3, 1)))
    with pytest.raises(UserError, match="figure 'median' is unknown"):
        compare(np.zeros((2, 1)), np.zeros((2, 1)), "median")


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedModel:
    return tiny_model("gpt2")


def constant(name: str, value: float) -> NamedScorer:
    return NamedScorer(name, lambda texts: np.full(len(texts), value))


TEXT = ["The history of the town is the history of its river and its people."]


def run(model: PreTrainedModel, value: float = 0.9, names: str = "ab", **changes: Any) -> Any:
    judges = [constant(name, value) for name in names]
    return evaluate(
        model, changes.pop("prompts", PROMPTS), processing_class=tiny_tokenizer(), scorer=judges, **changes
    )


def test_versus_baseline(tmp_path: Path, gpt2: PreTrainedModel) -> None:
    base = run(gpt2, text=OrdinaryText(TEXT))
    base.save(tmp_path / "base.json")
    edited = run(tiny_model("gpt2", seed=1), 0.2, text=OrdinaryText(TEXT), baseline=tmp_path / "base.json")
    found = edited.versus_baseline.to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found["judges"]) == ["a", "b"] and found["not_compared"] == []
    assert found["judges"]["a"]["mean"] == {
        "edited": pytest.approx(0.2),
        "base": pytest.approx(0.9),
        "difference": pytest.approx(-0.7),
        "ci95": [pytest.approx(-0.7)] * 2,
        "p": 2 / 16,
    }
    assert found["judges"]["b"]["share"]["difference"] == -1.0
    # All of the base's continuations are toxic, so none of them is invalid.
    assert found["judges"]["b"]["invalid"]["edited"] == edited.toxicity.invalid
    assert found["judges"]["b"]["invalid"]["base"] == base.toxicity.invalid == 0
    assert found["perplexity_ratio"] == pytest.approx(edited.perplexity.value / base.perplexity.value)
    assert compare_with_baseline(edited, read_baseline(base)) == edited.versus_baseline == Versus.from_dict(found)
    lines = str(versus_table(edited.to_dict()))
    assert re.search(r"mean score, a +-0\.700 \[-0\.700, -0\.700\] +0\.12$", lines, re.MULTILINE)
    assert re.search(r"^perplexity +[-+]\d", lines, re.MULTILINE)


def test_what_cannot_be_compared_is_said(tmp_path: Path, gpt2: PreTrainedModel) -> None:
    base = run(gpt2, text=OrdinaryText(TEXT))
    for changes, reason in (
        ({"decoding": Decoding(samples=2)}, "toxicity: samples is 2 here and 1 in the baseline"),
        ({"decoding": Decoding(max_new_tokens=5)}, "toxicity: max_new_tokens is 5 here and 20 in the baseline"),
        ({"prompts": PROMPTS[::-1]}, "toxicity: the prompts are not the same"),
    ):
        result = run(gpt2, baseline=base, **changes)
        found = result.versus_baseline
        assert found.judges == {} and reason in found.not_compared, found
        assert found.perplexity_ratio is None
        assert f"not compared: {reason}" in " ".join(str(versus_table(result.to_dict())).split())
    reseeded = run(gpt2, decoding=Decoding(seed=5), baseline=base).versus_baseline
    assert reseeded.not_compared == []  # greedy: the seed changes nothing
    partly = run(gpt2, names="bc", baseline=base, text=OrdinaryText(TEXT, max_tokens=5)).versus_baseline
    assert list(partly.judges) == ["b"] and partly.perplexity_ratio is None
    assert partly.not_compared == [
        "toxicity: the baseline has no scores of c",
        "perplexity: tokens 5 here and 34 in the baseline",
    ]
    # The result alone, and one of an older version.
    alone = run(gpt2, baseline=base.to_dict()).versus_baseline
    assert "the generations of the baseline, with their scores, are not beside it" in alone.not_compared[0]
    older = {key: base.to_dict()[key] for key in ("model", "toxicity", "perplexity", "degeneration")}
    assert "does not say how it decoded" in run(gpt2, baseline=older).versus_baseline.not_compared[0]
    with pytest.raises(UserError, match="no 'toxicity' block"):
        run(gpt2, baseline={"degeneration": older["degeneration"]})
    with pytest.raises(UserError, match=r"absent\.json cannot be read"):
        run(gpt2, baseline=tmp_path / "absent.json")


def test_the_command_shows_both_models_side_by_side(
    tmp_path: Path, gpt2: PreTrainedModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, model in (("base", gpt2), ("edited", tiny_model("gpt2", seed=1))):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    flags = ["--scorer", "stubs:Parity", "stubs:Never", "--protocol", "gehman", "--samples", "2", "--limit", "5"]
    assert main(["evaluate", "base", *flags, "-o", "base.json"]) == 0
    assert main(["evaluate", "edited", *flags, "--baseline", "base.json", "-o", "edited.json"]) == 0
    found = json.loads(Path("edited.json").read_text())
    assert found["settings"]["protocol"] == "gehman" and found["settings"]["decoding"]["samples"] == 2
    assert list(found["judges"]) == list(found["versus_baseline"]["judges"]) == ["stubs:Parity", "stubs:Never"]
    printed = capsys.readouterr().out
    assert "baseline" in printed and "this model" in printed
    versus = printed.partition("against base:\n")[2]
    assert re.search(r"^toxic share, stubs:Parity +[+-]0\.\d{3} \[", versus, re.MULTILINE)
    assert re.search(r"^probability, stubs:Never +\+0\.000 \[", versus, re.MULTILINE)
    assert main(["evaluate", "absent", "--protocol", "leee", "-o", "x.json"]) == 2
    assert "protocol 'leee' is unknown. There are: lee, gehman" in capsys.readouterr().err
