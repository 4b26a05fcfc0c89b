"""Are both models probed once, on pairs that nothing was trained on, and does a failure end no job?"""

import json
from pathlib import Path
from typing import Any

import pytest

import efface.jobs.erasure as job
from efface.analysis.rounds import PARTS
from efface.data.pairs import load_pairs
from efface.errors import UserError
from efface.files.results import read_json, write_json
from efface.jobs.erasure import ERASURE_FILE, held_out, measure_erasure

TRAINED = [{"prompt": "The town is", "chosen": " quiet", "rejected": " a place of fools"}]


def test_both_models_are_probed_once(model: str, tmp_path: Path) -> None:
    said: list[str] = []
    found = measure_erasure(model, model, tmp_path, trained_on=TRAINED, say=said.append)
    assert found["pairs"] == "shipped:heldout" and found["n_pairs"] == PARTS and list(found["layers"]) == ["0", "1"]
    assert found["most"]["fall"]["auc_gain"] == 0, "a model is no different from itself"
    assert json.loads(json.dumps(found)) == read_json(tmp_path / ERASURE_FILE) and not said
    kept = (tmp_path / ERASURE_FILE).stat().st_mtime_ns
    assert measure_erasure("absent", "absent", tmp_path, trained_on=TRAINED) == read_json(tmp_path / ERASURE_FILE)
    assert (tmp_path / ERASURE_FILE).stat().st_mtime_ns == kept


def test_a_file_of_another_make_is_refused(model: str, tmp_path: Path) -> None:
    write_json(tmp_path / ERASURE_FILE, {"schema": 1, "layers": {}})
    with pytest.raises(UserError, match="has no 'n_layers'"):
        measure_erasure(model, model, tmp_path, trained_on=TRAINED)


def test_pairs_of_the_training_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "N_PAIRS", 64)
    rows = load_pairs("shipped:heldout").rows
    assert held_out("shipped:heldout", TRAINED) == held_out("shipped:heldout", "shipped:train") == rows
    assert held_out("shipped:heldout", rows[:40]) == rows[40:]
    with pytest.raises(UserError, match=rf"'shipped:heldout' has 0 prompts that were not .* needs {PARTS}"):
        held_out("shipped:heldout", "shipped:heldout")


def test_pairs_are_of_as_many_prompts_as_there_are() -> None:
    rows = [
        {"prompt": f"The town {prompt}", "chosen": " is old", "rejected": f" is silly {number}"}
        for prompt in range(PARTS)
        for number in range(3)
    ]
    assert held_out(rows, TRAINED) == rows[::3]
    with pytest.raises(UserError, match=rf"has {PARTS - 1} prompts that were not trained on"):
        held_out(rows, rows[:1])


@pytest.mark.parametrize("trained_on", ["shipped:heldout", TRAINED])
def test_what_cannot_be_probed_is_said_and_nothing_is_kept(tmp_path: Path, trained_on: Any) -> None:
    said: list[str] = []
    found = measure_erasure("./absent", "./absent", tmp_path, trained_on=trained_on, say=said.append)
    assert list(found) == [job.NOT_MEASURED] and found[job.NOT_MEASURED] in said[0]
    assert not list(tmp_path.iterdir())
