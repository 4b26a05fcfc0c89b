"""Does `efface demo` leave what it promises, and does a second one do only what is missing?"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model
from transformers import AutoModelForCausalLM

import efface.jobs.demo
from efface import scoring
from efface.cli import main
from efface.errors import UserError
from efface.files.events import read_events
from efface.files.results import read_json
from efface.model.save import save_model
from efface.terminal.table import Block
from efface.training import run as training

FILES = {"model", "base.json", "edited.json", "erasure.json", "figure.png", "report.html", "results.json"}


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few prompts, short texts, two steps, and a scorer that random models do not leave cold."""
    pairs = [
        {"prompt": f"The town {i} is", "chosen": " quiet and old", "rejected": " a place of fools"} for i in range(8)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    texts = {"prompt": [f"The weather {i} was" for i in range(6)], "text": ["The history of the town is long. " * 9]}
    monkeypatch.setattr(efface.jobs.demo, "PAIRS", str(tmp_path / "pairs.jsonl"))
    monkeypatch.setattr(efface.jobs.demo, "SETTINGS", {"max_steps": 2, "logging_steps": 1, "disable_tqdm": True})
    monkeypatch.setattr(efface.jobs.demo, "SAMPLES", 2)
    monkeypatch.setattr(efface.jobs.demo, "TEXT_TOKENS", 60)
    monkeypatch.setattr(efface.jobs.demo, "load_texts", lambda source, field="text": texts[field])
    monkeypatch.setitem(scoring.SCORERS, scoring.DEFAULT_SCORER, scoring.ScorerEntry("stubs:Parity", ""))


def test_everything_is_left_and_a_second_run_reuses_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    argv = ["demo", "-o", str(out), "--model", model]
    assert main([*argv, "--resume"]) == 0  # as `make demo` says it, also the first time
    printed = capsys.readouterr().out
    assert "[5/5" in printed and "toxic share, edited / base" in printed and str(out / "report.html") in printed
    assert {file.name for file in out.iterdir()} >= FILES
    result = read_json(out / "results.json")
    base, edited = read_json(out / "base.json"), read_json(out / "edited.json")
    assert (result["schema"], result["base"], result["edited"]) == (1, base, edited)
    assert 0 < base["toxicity"]["share"] and base["toxicity"]["n_prompts"] == 6 and base["toxicity"]["samples"] == 2
    assert edited["model"] == str(out / "model")
    expected = edited["toxicity"]["share"] / base["toxicity"]["share"]
    assert result["comparison"]["share_ratio"] == pytest.approx(expected)
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "efface demo" in page and page.count("<svg ") == 5
    assert result["erasure"] == read_json(out / "erasure.json") and list(result["erasure"]["layers"]) == ["0", "1"]
    assert "What the hidden states still say" in page and "By the token alone a toxic one ranks above" in page
    first = f"{100 * base['toxicity']['share']:.1f} % -> {100 * edited['toxicity']['share']:.1f} % (at most "
    assert f"toxic continuations: {first}" in printed and first.replace("->", "→") in page
    assert "Still toxic: " in page and "Newly toxic: " in page and "Biggest drops: " in page
    AutoModelForCausalLM.from_pretrained(out / "model")
    events = read_events(out)
    assert [row["event"] for row in events].count("stage end") == 4 and events[-1]["event"] == "end"
    assert "log" not in [row["event"] for row in events]  # which stands in the log book of the training
    assert [row["step"] for row in read_events(out / "model") if row["event"] == "log"] == [1, 2, 2]

    kept = {name: (out / name).stat().st_mtime_ns for name in ("base.json", "edited.json", "erasure.json")}
    kept["model/model.safetensors"] = (out / "model" / "model.safetensors").stat().st_mtime_ns
    assert main([*argv, "--resume"]) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    # Without --resume nothing is touched, and of other settings nothing is reused.
    assert main(argv) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main([*argv, "--resume", "--max-steps", "1"]) == 2
    assert "holds a demo of other settings: max_steps: was " in capsys.readouterr().err
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert main([*argv, "--overwrite", "--max-steps", "1"]) == 0
    assert read_json(out / "model" / "results.json")["steps"] == 1


def test_an_interrupted_demo_goes_on_where_it_was(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, calls = training.train, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    monkeypatch.setattr(training, "train", interrupted)
    out = tmp_path / "demo"
    with pytest.raises(KeyboardInterrupt):
        efface.jobs.demo.run(out, model_name=model)
    first = (out / "base.json").stat().st_mtime_ns
    efface.jobs.demo.run(out, model_name=model, resume=True)
    assert (out / "base.json").stat().st_mtime_ns == first and {file.name for file in out.iterdir()} >= FILES


@pytest.mark.parametrize("changed", ["model of", "versions"])
def test_a_demo_of_another_model_under_the_same_name_is_not_resumed(
    changed: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, out = shutil.copytree(model, tmp_path / "mine"), tmp_path / "demo"
    monkeypatch.setattr("efface.jobs.demo._evaluate", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        efface.jobs.demo.run(out, model_name=str(name))
    if changed == "model of":
        save_model(tiny_model("llama", seed=1), None, name)
    else:
        monkeypatch.setattr("efface.jobs.demo.versions", lambda: {"torch": "9.9"})
    with pytest.raises(UserError, match=f"holds a demo of other settings: {changed}: was"):
        efface.jobs.demo.run(out, model_name=str(name), resume=True)


@pytest.mark.full
def test_a_wrong_model_neither_deletes_nor_claims_the_directory(model: str, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    efface.jobs.demo.run(out, model_name=model)
    with pytest.raises(UserError, match="is not a checkpoint directory"):
        efface.jobs.demo.run(out, model_name="./absent", overwrite=True)
    assert {file.name for file in out.iterdir()} >= FILES
    with pytest.raises(UserError, match="is not a checkpoint directory"):
        efface.jobs.demo.run(tmp_path / "new", model_name="./absent")
    efface.jobs.demo.run(tmp_path / "new", model_name=model)


@pytest.mark.full
def test_a_model_that_is_not_toxic_at_all_still_gets_its_report(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(scoring.SCORERS, scoring.DEFAULT_SCORER, scoring.ScorerEntry("stubs:Never", ""))
    said: list[Block] = []
    result = efface.jobs.demo.run(tmp_path / "demo", model_name=model, show=said.append)
    assert result["base"]["toxicity"]["share"] == 0 and (tmp_path / "demo" / "report.html").exists()
    assert any("toxic share, edited / base" in str(block) for block in said)


@pytest.mark.full
def test_a_demo_of_an_older_version_gets_its_probe_when_it_is_resumed(model: str, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    efface.jobs.demo.run(out, model_name=model)
    (out / "erasure.json").unlink()
    edited = (out / "edited.json").stat().st_mtime_ns
    efface.jobs.demo.run(out, model_name=model, resume=True)
    assert (out / "erasure.json").exists() and (out / "edited.json").stat().st_mtime_ns == edited


def test_a_demo_whose_states_cannot_be_probed_ends_all_the_same(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efface.jobs.erasure.HELD_OUT", efface.jobs.demo.PAIRS)  # all of them were trained on
    said: list[str] = []
    result = efface.jobs.demo.run(tmp_path / "demo", model_name=model, say=said.append)
    assert "0 prompts that were not trained on" in result["erasure"]["not_measured"]
    assert any("what the hidden states say was not measured" in line for line in said)
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "They were not probed: " in page and page.count("<svg ") == 4
