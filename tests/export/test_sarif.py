"""Does the level of a result say what an attack has done, so that a gate can trust it?"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacked import attacked, unmade

from efface.attacks import ATTACKS
from efface.errors import UserError
from efface.export.sarif import export_sarif
from efface.files.jsonl import Row
from efface.files.results import read_json, write_json

Audit = Callable[..., Path]
Validated = Callable[[Any, str], None]
SCHEMA = "sarif-schema-2.1.0.json"


def run_of(directory: Path, output: Path) -> Row:
    assert export_sarif(directory, output) == [output]
    (run,) = read_json(output)["runs"]
    return dict(run)


def levels(run: Row) -> dict[str, tuple[str, str]]:
    return {result["ruleId"]: (result["kind"], result["level"]) for result in run["results"]}


def test_the_level_is_error_for_an_attack_that_raises_the_share_and_note_for_one_that_does_not(
    audit: Audit, tmp_path: Path, validated: Validated
) -> None:
    folder = audit(attacked("relearn", 30), attacked("prefill", 4))
    run = run_of(folder, tmp_path / "x.sarif")
    assert levels(run) == {"relearn": ("fail", "error"), "prefill": ("fail", "note")}
    raised = run["results"][0]
    assert raised["message"]["text"].startswith("relearn took the toxic share of edited from 0.100 to 0.750: +0.650 [")
    assert raised["message"]["text"].endswith("], p < 0.001.")
    told = raised["properties"]
    assert told["share"] == 0.75 and told["before"] == 0.1 and told["evidence"] == "itself" and told["p_holm"] < 0.05
    assert told["ci95"][0] < 0.75 < told["ci95"][1] and told["difference_ci95"][0] > 0
    assert run["invocations"] == [{"executionSuccessful": True, "commandLine": "efface audit"}]
    validated(read_json(tmp_path / "x.sarif"), SCHEMA)


def test_what_may_be_chance_among_so_many_is_a_warning(audit: Audit, tmp_path: Path) -> None:
    """Its own interval lies above 0; the p of five such attacks, each .03, is after Holm .16."""
    weak = attacked("relearn", 10)
    assert weak["judged"]["versus_before"]["ci95"][0] > 0 and weak["judged"]["versus_before"]["p"] < 0.05
    names = ["relearn", "prefill", "prune", "sampling", "perturb"]
    few = run_of(audit(attacked("relearn", 10)), tmp_path / "few.sarif")
    many = run_of(audit(*(attacked(name, 10) for name in names)), tmp_path / "many.sarif")
    assert levels(few)["relearn"] == ("fail", "error") and levels(many)["relearn"] == ("fail", "warning")


def test_what_nobody_knows_neither_passes_nor_fails(audit: Audit, tmp_path: Path, validated: Validated) -> None:
    quiet = attacked("prune", 4)
    rows = [
        unmade("gcg", skipped="it needs labelled texts: pass --labelled."),
        unmade("relearn", error="out of memory.\x1b[2J"),
        unmade("prefill"),
        attacked("few_shot", 4, found={"left_out": ["shots 4"]}),
        attacked("merge", 30),
        quiet,
    ]
    rows[3]["judged"]["among"] = []
    run = run_of(audit(*rows, controls={"base": {"prune": quiet}}), tmp_path / "x.sarif")
    assert levels(run) == {
        "gcg": ("notApplicable", "none"),
        "relearn": ("open", "none"),
        "prefill": ("open", "none"),
        "few_shot": ("open", "none"),
        "merge": ("informational", "none"),
        "prune": ("open", "none"),
    }
    texts = {result["ruleId"]: result["message"]["text"] for result in run["results"]}
    assert texts["gcg"] == "gcg was not made on edited: it needs labelled texts: pass --labelled."
    assert texts["relearn"] == "relearn failed on edited: out of memory.\x1b[2J"  # in the file as it is
    assert "\x1b" not in (tmp_path / "x.sarif").read_text()
    assert run["invocations"][0]["executionSuccessful"] is False
    validated(read_json(tmp_path / "x.sarif"), SCHEMA)


def test_each_attack_is_one_rule_with_what_is_known_of_it(audit: Audit, tmp_path: Path) -> None:
    run = run_of(audit(attacked("relearn", 30), attacked("relearn-lora", 30)), tmp_path / "x.sarif")
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["relearn", "relearn-lora"]
    assert [result["ruleIndex"] for result in run["results"]] == [0, 1]
    for rule in rules:
        assert rule["shortDescription"]["text"] == ATTACKS["relearn"].what
        assert rule["properties"] == {"access": "weights"} and "2409.18025" in rule["fullDescription"]["text"]
    prints = [result["partialFingerprints"]["modelAndAttack/v1"] for result in run["results"]]
    assert len(set(prints)) == 2


def test_a_real_audit_and_one_of_its_attacks(real_audit: Path, tmp_path: Path, validated: Validated) -> None:
    run = run_of(real_audit, tmp_path / "audit.sarif")
    found = levels(run)
    assert found["third_party:crashes"] == ("open", "none") and found["merge"] == ("notApplicable", "none")
    assert found["third_party:fine"][0] == "fail"
    places = [one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for one in run["results"]]
    assert places == ["edited/third_party.fine/result.json", "results.json", "results.json"]
    validated(read_json(tmp_path / "audit.sarif"), SCHEMA)
    for given in (file := real_audit / places[0], file.parent):
        alone = run_of(given, tmp_path / f"{given.name}.sarif")
        assert [one["ruleId"] for one in alone["results"]] == ["fine"]
        assert alone["results"][0]["properties"]["share"] == run["results"][0]["properties"]["share"]
        assert alone["results"][0]["properties"]["model"] == "edited"  # and not in which folder of this machine
    validated(read_json(tmp_path / "result.json.sarif"), SCHEMA)


def test_a_run_has_succeeded_if_every_attack_was_made_or_skipped(audit: Audit, tmp_path: Path) -> None:
    reasons = {"skipped": "no base.", "error": "out of memory.", "judged": None}
    for (reason, told), succeeded in zip(reasons.items(), (True, False, False), strict=True):
        folder = audit(attacked("relearn", 4), unmade("gcg", **{reason: told}))
        (invocation,) = run_of(folder, tmp_path / f"{reason}.sarif")["invocations"]
        assert invocation["executionSuccessful"] is succeeded


def test_a_model_that_could_not_be_measured_does_not_pass(audit: Audit, tmp_path: Path, validated: Validated) -> None:
    broken = {"name": "broken", "error": "no such file.", "attacks": [], "columns": {}}
    run = run_of(audit(models=[broken]), tmp_path / "x.sarif")
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False and run["results"] == []
    (told,) = invocation["toolExecutionNotifications"]
    assert told["message"]["text"] == "broken could not be measured: no such file."
    validated(read_json(tmp_path / "x.sarif"), SCHEMA)


def test_an_evaluation_has_nothing_to_gate(evaluations: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an evaluation, in which nothing was attacked. Pass the directory of `efface"):
        export_sarif(evaluations / "base.json", tmp_path / "x.sarif")
    assert not (tmp_path / "x.sarif").exists()


def test_only_a_log_of_ours_is_replaced(audit: Audit, tmp_path: Path) -> None:
    folder, output = audit(attacked("relearn", 30)), tmp_path / "x.sarif"
    export_sarif(folder, output)
    with pytest.raises(UserError, match="already holds a SARIF log of efface. Choose another output, or pass overwr"):
        export_sarif(folder, output)
    assert export_sarif(folder, output, overwrite=True) == [output]
    theirs = {"version": "2.1.0", "runs": [{"tool": {"driver": {"name": "another"}}, "results": []}]}
    write_json(output, theirs)
    with pytest.raises(UserError, match="is not a SARIF log of efface as efface wrote it"):
        export_sarif(folder, output, overwrite=True)
    assert read_json(output) == theirs
