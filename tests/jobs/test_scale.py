"""Is a scaled edit exactly as strong as the budget allows, and is the checkpoint what was measured?

Of: commands/scale.py
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from efface import scoring
from efface.cli import main
from efface.errors import RunError, UserError
from efface.evaluation.budget import UtilityBounds
from efface.evaluation.ordinary_cost import OrdinaryCost
from efface.files.results import read_json, write_json
from efface.jobs.scale import scale
from efface.model.interventions import Intervention, attach_, attached
from efface.model.load import load_model
from efface.model.save import save_model

RECORD = {"model": "a base", "method": "repo", "settings": {}, "history": [], "scaled_by": 0.5}
TEXT = "The history of the town is long, and the weather was cold. " * 9


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an edit of it that costs something, and what it is measured on."""
    folder = tmp_path_factory.mktemp("scale")
    base = tiny_model("llama")
    edited = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in edited.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    for name, model in {"base": base, "edited": edited, "other": tiny_model("gpt2")}.items():
        save_model(model, tiny_tokenizer(), folder / name)
    write_json(folder / "edited" / "results.json", RECORD)
    (folder / "text.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    rows = [{"prompt": f"The weather {i} was"} for i in range(4)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scoring.SCORERS, scoring.DEFAULT_SCORER, scoring.ScorerEntry("stubs:Parity", ""))


def asked(given: Path, **more: Any) -> dict[str, Any]:
    return {"base": given / "base", "text": str(given / "text.jsonl"), "prompts": str(given / "prompts.jsonl"), **more}


def cost_of(model: PreTrainedModel, given: Path) -> float:
    base, tokenizer = load_model(given / "base")
    kl = OrdinaryCost(base, tokenizer, [TEXT]).of(model).kl
    assert kl is not None
    return kl


def test_the_checkpoint_stands_at_the_budget(given: Path, tmp_path: Path) -> None:
    """Half of what the whole edit costs: less of it fits, and a little more would not."""
    (base, _), (edited, _) = (load_model(given / name) for name in ("base", "edited"))
    bounds = UtilityBounds(kl=cost_of(edited, given) / 2, perplexity=99.0)
    found = scale(given / "edited", output=tmp_path / "out", bounds=bounds, **asked(given))
    a, readings = found["fitted"]["a"], found["fitted"]["readings"]
    assert 0.5 < a < 0.95 and found["fitted"]["binding"] == ["kl"]
    scaled = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    (taken,) = [reading for reading in readings if reading["a"] == a]
    assert (
        cost_of(scaled, given) == pytest.approx(taken["kl"], rel=1e-4) and 0.9 * bounds.kl < taken["kl"] <= bounds.kl
    )
    weights = dict(scaled.named_parameters())
    for (name, start), end in zip(base.named_parameters(), edited.parameters(), strict=True):
        torch.testing.assert_close(weights[name], start + a * (end - start), atol=1e-6, rtol=1e-5)
    assert read_json(tmp_path / "out" / "scale.json") == found


def test_it_is_known_how_it_was_trained_and_by_how_much_it_was_scaled_in_all(given: Path, tmp_path: Path) -> None:
    found = scale(given / "edited", output=tmp_path, bounds=UtilityBounds(99.0, 99.0), most=0.25, **asked(given))
    assert found["fitted"]["a"] == 0.25 and found["fitted"]["binding"] == ["most"]
    result = read_json(tmp_path / "results.json")
    assert result["method"] == "repo" and result["scaled_by"] == pytest.approx(0.125), "it had been scaled to a half"
    assert "library_name: transformers" in (tmp_path / "README.md").read_text()


def test_what_nobody_has_trained_is_scaled_too(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command; of a model without a record there is none."""
    save_model(load_model(given / "edited")[0], tiny_tokenizer(), tmp_path / "mine")
    argv = ["scale", str(tmp_path / "mine"), "-o", str(tmp_path / "out"), "--max-kl", "0.001", "--most", "1"]
    argv += [f"--{name}={value}" for name, value in asked(given).items()]
    assert main([*argv, "--max-perplexity-increase", "9"]) == 0
    printed = capsys.readouterr().out
    assert " of the edit: KL 0.00" in printed and "kl would break beyond it" in printed and "written: " in printed
    assert not (tmp_path / "out" / "results.json").exists() and (tmp_path / "out" / "manifest.json").exists()


def test_an_operation_on_states_is_an_edit_too(given: Path, tmp_path: Path) -> None:
    """The weights of a steered model are those of the base."""
    steered, tokenizer = load_model(given / "base")
    bias = torch.full((steered.config.hidden_size,), 0.1)
    attach_(steered, [Intervention(0, torch.zeros(len(bias), 0), torch.zeros(0, len(bias)), bias)])
    save_model(steered, tokenizer, tmp_path / "steered")
    scale(tmp_path / "steered", output=tmp_path / "out", bounds=UtilityBounds(99.0, 99.0), most=0.5, **asked(given))
    (found,) = attached(load_model(tmp_path / "out")[0])
    torch.testing.assert_close(found.bias, 0.5 * bias)


def test_a_record_of_somebody_elses_stays_theirs(given: Path, tmp_path: Path) -> None:
    save_model(load_model(given / "edited")[0], tiny_tokenizer(), tmp_path / "mine")
    write_json(tmp_path / "mine" / "results.json", {"accuracy": 0.5})
    scale(tmp_path / "mine", output=tmp_path / "out", bounds=UtilityBounds(99.0, 99.0), **asked(given))
    assert not (tmp_path / "out" / "results.json").exists()


def test_gibberish_is_no_edit(given: Path, tmp_path: Path) -> None:
    """It repeats one token for ever; ordinary text may cost what it likes."""
    broken, tokenizer = load_model(given / "base")
    with torch.no_grad():
        broken.get_output_embeddings().weight[40] += 50
    save_model(broken, tokenizer, tmp_path / "broken")
    with pytest.raises(RunError, match=r"no multiple of the edit fits the budget .* of it: repetition is "):
        scale(tmp_path / "broken", output=tmp_path / "out", bounds=UtilityBounds(1e9, 1e9), **asked(given))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_scaled(given: Path, fails: Any, tmp_path: Path) -> None:
    out, same = tmp_path / "out", asked(given)
    with pytest.raises(UserError, match="has the weights of the base: there is no edit to scale"):
        scale(given / "base", output=out, **same)
    with pytest.raises(UserError, match="they cannot be scaled. Pass as base the model that this one was made from"):
        scale(given / "other", output=out, **same)
    with pytest.raises(UserError, match="most"):
        scale(given / "edited", output=out, most=0.0, **same)
    with pytest.raises(RunError, match=r"no multiple of the edit fits the budget \(KL at most 0 .* of it: kl"):
        scale(given / "edited", output=out, bounds=UtilityBounds(0.0, 0.0), **same)
    assert not out.exists()
    assert "is not a checkpoint directory" in fails(2, "scale", given / "edited", "--base", "./absent", "-o", out)
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "is left alone" in fails(2, "scale", given / "edited", "--base", given / "base", "-o", out, "--overwrite")
