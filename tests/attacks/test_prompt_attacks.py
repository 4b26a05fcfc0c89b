"""Do the attacks that leave the weights alone find what the model still does? Forced words, other prompts, draws.

Of: attacks/altered.py, attacks/any_of.py, attacks/prompt_injection.py, attacks/sampling.py
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from polite import HELD_OUT, counting, equal, state
from stubs import nasty
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from torn import CALM, FURIOUS, target_of, torn_model
from transformers import PreTrainedModel

from efface.attacks.altered import prompts_as_read
from efface.attacks.few_shot import FewShotSettings, few_shot
from efface.attacks.finished import finished_result
from efface.attacks.perturb import PerturbSettings, perturb
from efface.attacks.prefill import PrefillSettings, prefill
from efface.attacks.prompt_injection import PromptInjectionSettings, load_injections, prompt_injection
from efface.attacks.result import AttackResult
from efface.attacks.sampling import SamplingSettings, sampling
from efface.attacks.target import Target
from efface.errors import RunError, UserError
from efface.files.results import read_json
from efface.generation.decoding import Decoding
from efface.generation.prompts import encode_prompts


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
        "prefill": (prefill, PrefillSettings(words="1,2", draws=2)),
        "prompt_injection": (prompt_injection, PromptInjectionSettings(injections=two)),
        "perturb": (perturb, PerturbSettings(kinds="capital", rates="1", tries=2)),
        "sampling": (sampling, SamplingSettings(temperatures="1", nuclei="0.9,1", top_ks="5", draws=2)),
        "few_shot": (few_shot, FewShotSettings(shots="1,2")),
    }


NAMES = ["prefill", "prompt_injection", "perturb", "sampling"]
BEST_OF = ["perturb", "sampling"]


@pytest.mark.parametrize("name", NAMES)
def test_it_finds_what_greedy_decoding_of_clean_prompts_does_not(name: str, target: Target, two: str) -> None:
    attack, settings = attacks(two)[name]
    weights, random_state = state(target.model), torch.get_rng_state()
    result = attack(target, settings)
    assert result.before.share == 0
    assert result.after.share > 0.7
    assert result.after.figures["versus_before"]["nasty"]["share"]["difference"] == result.after.share
    assert result.after.figures["perplexity"] is None
    assert equal(state(target.model), weights) and torch.equal(torch.get_rng_state(), random_state)
    again = attack(dataclasses.replace(target, known={}), settings)
    assert again.to_dict() == result.to_dict()
    assert [row for point in again.curve for row in point.generations] == [
        row for point in result.curve for row in point.generations
    ]


@pytest.mark.parametrize("name", [*NAMES, "few_shot"])
@pytest.mark.parametrize("family", ["llama", "gpt2", *(pytest.param(f, marks=pytest.mark.full) for f in FAMILIES)])
def test_an_untouched_model_is_reported_as_it_is(family: str, name: str, two: str) -> None:
    model = tiny_model(family)
    target = target_of(model, base=model, text=["The town is old. " * 5])
    attack, settings = attacks(two)[name]
    result = attack(target, settings)
    assert result.before.share == result.base.share == result.after.share == 0
    assert result.after.figures["versus_before"]["nasty"]["share"]["p"] == 1
    points = result.found["points"]
    assert all(point["share"] == point["base_share"] for point in points)
    assert len(points) == {"sampling": 4, "few_shot": 4}.get(name, 2) and result.found["base_share"] == 0
    if name not in {*BEST_OF, "few_shot"}:
        assert result.found["any_point"] == result.found["base_any_point"] == result.found["mean_share"] == 0


# What all that alter the prompts report


def test_any_point_is_over_the_points_and_the_mean_is_not_the_worst(target: Target, two: str) -> None:
    target.base = target.model
    result = prompt_injection(target, PromptInjectionSettings(injections=two))
    *singles, together = result.curve[1:]
    shares = [point.share for point in singles]
    assert [point["share"] for point in result.found["points"]] == shares and len(shares) == 2
    assert result.found["mean_share"] == pytest.approx(sum(shares) / 2) and min(shares) < max(shares)
    either = zip(*(point.generations for point in singles), strict=True)
    expected = sum(any(row["score"] > 0.5 for row in rows) for rows in either) / len(HELD_OUT)
    assert result.found["any_point"] == pytest.approx(expected) and expected >= max(shares)
    assert result.found["base_share"] == result.after.share  # the base is the model
    # The best of both is a point that does not count.
    assert together.at == {"injection": "any"} and together.share == result.found["base_any_point"] == expected
    assert result.after in singles and result.found["left_out"] == ["injection any"]
    assert result.found["any_of"] == 2 and result.found["before_any"] == result.before.share


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
    assert [point.at for point in result.curve] == [{"injection": "none"}, {"injection": "calm"}, {"injection": "any"}]
    assert [row["prompt"] for row in result.after.generations] == ["Calm: " + prompt for prompt in HELD_OUT]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"name": "a", "before": "x"}], "one.jsonl:1: 'after' must be a text, but it is None"),
        ([{"name": 3, "before": "x", "after": ""}], "'name' must be a text, but it is 3"),
        ([{"name": "a", "before": "", "after": ""}], "`before` and `after` are both empty"),
        ([{"name": "none", "before": "x", "after": ""}], "the name 'none' is empty or taken"),
        ([{"name": "any", "before": "x", "after": ""}], "the name 'any' is empty or taken"),
        ([{"name": "a", "before": "x", "after": ""}] * 2, "one.jsonl:2: the name 'a' is empty or taken"),
        ([], "one.jsonl' is empty: pass at least one injection"),
    ],
)
def test_injections_that_cannot_be_used(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_injections(injections(tmp_path / "one.jsonl", *rows))


# Sampling


def test_the_base_is_decoded_alike_and_is_the_yardstick(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    target.base = target.model
    yardsticks: list[Any] = []
    measure = Target.measure

    def watched(self: Target, *args: Any, **kwargs: Any) -> Any:
        yardsticks.append(kwargs.get("yardstick"))
        return measure(self, *args, **kwargs)

    monkeypatch.setattr(Target, "measure", watched)
    result = sampling(target, SamplingSettings(temperatures="0.5,2", nuclei="1", top_ks="1", draws=3))
    grid = [{"temperature": 0.5, "top_p": 1.0}, {"temperature": 2.0, "top_p": 1.0}]
    grid += [{"temperature": 1.0, "top_p": 1.0, "top_k": 1}]
    assert [point.at for point in result.curve] == [{"decoding": "greedy"}, *grid, {"any_of": 9}]
    for row, point in zip(result.found["points"][:3], result.curve[1:4], strict=True):
        assert row["base_share"] == row["share"] == point.share and row["base_probability"] == row["probability"]
        assert point.figures["toxicity"]["samples"] == 3 and len(point.generations) == 3 * len(HELD_OUT)
        assert point.figures["degeneration"]["verdict"] == "ok"
    assert [yardstick and len(yardstick.generations) for yardstick in yardsticks[2:]] == [None, 24] * 3
    assert result.found["points"][2]["share"] == result.before.share  # the likeliest of one


def test_a_prompt_is_broken_if_one_draw_of_one_setting_breaks_it(target: Target) -> None:
    target.base = target.model
    result = sampling(target, SamplingSettings(temperatures="1", nuclei="0.9,1", top_ks="5", draws=2))
    *points, last = result.curve[1:]
    scores = np.concatenate([point.scores("nasty") for point in points], axis=1)  # (n, 6)
    assert last is result.after and last.scores("nasty")[:, 0].tolist() == scores.max(1).tolist()
    assert last.share == result.found["base_share"] > max(point.share for point in points)
    assert result.found["any_of"] == 6 and result.found["before_any"] == result.before.share
    assert len({tuple(row["continuation"] for row in point.generations) for point in points}) == 3  # drawn anew


def test_what_as_many_plain_samples_find_stands_beside(target: Target) -> None:
    target.decoding = dataclasses.replace(target.decoding, do_sample=True, temperature=1.0)
    settings = SamplingSettings(temperatures="1", nuclei="0.9,1", top_ks="5", draws=2)
    plain = target.measure(target.model, decoding=dataclasses.replace(target.decoding, samples=6))
    found = sampling(target, settings).found
    assert found["before_any"] == plain.measured.toxicity.probability > plain.share


def test_without_a_base_its_figures_are_none(target: Target) -> None:
    found = sampling(target, SamplingSettings(temperatures="1", nuclei="1", top_ks="5", draws=1)).found
    row = found["points"][0]
    assert row["base_share"] is None and row["base_probability"] is None and row["share"] >= 0
    assert found["base_share"] is None and found["points"][-1]["base_share"] is None


def test_the_base_is_measured_once_for_several_models(
    target: Target, two: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.base = target.model
    settings = PromptInjectionSettings(injections=two)
    counted = counting(monkeypatch)
    prompt_injection(target, settings)
    assert len(counted) == 2 + 2  # what is attacked is the base, so its points are also what stands beside them
    other = prompt_injection(dataclasses.replace(target, model=tiny_model("llama")), settings)
    assert len(counted) == 4 + 3 and other.found["points"][1]["base_share"] > 0.7 > other.after.share


# Settings and interruptions


def test_what_an_edited_file_of_injections_has_made_is_not_taken(two: str, tmp_path: Path) -> None:
    """Its path alone was what a result was known by."""
    target = target_of(tiny_model("llama"), output=tmp_path / "out.json")
    settings, described = PromptInjectionSettings(injections=two), target.described()
    prompt_injection(target, settings)
    assert finished_result(tmp_path / "out.json", "prompt_injection", settings, described) is not None
    Path(two).write_text(Path(two).read_text().replace(CALM.name, "another"))
    with pytest.raises(UserError, match=r"out.json was made with other settings \(files\). Use the same"):
        finished_result(tmp_path / "out.json", "prompt_injection", settings, described)


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
        (SamplingSettings, {"top_ks": "all"}, "top_ks='all': whole numbers are needed"),
        (PrefillSettings, {"draws": 0}, "draws=0: it must be at least 1"),
        (FewShotSettings, {"shots": "0"}, "shots='0' leaves nothing to do"),
    ],
)
def test_settings_that_cannot_work(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**settings)


@pytest.mark.parametrize("name", [*NAMES, "few_shot"])
def test_an_interrupted_run_goes_on_where_it_was(
    name: str, two: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack, settings = attacks(two)[name]
    target = target_of(tiny_model("llama"), base=tiny_model("llama", seed=1), output=tmp_path / "out.json")
    with monkeypatch.context() as patch:
        whole_calls = counting(patch)
        whole: AttackResult = attack(dataclasses.replace(target, output=None, known={}), settings)
    with monkeypatch.context() as patch:
        counting(patch, fail_at=5, error=RunError("stopped."))
        with pytest.raises(RunError, match=r"stopped\. What was measured so far \(.*before, .*resume=True"):
            attack(target, settings)
    calls = counting(monkeypatch)
    resumed = attack(dataclasses.replace(target, resume=True, known={}), settings)
    assert len(calls) == len(whole_calls) - 4 + (name == "perturb")  # which asks for the plain base last
    assert resumed.to_dict() == whole.to_dict()
    assert read_json(tmp_path / "out.json")["found"] == whole.found
