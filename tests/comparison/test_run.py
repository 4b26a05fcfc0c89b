"""Does a sweep find, at one budget, which tiny method is best, and does it end alike however often it is interrupted?

Of: comparison/arms.py, comparison/claims.py, comparison/making.py, comparison/measuring.py,
comparison/record.py, comparison/results.py, comparison/scaling.py, comparison/targets.py
"""

import contextlib
import copy
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from polite import BENIGN, HELD_OUT, PROMPTS, ROWS, TOXIC, quick_learner
from tiny import tiny_tokenizer

from efface.comparison import arms as arm_settings
from efface.comparison import kept as kept_models
from efface.comparison import making
from efface.comparison.arms import Arm, arms_of, count_trials, further_seeds, train_arm
from efface.comparison.claims import claimed
from efface.comparison.config import AttackPlan, SweepConfig, build_config
from efface.comparison.making import Arms
from efface.comparison.measuring import Bench, weigh_edit
from efface.comparison.results import benchmark_rows
from efface.comparison.run import list_arms, sweep
from efface.comparison.scaling import Scaler
from efface.comparison.table import comparison_page, markdown, read_sweep
from efface.comparison.targets import targets_of
from efface.errors import UserError
from efface.evaluation.budget import UtilityBounds
from efface.files.events import Journal, read_events
from efface.files.results import prepare_output_dir, read_json, write_json, write_jsonl
from efface.model.devices import as_many_threads
from efface.model.load import load_model
from efface.model.save import save_model
from efface.training.finetune import finetune

TEXT = ["The history of the town is the history of its river.", "She went to the market and bought bread."] * 2


