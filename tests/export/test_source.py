"""Is what efface commands write told apart, and whatever else is given refused in a line?"""

from collections.abc import Callable
from pathlib import Path

import pytest
from attacked import attacked

from efface.audit.rows import attack_file
from efface.errors import UserError
from efface.export.source import public_name, read_given
from efface.files.results import read_json, write_json


def test_a_folder_with_evaluations_is_all_of_them(evaluations: Path) -> None:
    assert [one.name for one in read_given(evaluations)] == ["base", "edited"]
    (one,) = read_given(evaluations / "edited.json")
    assert one.name == "edited" and one.generations == evaluations / "edited.generations.jsonl"


def test_a_run_with_a_summary_is_what_that_says(evaluations: Path, tmp_path: Path) -> None:
    sides = {name: read_json(evaluations / f"{name}.json") for name in ("base", "edited")}
    write_json(tmp_path / "results.json", {"schema": 1, "plan": {}, **sides})
    write_json(tmp_path / "other.json", sides["base"])
    found = read_given(tmp_path)
    assert [(one.name, one.generations) for one in found] == [
        (name, tmp_path / f"{name}.generations.jsonl") for name in sides
    ]
    assert found[0].result == sides["base"]


def test_an_audit_is_the_evaluation_of_each_model_with_its_attacks(real_audit: Path) -> None:
    (one,) = read_given(real_audit)
    assert one.name == "edited" and one.found["settings"]["decoding"]["max_new_tokens"] == 4
    assert one.found["settings"]["prompts"].endswith("prompts.jsonl")  # which its attacks know
    assert [row["attack"] for row in one.attacks] == ["third_party:fine", "third_party:crashes", "merge"]
    (alone,) = read_given(real_audit / "edited" / "third_party.fine")
    assert alone.found["toxicity"] == one.found["toxicity"] and alone.attacks[0]["attack"] == "fine"


def test_what_is_nothing_of_efface_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nosuch cannot be exported: there is no such file or directory"):
        read_given(tmp_path / "nosuch")
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    for given in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(UserError, match="holds nothing that can be exported: no evaluation, no result"):
            read_given(given)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match="results.json, line 1: not valid JSON"):
        read_given(tmp_path)


def test_what_was_changed_is_refused_with_its_place(audit: Callable[..., Path], evaluations: Path) -> None:
    folder = audit(attacked("relearn", 30))
    content = read_json(folder / "results.json")
    content["models"][0]["attacks"][0]["judged"]["share"] = "much"
    write_json(folder / "results.json", content)
    with pytest.raises(UserError, match=r"'models\[0\].attacks\[0\].judged.share' must be a finite number"):
        read_given(folder)
    sides = {name: read_json(evaluations / f"{name}.json") for name in ("base", "edited")}
    del sides["edited"]["toxicity"]["ci95"]
    write_json(folder / "results.json", sides)
    with pytest.raises(UserError, match="'edited' of .*results.json: 'toxicity' has no 'ci95'"):
        read_given(folder)


def test_a_name_in_a_file_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "secret" / "x" / "result.json", {})
    write_json(tmp_path / "audit" / "m" / "x" / "result.json", {})
    assert attack_file(tmp_path / "audit", "m", "x") == tmp_path / "audit" / "m" / "x" / "result.json"
    assert attack_file(tmp_path / "audit", "../secret", "x") is None
    assert attack_file(tmp_path / "audit", str(tmp_path / "secret"), "x") is None


def test_names_for_others_are_without_the_folders_of_a_machine(tmp_path: Path) -> None:
    assert public_name(str(tmp_path / "model")) == "model"
    assert [public_name(name) for name in ("org/model", "pypi:x", "runs/x")] == ["org/model", "pypi:x", "runs/x"]
