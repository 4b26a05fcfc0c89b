"""Does `efface detox` bring a user's model from nothing to a report, within the budget, and go on where it was?

Of: jobs/detox_settings.py, jobs/strength.py, jobs/before_after.py, commands/detox.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
from attacked import attacked
from told import write_audit
from transformers import AutoModelForCausalLM

from efface import scoring
from efface.cli import main
from efface.data.rows import load_texts
from efface.errors import RunError, UserError
from efface.evaluation.budget import UtilityBounds
from efface.evaluation.prompt_sets import draw_prompts
from efface.files.events import read_events
from efface.files.results import read_json, write_json
from efface.jobs import detox as job
from efface.jobs.detox import detox
from efface.jobs.detox_settings import EFFORTS, DetoxSettings, Effort


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pairs, short texts, and a scorer that random models do not leave cold."""
    few = {"n_pairs": 4, "learning_rates": (1e-3, 3e-3), "text_tokens": 60}
    effort = Effort(**few, repo={"npo_weight": 0.5}, minutes="a moment")
    monkeypatch.setitem(EFFORTS, "quick", effort)
    monkeypatch.setattr(job, "SAMPLES", 2)
    monkeypatch.setitem(scoring.SCORERS, scoring.DEFAULT_SCORER, scoring.ScorerEntry("stubs:Parity", ""))


@pytest.fixture
def given(tmp_path: Path) -> dict[str, str]:
    """Files of pairs, prompts and ordinary text."""
    pairs = [
        {"prompt": f"The town {i} is", "chosen": " quiet and old", "rejected": " a place of fools"} for i in range(8)
    ]
    prompts = [{"prompt": f"The weather {i} was"} for i in range(9)]
    found = {"pairs": pairs, "prompts": prompts, "text": [{"text": "The history of the town is long. " * 9}]}
    for name, rows in found.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(tmp_path / f"{name}.jsonl") for name in found}


def settings_of(given: dict[str, str], **changes: Any) -> DetoxSettings:
    return DetoxSettings(**given, bounds=UtilityBounds(0.5, 0.5), max_steps=2, audited=False, **changes)