@pytest.fixture(scope="module")
def silly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that goes on nastily after every other prompt, with the data of a sweep beside it."""
    folder = tmp_path_factory.mktemp("sweep")
    texts = [prompt + (TOXIC if i % 2 else BENIGN) for i, prompt in enumerate(PROMPTS)] + TEXT
    base = finetune(quick_learner("llama"), tiny_tokenizer(), texts, steps=80, learning_rate=5e-3)
    save_model(base, tiny_tokenizer(), folder / "base")
    write_jsonl(folder / "pairs.jsonl", ROWS)
    write_jsonl(folder / "tuning.jsonl", [{"prompt": prompt} for prompt in PROMPTS[:8]])
    write_jsonl(folder / "reported.jsonl", [{"prompt": prompt} for prompt in PROMPTS[4:]])
    write_jsonl(folder / "attacked.jsonl", [{"prompt": prompt} for prompt in HELD_OUT])
    write_jsonl(folder / "text.jsonl", [{"text": text} for text in TEXT])
    return folder


def config_of(folder: Path, **more: Any) -> SweepConfig:
    common = {"use_cpu": True, "max_steps": 4, "logging_steps": 4, "retain_text": "none"}
    trials = {"learning_rate": ["1e-3", "3e-3"]}
    block: dict[str, Any] = {
        "base": str(folder / "base"),
        "methods": [
            {"name": "sft", "settings": common, "grid": trials, "seeds": [0, 1]},
            {
                "name": "broken",
                "method": "sft",
                "settings": common,
                "trials": [{"learning_rate": 1e-3}, {"learning_rate": "1e30"}],
            },
            {
                "name": "lox-sft",
                "method": "lox",
                "after": "sft",
                "settings": {"use_cpu": True, "strength": 0.5},
                "grid": {"top_k": [2, 4]},
            },
        ],
        "tuning": {"prompts": str(folder / "tuning.jsonl")},
        "reported": str(folder / "reported.jsonl"),
        "attacked": str(folder / "attacked.jsonl"),
        "pairs": str(folder / "pairs.jsonl"),
        "heldout": str(folder / "pairs.jsonl"),
        "text": str(folder / "text.jsonl"),
        "documents": str(folder / "text.jsonl"),
        "scorers": ["stubs:nasty", "stubs:parity"],
        "samples": 1,
        "max_new_tokens": 8,
        "budgets": {"main": {"kl": 0.3, "perplexity": 0.5}, "nothing": {"kl": 0, "perplexity": 0}},
        "attacks": {
            "every": {"pairs": "--data toxic --learning_rates 1e-3,5e-3 --steps 1,3 --max_perplexity_increase 9"},
            "best": {"sgd": "--data toxic --optimizer sgd --learning_rates 0.1 --steps 2 --max_perplexity_increase 9"},
            "best_of": 1,
            "rounding": ["--bits 8,4 --schemes asymmetric --group_sizes 32 --max_perplexity_increase 9"],
            "moved_steps": 1,
            "benign_steps": 2,
            "line": [0.5],
        },
    }
    return build_config(block | more)


@contextlib.contextmanager
def claimed_elsewhere(file: Path) -> Iterator[None]:
    """Another process holds the claim."""
    script = "import sys, time; from pathlib import Path; from efface.comparison.claims import claimed\n"
    script += "with claimed(Path(sys.argv[1])) as mine: print(mine, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script, str(file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        try:
            yield
        finally:
            process.kill()


def by_name(results: dict[str, Any]) -> dict[str, Any]:
    """What was kept, by budget, entry and seed."""
    return {
        row["place"] if row["arm"] is None else f"{row['budget']}/{row['entry']}-s{row['seed']}": row
        for row in results["kept"]
    }


def timeless(results: Any) -> Any:
    """Without what differs from run to run."""
    if isinstance(results, dict):
        return {key: timeless(value) for key, value in results.items() if key not in ("seconds", "environment")}
    return [timeless(value) for value in results] if isinstance(results, list) else results


@pytest.fixture(scope="module")
def whole(silly: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("whole")
    return sweep(config_of(silly), output=folder / "out"), folder / "out"


def test_a_sweep_says_what_each_method_reaches_at_the_budget(whole: Any) -> None:
    results, folder = whole
    assert read_json(folder / "results.json") == json.loads(json.dumps(results))
    arms = {arm["arm"]: arm for arm in results["arms"]}
    assert len(arms) == 7  # two trials each, and what was chosen of sft with another seed
    failed = [arm for arm in arms.values() if arm["error"]]
    assert [arm["entry"] for arm in failed] == ["broken"] and failed[0]["settings"]["learning_rate"] == "1e30"
    made = {row["arm"]: row["error"] for row in read_events(folder) if row["event"] == "arm finished"}
    assert made == {name: arm["error"] for name, arm in arms.items()}
    places = {row["model"] for row in read_events(folder) if row["event"] == "attack finished"}
    assert "base" in places and len(places) > 2 and read_events(folder)[-1]["event"] == "end"
    kept = by_name(results)
    assert list(kept) == ["base", "main/sft-s0", "main/sft-s1", "main/broken-s0", "main/lox-sft-s0"]
    for row in list(kept.values())[1:]:
        reading, bounds = row["reading"], results["config"]["budgets"]["main"]
        assert (
            reading["kl"] <= bounds["kl"] and reading["increase"] <= bounds["perplexity"] and reading["guard"] == "ok"
        )
        assert row["binding"] and 0 < row["a"] <= 2
        assert row["cost"]["steps"] == 4  # of lox those of what it edits
        assert len(row["reported"]["judges"]) == 2
    for arm in arms.values():  # a budget that nothing fits: no row is kept there, and the arm says why
        assert arm["error"] or arm["budgets"]["nothing"]["fitted"]["a"] is None
    sft = [arm for arm in arms.values() if arm["entry"] == "sft" and arm["seed"] == 0]
    shares = [arm["budgets"]["main"]["tuning"]["toxicity"]["share"] for arm in sft]
    assert kept["main/sft-s0"]["arm"] == sft[shares.index(min(shares))]["arm"]
    assert results["trials"] == {"sft": 2, "broken": 2, "lox-sft": 2} and not results["unfinished"]


def test_kept_models_are_attacked_rounded_and_compared(whole: Any) -> None:
    results, folder = whole
    kept = by_name(results)
    for row in kept.values():
        curves = row["attacks"]["pairs"]["curves"]
        assert list(curves) == ["0.001", "0.005"]
        assert [point["steps"] for point in curves["0.005"]] == [0, 1, 3]
        assert (
            len(row["rounding"][0]["points"]) == len(row["moved"][0]["points"]) == 2
            and row["weights"]["distance"] >= 0
        )
        assert row["worst"]["chosen"] and len(row["weights"]["benign_losses"]) >= 2
        assert (folder / "kept" / row["place"] / "pairs" / "result.json").exists()
    attacked = {place for place, row in kept.items() if "sgd" in row["attacks"]}
    assert len({kept[place]["entry"] for place in attacked} - {"base"}) == 1 and "base" in attacked
    figures = results["figures"][kept["main/sft-s0"]["place"]]
    assert set(figures["curves"]) >= {"pairs 0.001", "pairs 0.005"} and figures["trainability"] is not None
    assert figures["drop"] == pytest.approx(
        kept["base"]["reported"]["toxicity"]["share"] - kept["main/sft-s0"]["reported"]["toxicity"]["share"]
    )
    assert figures["barrier"] >= 0 and figures["distance"] > 0 and len(figures["surviving"]) == 2
    said = {(one["entry"], one["what"]) for one in results["comparisons"]}
    assert said == {(entry, what) for entry in ("broken", "lox-sft") for what in ("reported", "worst attack")}
    assert all(block["p_holm"] >= block["p"] for one in results["comparisons"] for block in one["judges"].values())
    rows = benchmark_rows(results)
    assert {"model", "method", "seed", "metric", "value", "ci95", "command"} == set(rows[0])
    assert any(row["metric"].endswith("steps_to_half") or row["metric"].endswith("worst_drop") for row in rows)


def test_the_checkpoints_of_arms_that_nothing_keeps_are_removed(whole: Any) -> None:
    results, folder = whole
    kept = {row["arm"] for row in results["kept"]}
    for arm in results["arms"]:
        if arm["seed"] == 0:
            assert (folder / "arms" / arm["arm"] / "model").exists() == (arm["arm"] in kept)


def test_the_page_names_every_row(whole: Any) -> None:
    results, _ = whole
    page = markdown(comparison_page({"here": read_sweep(results, "here")}).blocks)
    for said in (
        "Each entry was tuned with 2 trial(s)",
        "failed",
        "beyond it",
        "steps to half",
        "lox-sft",
        "p (Holm)",
    ):
        assert said in page, said
    other = copy.deepcopy(results) | {"trials": {"sft": 2, "lox-sft": 1}}
    assert "Not tuned alike" in str(comparison_page({"here": other, "there": results}))
    with pytest.raises(UserError, match="holds no results of a sweep"):
        read_sweep({"schema": 1}, "there")


SMALL: dict[str, Any] = {
    "methods": [
        {"name": "sft", "settings": {"use_cpu": True, "max_steps": 2, "retain_text": "none", "learning_rate": 1e-3}},
        {"name": "lox-sft", "method": "lox", "after": "sft", "settings": {"use_cpu": True, "strength": 0.5}},
    ],
    "attacks": {
        "every": {"pairs": "--data toxic --learning_rates 5e-3 --steps 1 --max_perplexity_increase 9"},
        "best": {"text": "--data benign --learning_rates 5e-3 --steps 1 --max_perplexity_increase 9"},
        "best_of": 1,
        "rounding": ["--bits 4 --max_perplexity_increase 9"],
        "benign_steps": 1,
    },
}


def test_budgets_may_be_left_unattacked_and_edits_unscaled(silly: Path, tmp_path: Path) -> None:
    common = {"use_cpu": True, "max_steps": 4, "logging_steps": 4, "retain_text": "none", "learning_rate": "1e-3"}
    changes: dict[str, Any] = {
        **SMALL,
        "methods": [
            {"name": "sft", "settings": common},
            {"name": "as-it-is", "method": "sft", "settings": common, "scaled": False},
        ],
        "budgets": {"main": {"kl": 0.3, "perplexity": 0.5}, "other": {"kl": 0.2, "perplexity": 0.5}},
        "attacks": {"every": {"pairs": "--learning_rates 1e-3 --steps 1"}, "budgets": ["main"], "line": [0.5]},
    }
    found = sweep(config_of(silly, **changes), output=tmp_path / "out")
    kept = by_name(found)
    assert kept["main/sft-s0"]["attacks"].keys() == {"pairs"} and kept["main/sft-s0"]["weights"]["barrier"] is not None
    other = kept["other/sft-s0"]
    assert other["attacks"] == {} and other["worst"] is None and other["reported"]
    assert other["weights"]["distance"] > 0 and other["weights"]["barrier"] is None
    assert "other" in str(comparison_page({"here": read_sweep(found, "here")}))
    assert kept["main/as-it-is-s0"]["a"] == 1.0 != kept["main/sft-s0"]["a"]
    (arm,) = [arm for arm in found["arms"] if arm["entry"] == "as-it-is"]
    assert [len(arm["budgets"][name]["fitted"]["readings"]) for name in ("main", "other")] == [1, 1]
    assert "- " + other["place"] + ": at the budget 'other' nothing is attacked" in markdown(
        comparison_page({"here": found}).blocks
    )
    changes["attacks"] = {"every": {"pairs": "--learning_rates 1e-3 --steps 1"}, "least_drop": 0.25}
    changes["methods"] = [{"name": "sft", "settings": common | {"learning_rate": "1e-9"}}]
    spared = by_name(sweep(config_of(silly, **changes), output=tmp_path / "out", resume=True))["main/sft-s0"]
    assert "is left on the tuning prompts" in spared["spared"] and spared["attacks"] == {} and spared["reported"]
    with pytest.raises(UserError, match="there are the budgets main"):
        config_of(silly, attacks={"budgets": ["tight"]})


@pytest.mark.parametrize("change", [SMALL, pytest.param({}, marks=pytest.mark.full)], ids=["small", "whole"])
def test_finished_work_is_taken_and_killed_work_is_made_again(
    change: dict[str, Any], silly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception after every boundary, one after the other: each run gets a step further, the end is the same."""
    config = config_of(silly, **change)
    expected = sweep(config, output=tmp_path / "whole")
    made: list[str] = []

    def interrupt(name: str, function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            found = function(*args, **kwargs)
            which = [one if isinstance(one, str | int) else getattr(one, "name", "") for one in args]
            mark = f"{name} {which} {kwargs}"
            if mark not in made:
                made.append(mark)
                raise KeyboardInterrupt
            return found

        return run

    monkeypatch.setattr(making, "train_arm", interrupt("train_arm", making.train_arm))
    for name in ("relearn_model", "round_model", "weigh_edit"):
        monkeypatch.setattr(kept_models, name, interrupt(name, getattr(kept_models, name)))
    for _ in range(80):
        try:
            results = sweep(config, output=tmp_path / "out", resume=True)
            break
        except KeyboardInterrupt:
            continue
    assert len(made) >= 13 and timeless(results) == timeless(expected)
    for row in results["kept"][1:]:  # a checkpoint that is gone is made again, and is the same
        shutil.rmtree(tmp_path / "out" / "arms" / row["arm"] / "model")
    assert timeless(sweep(config, output=tmp_path / "out", resume=True)) == timeless(expected)


def test_a_checkpoint_that_is_gone_is_made_again_with_as_many_threads(
    silly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With others its weights come out as others, and all that was measured of it would be measured again."""
    config, out, seen = config_of(silly, **SMALL), tmp_path / "out", []
    arms = Arms(
        config,
        out,
        Scaler.of(targets_of(config)[0], config),
        say=Journal(out, lambda line: None),
        written=lambda: None,
    )
    arm = arms_of(config.methods[0])[0]

    def train(*args: Any) -> Any:
        seen.append(torch.get_num_threads())
        return train_arm(*args)

    monkeypatch.setattr(making, "train_arm", train)
    before = torch.get_num_threads()
    with as_many_threads(3):
        arms.make_only({arm.name})
    assert read_json(out / "arms" / arm.name / "arm.json")["threads"] == 3
    shutil.rmtree(out / "arms" / arm.name / "model")
    arms.load(arm)
    assert seen == [3, 3] and torch.get_num_threads() == before


def test_a_checkpoint_that_comes_out_otherwise_is_scaled_anew(
    silly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that rounds otherwise: what the edit of before was found to cost is not what this one costs. And
    what edits it further is made of what it is now."""
    config, out, read = config_of(silly, **SMALL), tmp_path / "out", arm_settings.read_settings
    before = sweep(config, output=out)
    for row in before["arms"]:
        shutil.rmtree(out / "arms" / row["arm"] / "model")
    attacks = dataclasses.replace(
        config.attacks, every=[*config.attacks.every, AttackPlan("more", config.attacks.every[0].flags)]
    )

    def other(config: SweepConfig, arm: Arm) -> dict[str, Any]:
        found = read(config, arm)
        return found | ({"learning_rate": 3e-3} if arm.plan.name == "sft" else {})

    said: list[str] = []
    monkeypatch.setattr(arm_settings, "read_settings", other)
    after = sweep(dataclasses.replace(config, attacks=attacks), output=out, resume=True, say=said.append)
    assert sum("has other weights" in line for line in said) == 1
    base = targets_of(config)[0]
    for one, two in zip(before["arms"], after["arms"], strict=True):
        assert one["arm"] == two["arm"] and one["weights"] != two["weights"]
        a = two["budgets"]["main"]["fitted"]["a"]
        model, _ = load_model(out / "arms" / two["arm"] / "model")
        costs = Scaler.of(base, config).cost(model, a)
        reading = next(row["reading"] for row in after["kept"] if row["arm"] == two["arm"])
        assert (reading["kl"], reading["perplexity"]) == (costs.kl, costs.perplexity)


def test_how_far_the_loss_rises_on_the_way_is_of_the_text_that_is_there_now(silly: Path, tmp_path: Path) -> None:
    config = config_of(silly, text=str(tmp_path / "text.jsonl"))
    reported = targets_of(config_of(silly))[1]
    edited = finetune(reported.model, reported.processing_class, [TOXIC] * 4, steps=4, learning_rate=5e-2)
    found = []
    for texts in (TEXT, ["Quite another passage about ships and storms."] * 3):
        write_jsonl(tmp_path / "text.jsonl", [{"text": text} for text in texts])
        bench = Bench(config, tmp_path, *targets_of(config)[1:], say=Journal(tmp_path, lambda line: None))
        found.append(weigh_edit(bench, "main/x", edited)["barrier"])
    assert found[0] != found[1]


def test_a_sweep_goes_on_from_its_json_alone(
    whole: Any, silly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another machine, to which no checkpoint went: nothing is trained that nothing is asked of."""
    expected, folder = whole
    out = tmp_path / "out"
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("model"))

    def train(*args: Any) -> Any:
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(making, "train_arm", train)
        assert timeless(sweep(config_of(silly), output=out, resume=True)) == timeless(expected)
    place = next(row["place"] for row in expected["kept"] if row["entry"] == "lox-sft")
    record = read_json(out / "kept" / place / "record.json")
    record["weights"] = "others"  # those that all parts were measured of, and the model made now has not
    del record["parts"]["weights"]
    record["parts"]["rounding-0"]["found"]["before"] = 0.123
    write_json(out / "kept" / place / "record.json", record)
    assert timeless(sweep(config_of(silly), output=out, resume=True)) == timeless(expected)


def test_an_entry_is_measured_as_soon_as_it_is_made(
    silly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who stops a sweep has whole rows of what was made."""
    given = making.train_arm

    def train(config: Any, arm: Arm, *args: Any) -> Any:
        if arm.plan.name == "lox-sft":
            raise KeyboardInterrupt
        return given(config, arm, *args)

    monkeypatch.setattr(making, "train_arm", train)
    with pytest.raises(KeyboardInterrupt):
        sweep(config_of(silly, **SMALL), output=tmp_path / "out")
    results = read_sweep(read_json(tmp_path / "out" / "results.json"), "here")
    assert list(by_name(results)) == ["base", "main/sft-s0"] and results["unfinished"] == ["lox-sft"]
    assert results["figures"]["main/" + results["kept"][1]["arm"]]["curves"]
    page = markdown(comparison_page({"here": results}).blocks)
    assert "**Not whole yet**, no figures of: lox-sft." in page
    file = tmp_path / "out" / "results.json"
    write_json(file, read_json(file) | {"arms": [], "kept": []})  # as another process knew it, which went on elsewhere
    with pytest.raises(KeyboardInterrupt):
        sweep(config_of(silly, **SMALL), output=tmp_path / "out", resume=True)
    assert timeless(read_json(file)) == timeless(results), "what others have made is written when it is taken"


def test_what_another_process_has_made_is_measured_before_the_next_entry(
    silly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not after all others."""
    config, out, said = config_of(silly, **SMALL), tmp_path / "out", list[str]()
    first = list_arms(config)[0]
    given, asked = making.claimed, list[str]()

    @contextlib.contextmanager
    def elsewhere_at_first(file: Path, *args: Any, **more: Any) -> Iterator[bool]:
        asked.append(file.name)
        if asked.count(first) == 1:
            yield False
        else:
            with given(file, *args, **more) as mine:
                yield mine

    monkeypatch.setattr(making, "claimed", elsewhere_at_first)
    results = sweep(config, output=out, say=said.append)
    assert asked.count(first) > 1 and not results["unfinished"]
    measured = next(i for i, line in enumerate(said) if line.endswith(": reported") and "main/sft" in line)
    assert measured < min(i for i, line in enumerate(said) if line.startswith("lox-sft") and "trained" in line)


def test_what_was_attacked_further_before_is_in_the_results_of_a_run_that_is_interrupted(
    whole: Any, silly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, folder = whole
    out = tmp_path / "out"
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("model"))
    rows = [row | {"attacks": {"pairs": row["attacks"]["pairs"]}, "worst_of_all": None} for row in expected["kept"]]
    write_json(out / "results.json", {**expected, "kept": rows})  # as by a process that another one was at work beside
    attack = kept_models.Kept.attack_best

    def attack_best(kept: Any, place: str) -> Any:
        if place != "base":
            raise KeyboardInterrupt
        return attack(kept, place)

    monkeypatch.setattr(kept_models.Kept, "attack_best", attack_best)
    with pytest.raises(KeyboardInterrupt):
        sweep(config_of(silly), output=out, resume=True)
    assert by_name(read_json(out / "results.json"))["base"] == by_name(expected)["base"]


def test_what_another_process_attacks_further_meanwhile_is_in_the_results(
    whole: Any, silly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is at the base, and done with it while this one attacks the best."""
    expected, folder = whole
    out, said = tmp_path / "out", list[str]()
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("model"))
    file, attack = out / "kept" / "base" / "record.json", kept_models.Kept.attack_best
    theirs = read_json(file)
    write_json(file, theirs | {"parts": {name: part for name, part in theirs["parts"].items() if name != "sgd"}})
    with contextlib.ExitStack() as other:
        other.enter_context(claimed_elsewhere(out / ".claims" / "base.best"))

        def attack_best(kept: Any, place: str) -> Any:
            if place != "base":
                write_json(file, theirs)
                other.close()
            return attack(kept, place)

        monkeypatch.setattr(kept_models.Kept, "attack_best", attack_best)
        results = sweep(config_of(silly), output=out, resume=True, say=said.append)
    assert timeless(results) == timeless(expected) and read_json(out / "results.json")["unfinished"] == []
    assert not any("sgd" in line for line in said), "it was attacked again"


def test_results_that_know_more_are_not_written_over(whole: Any, silly: Path, tmp_path: Path) -> None:
    """By a process that may not look yet at what another one has attacked further."""
    expected, folder = whole
    out = tmp_path / "out"
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("model"))
    (place,) = (row["place"] for row in expected["kept"] if row["worst_of_all"] and row["place"] != "base")
    with claimed_elsewhere(out / ".claims" / f"{place}.best"):
        assert sweep(config_of(silly), output=out, resume=True)["unfinished"] == ["base"]
    assert timeless(read_json(out / "results.json")) == timeless(expected)


@pytest.mark.full
def test_a_killed_process_is_gone_on_from(whole: Any, silly: Path, tmp_path: Path) -> None:
    expected, _ = whole
    write_json(tmp_path / "config.json", {"folder": str(silly)})
    script = (
        "import sys; sys.path[:0] = sys.argv[3:]\n"
        "from pathlib import Path\nfrom test_run import config_of\nfrom efface.comparison.run import sweep\n"
        "sweep(config_of(Path(sys.argv[1])), output=sys.argv[2], resume=True)\n"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]
    for seconds in (8, 12, 16):
        process = subprocess.Popen([sys.executable, "-c", script, str(silly), str(tmp_path / "out"), *paths])
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert timeless(sweep(config_of(silly), output=tmp_path / "out", resume=True)) == timeless(expected)


def test_text_at_a_point_of_an_attack_may_be_shorter(silly: Path) -> None:
    attacks = {"every": {"pairs": "--data toxic"}, "text_tokens": 5}
    tuned, reported, attacked = targets_of(config_of(silly, attacks=attacks, max_text_tokens=9))
    tokens = [one.untouched("model", one.described()).measured.perplexity for one in (tuned, reported, attacked)]
    assert [one.tokens for one in tokens if one is not None] == [9, 9, 5]
    assert targets_of(config_of(silly, max_text_tokens=9))[2].max_text_tokens == 9


def test_arms_may_be_made_one_by_one_and_by_others(silly: Path, tmp_path: Path) -> None:
    config = config_of(silly)
    first, second, *_ = list_arms(config)
    results = sweep(config, output=tmp_path / "out", only=[second])
    assert [arm["arm"] for arm in results["arms"]] == [second] and results["kept"] == []
    with claimed(tmp_path / "out" / ".claims" / first) as mine:
        assert mine
        script = "import sys; from pathlib import Path; from efface.comparison.claims import claimed\n"
        script += "with claimed(Path(sys.argv[1])) as mine: sys.exit(mine)"
        held = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out" / ".claims" / first)], check=False)
        assert held.returncode == 0
    with pytest.raises(UserError, match="no such arm"):
        sweep(config, output=tmp_path / "out", only=["none"], resume=True)


def test_arms_are_called_by_what_they_are() -> None:
    plan = config_of(Path("x")).methods[0]
    first, second = arms_of(plan)
    assert first.name != second.name and first.name.startswith("sft-") and first.name.endswith("-s0")
    assert further_seeds(first) == [Arm(plan, 0, 1)] and first.settings["learning_rate"] == "1e-3"
    longer = dataclasses.replace(plan, trials=[{"learning_rate": "5e-3"}, *plan.trials])
    assert arms_of(longer)[1].name == first.name  # more trials do not rename those that were made
    assert count_trials(config_of(Path("x")))["sft"] == 2


def test_bad_settings_are_found_before_any_work(silly: Path, tmp_path: Path) -> None:
    bad = [{"name": "sft", "trials": [{"larning_rate": 1}]}]
    with pytest.raises(UserError, match=r"methods.sft: unknown flag '--larning_rate"):
        sweep(config_of(silly, methods=bad), output=tmp_path / "out")
    with pytest.raises(UserError, match=r"attacks.x: unknown flag '--stepps"):
        sweep(config_of(silly, attacks={"every": {"x": "--stepps 3"}}), output=tmp_path / "out")
    with pytest.raises(UserError, match=r"methods.sft: seed is no setting here. Name seeds: \[3\]"):
        bad = [{"name": "sft", "settings": {"seed": 3}}]
        sweep(config_of(silly, methods=bad), output=tmp_path / "out")
    with pytest.raises(UserError, match="none is left without those that are tuned on"):
        sweep(config_of(silly, reported=str(silly / "tuning.jsonl")), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sweep_that_cannot_begin_has_deleted_nothing(silly: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stamp = {"versions": {"efface": "0"}}
    write_json(out / "results.json", {"schema": 1, "what": "sweep", "kept": ["twelve hours"], "environment": stamp})
    for wrong in ({"reported": "absent.jsonl"}, {"scorers": ["absent"]}, {"base": "./absent"}, {"text": "absent"}):
        with pytest.raises(UserError, match="absent"):
            sweep(config_of(silly, **wrong), output=out, overwrite=True)
    write_jsonl(out / "mine.jsonl", [{"prompt": "The"}])
    for mine in ({"tuning": str(out / "mine.jsonl")}, {"reported": str(out / "mine.jsonl")}):
        with pytest.raises(UserError, match="lies in the output directory"):
            sweep(config_of(silly, **mine), output=out, overwrite=True)
    assert read_json(out / "results.json")["kept"] == ["twelve hours"] and (out / "mine.jsonl").exists()


def test_arms_of_other_pairs_are_not_taken(silly: Path, tmp_path: Path) -> None:
    shutil.copytree(silly, tmp_path / "data")
    config, out = config_of(tmp_path / "data", **SMALL), tmp_path / "out"
    first = list_arms(config)[0]
    sweep(config, output=out, only=[first])
    made = (out / "arms" / first / "arm.json").read_bytes()
    write_jsonl(tmp_path / "data" / "pairs.jsonl", ROWS[1:])
    with pytest.raises(UserError, match=r"holds a sweep of other settings: pairs: was .*, is "):
        sweep(config, output=out, only=[first], resume=True)
    assert (out / "arms" / first / "arm.json").read_bytes() == made


def test_an_attack_of_other_flags_is_refused_before_anything_is_loaded(
    whole: Any, silly: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efface.comparison.run.targets_of", None)
    plans = {"every": {"pairs": "--steps 2"}}
    before = (whole[1] / "results.json").read_bytes()
    with pytest.raises(
        UserError, match=r"attacks: pairs had other flags when .*\(learning_rates, max_perp.*, steps\)"
    ):
        sweep(config_of(silly, attacks=plans), output=whole[1], resume=True)
    assert (whole[1] / "results.json").read_bytes() == before


def test_arms_of_a_version_with_other_defaults_are_made_again(
    silly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their names are hashes of what the config says alone."""
    config, out = config_of(silly, **SMALL), tmp_path / "out"
    first = list_arms(config)[0]
    file, model = out / "arms" / first / "arm.json", out / "arms" / first / "model" / "results.json"
    sweep(config, output=out, only=[first])
    made = [file.read_bytes(), model.stat().st_mtime_ns]
    row = read_json(file)
    del row["defaults"]["max_prompt_length"]  # as by a version that had no such setting
    write_json(file, row)
    sweep(config, output=out, only=[first], resume=True)
    assert read_json(file) == row and model.stat().st_mtime_ns == made[1], "nothing that was said is said otherwise"
    row["defaults"]["max_completion_length"] = 77
    write_json(file, row)
    sweep(config, output=out, only=[first], resume=True)
    assert read_json(file)["defaults"] == json.loads(made[0])["defaults"]
    assert model.stat().st_mtime_ns > made[1], "it was trained again"


@pytest.mark.full
def test_an_arm_that_is_scaled_again_is_attacked_again(silly: Path, tmp_path: Path) -> None:
    config, out = config_of(silly, **SMALL), tmp_path / "out"
    sweep(config, output=out)
    tighter = dataclasses.replace(config, budgets={"main": UtilityBounds(1e-4, 1e-4)})
    again = sweep(tighter, output=out, resume=True)
    fresh = sweep(tighter, output=tmp_path / "fresh")
    assert timeless(again) == timeless(fresh)
    assert any(row["a"] not in (0.0, None) for row in again["kept"]), "the edit was scaled to the tighter budget"


def test_an_arm_that_another_process_makes_is_left_to_it(silly: Path, tmp_path: Path) -> None:
    config, said = config_of(silly, **SMALL), list[str]()
    with claimed_elsewhere(tmp_path / "out" / ".claims" / list_arms(config)[0]):
        write_json(tmp_path / "out" / "efface.json", read_json(prepare_output_dir(tmp_path / "other") / "efface.json"))
        results = sweep(config, output=tmp_path / "out", resume=True, say=said.append)
    assert results["unfinished"] == [*list_arms(config), "sft", "lox-sft"]
    assert [row["place"] for row in results["kept"]] == ["base"], "which waits for nobody"
    assert any("not finished, by another process" in line for line in said)


def test_what_another_process_measures_is_left_to_it(silly: Path, tmp_path: Path) -> None:
    """One seed of an entry, or the best, of which the first seed alone is attacked further; the rest is done."""
    methods = [SMALL["methods"][0] | {"seeds": [0, 1]}]
    config, out, said = config_of(silly, **SMALL | {"methods": methods}), tmp_path / "out", list[str]()
    claims, (arm,) = out / ".claims", list_arms(config)
    other = f"main/{arm.removesuffix('-s0')}-s1"
    claims.joinpath("main").mkdir(parents=True)
    with claimed_elsewhere(claims / "main" / f"{arm}.measured"):
        write_json(out / "efface.json", read_json(prepare_output_dir(tmp_path / "other") / "efface.json"))
        results = sweep(config, output=out, resume=True)
    assert results["unfinished"] == ["sft"] and [row["place"] for row in results["kept"]] == ["base", other]
    with claimed_elsewhere(claims / "main" / f"{arm}.best"):
        results = sweep(config, output=out, resume=True, say=said.append)
    assert f"main/{arm} is attacked further by another process. Run again when it is done." in said
    assert results["unfinished"] == ["base"]
    further = {row["place"]: "text" in row["attacks"] for row in results["kept"]}
    assert further == {"base": True, f"main/{arm}": False, other: False}
    results = sweep(config, output=out, resume=True)
    further = {row["place"]: "text" in row["attacks"] for row in results["kept"]}
    assert not results["unfinished"] and further == {"base": True, f"main/{arm}": True, other: False}