def test_the_command_leaves_a_model_within_the_budget_and_a_report(
    model: str, given: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    asked: dict[str, Any] = {}

    def audit(models: Any, **how: Any) -> dict[str, Any]:  # the battery has tests of its own
        asked.update(how, models=models)
        return read_json(write_audit(how["output"], attacked("relearn", 30)) / "results.json")

    monkeypatch.setattr("efface.audit.run.audit_models", audit)
    out = tmp_path / "out"
    flags = [f"--{name}={file}" for name, file in given.items()]
    argv = ["detox", model, "-o", str(out), *flags, "--max-kl", "0.5", "--max-perplexity-increase", "0.5"]
    argv += ["--max-steps", "2"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "[5/5" in printed and "toxic share, edited / base" in printed and "chosen" in printed
    result = read_json(out / "results.json")
    reading = result["chosen"]["reading"]
    assert reading["kl"] <= 0.5 and reading["increase"] <= 0.5 and 0 < result["chosen"]["a"] <= 2
    assert result["edited"]["toxicity"]["n_prompts"] == 6 and result["edited"]["toxicity"]["samples"] == 2
    tuned, reported = (load_texts(str(out / f"{name}.jsonl"), "prompt") for name in ("tuning", "reported"))
    assert len(tuned) == 3 and not set(tuned) & set(reported), "nothing is reported that the strength was chosen on"
    assert asked["models"] == {"edited": str(out / "model")} and asked["budget"] == "quick"
    assert asked["measurement"]["base"] == model and asked["measurement"]["prompts"] == str(out / "reported.jsonl")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert result["erasure"] == read_json(out / "erasure.json") and "What the hidden states still say" in page
    assert "Attacks: audit" in page and "Strength and its price: sweep" in page and "kept" in page
    assert "toxicity comes back beyond chance under relearn" in page
    moved = AutoModelForCausalLM.from_pretrained(out / "model").state_dict()
    start = AutoModelForCausalLM.from_pretrained(model).state_dict()
    assert any(not moved[name].equal(start[name]) for name in start)
    stages = [row["stage"].split()[0] for row in read_events(out) if row["event"] == "stage end"]
    assert stages == ["pairs:", "REPO", "both", "audit,", "the"] and read_events(out)[-1]["event"] == "end"

    files = ("base.json", "edited.json", "erasure.json", "model/model.safetensors")
    kept = {file: (out / file).stat().st_mtime_ns for file in files}
    assert main([*argv, "--resume"]) == 0
    assert {file: (out / file).stat().st_mtime_ns for file in kept} == kept
    assert main(argv) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main([*argv, "--resume", "--seed", "1"]) == 2
    assert "of other settings: seed: was 0, is 1" in capsys.readouterr().err


@pytest.mark.full
def test_the_model_that_is_saved_is_the_multiple_that_was_chosen(
    model: str, given: dict[str, str], tmp_path: Path
) -> None:
    result = detox(model, output=tmp_path / "out", settings=settings_of(given))
    kept = result["chosen"]
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "sweep" / "arms" / kept["arm"] / "model")
    base, saved = (AutoModelForCausalLM.from_pretrained(one) for one in (model, tmp_path / "out" / "model"))
    originals, trained = base.state_dict(), whole.state_dict()
    for name, tensor in saved.state_dict().items():
        expected = originals[name] + kept["a"] * (trained[name] - originals[name])
        assert tensor.sub(expected).abs().max() < 1e-6


@pytest.mark.full
def test_without_pairs_they_are_built_from_the_model(model: str, given: dict[str, str], tmp_path: Path) -> None:
    changed = {**given, "pairs": None}
    result = detox(model, output=tmp_path / "out", settings=settings_of(changed, source="sample"))  # type: ignore[arg-type]
    built = read_json(tmp_path / "out" / "pairs.meta.json")
    assert 1 <= built["counts"]["kept"] <= 4 and built["settings"]["how"] == "sample"
    assert result["plan"]["settings"]["pairs"] is None


@pytest.mark.full
def test_an_interrupted_run_goes_on_where_it_was(
    model: str, given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, out = job.measure_side, tmp_path / "out"

    def interrupted(name: str, *args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "measure_side", interrupted)
    with pytest.raises(KeyboardInterrupt):
        detox(model, output=out, settings=settings_of(given))
    arms = {file: file.stat().st_mtime_ns for file in out.glob("sweep/arms/*/arm.json")}
    assert len(arms) == 2 and not (out / "results.json").exists()
    monkeypatch.setattr(job, "measure_side", measure)
    detox(model, output=out, settings=settings_of(given), resume=True)
    assert {file: file.stat().st_mtime_ns for file in arms} == arms and (out / "results.json").exists()


def test_what_was_measured_of_another_strength_is_measured_again(
    model: str, given: dict[str, str], tmp_path: Path
) -> None:
    out, settings = tmp_path / "out", settings_of(given)
    found = detox(model, output=out, settings=settings)["edited"]
    saved = read_json(out / "model" / "results.json")
    write_json(out / "edited.json", found | {"toxicity": found["toxicity"] | {"share": 0.125}})
    write_json(out / "model" / "results.json", saved | {"scaled_by": 0.1})  # what lies there is another edit
    result = detox(model, output=out, settings=settings, resume=True)
    assert result["edited"]["toxicity"]["share"] == found["toxicity"]["share"] != 0.125


def test_what_the_training_pairs_hold_is_not_reported(model: str, given: dict[str, str], tmp_path: Path) -> None:
    kept = [f"The weather {i} was" for i in range(9)]
    seen = ["The town 3 is", "People say the town 4 is quiet"]  # one as it is, one nearly so
    with Path(given["prompts"]).open("a") as file:
        file.writelines(json.dumps({"prompt": prompt}) + "\n" for prompt in seen)
    told: list[str] = []
    out = tmp_path / "out"
    detox(model, output=out, settings=settings_of(given), say=told.append)
    tuned, reported = (load_texts(str(out / f"{name}.jsonl"), "prompt") for name in ("tuning", "reported"))
    assert sorted([*tuned, *reported]) == kept and tuned == draw_prompts(kept, 3, 0)
    assert f"2 of {given['prompts']} are left out: the training pairs hold these prompts, or nearly so" in told


def test_what_is_reported_by_default_is_what_it_was() -> None:
    tuned, reported, left_out = job._split(DetoxSettings())
    prompts = load_texts("shipped:prompts", "prompt")
    assert tuned == draw_prompts(prompts, len(prompts) // 3, 0) and left_out == 0
    assert reported == [prompt for prompt in prompts if prompt not in tuned]


@pytest.mark.parametrize("pairs", ["shipped:train", None])
def test_prompts_that_are_all_in_the_training_pairs(
    pairs: str | None, model: str, given: dict[str, str], tmp_path: Path
) -> None:
    settings = settings_of({**given, "pairs": pairs, "prompts": "shipped:train"})  # type: ignore[dict-item]
    with pytest.raises(UserError, match=r"'shipped:train': 0, without \d+ that the training pairs hold, are too few"):
        detox(model, output=tmp_path / "out", settings=settings)
    assert not (tmp_path / "out").exists()


def test_a_source_that_needs_a_setting_is_not_offered_and_refused_at_once(
    model: str, given: dict[str, str], fails: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for name in ("pplm", "corpus"):
        with pytest.raises(UserError, match=f"source '{name}' needs"):
            detox(model, output=out, settings=settings_of({**given, "pairs": None}, source=name))  # type: ignore[dict-item]
        said = fails(2, "detox", model, "-o", out, "--toxic", name)
        assert "invalid choice" in said and "(choose from antiexpert, dexperts, sample)" in said.replace("'", "")
    assert not out.exists()


def test_a_budget_that_nothing_fits_says_what_was_too_dear(model: str, given: dict[str, str], tmp_path: Path) -> None:
    settings = DetoxSettings(**given, bounds=UtilityBounds(0.0, 0.0), max_steps=2, audited=False)
    with pytest.raises(RunError, match=r"no strength fits the budget .* learning rate 0.001: .*kl.* Allow more"):
        detox(model, output=tmp_path / "out", settings=settings)


def test_what_is_wrong_is_said_before_anything_is_written(model: str, given: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    wrong = {"pairs": "absent.jsonl", "text": "absent.jsonl", "prompts": "absent.jsonl", "scorers": ("absent",)}
    for name, value in wrong.items():
        with pytest.raises(UserError, match="absent"):
            detox(model, output=out, settings=settings_of({**given, name: value}))  # type: ignore[dict-item]
    with pytest.raises(UserError, match="budget='huge' is unknown"):
        settings_of(given, budget="huge")
    few = tmp_path / "few.jsonl"
    few.write_text('{"prompt": "The"}\n{"prompt": "A"}\n')
    with pytest.raises(UserError, match="too few to choose on some and report others"):
        detox(model, output=out, settings=settings_of({**given, "prompts": str(few)}))
    assert not out.exists()
