"""Is a sweep's config read as it is meant, and every mistake in it said in a line before any work?

Of: comparison/fields.py
"""

import json
from pathlib import Path
from typing import Any

import pytest

from efface.comparison.arms import arms_of, check_trials, count_trials, read_settings
from efface.comparison.config import AttackPlan, MethodPlan, SweepConfig, build_config, combinations, read_config
from efface.comparison.measuring import relearn_settings, round_settings
from efface.errors import UserError
from efface.evaluation.budget import UtilityBounds
from efface.methods.repo import REPOConfig

ROOT = Path(__file__).parents[2]
LEAST: dict[str, Any] = {"base": "m", "methods": ["sft"], "tuning": "t.jsonl", "reported": "r.jsonl"}
TEXT = """
base: m
methods:
  - sft
  - name: dpo-beta
    method: dpo
    settings: {max_steps: 48}
    grid: {learning_rate: [1e-5, 2e-5], beta: [0.1, 0.5]}
    seeds: [0, 1, 2]
  - {name: lox-dpo, method: lox, after: dpo-beta}
tuning: {prompts: t.jsonl, limit: 8}
reported: [r.jsonl, {prompts: s.jsonl, limit: 4, limit_seed: 1}]
budgets: {main: {}, tight: {kl: 2e-2}}
attacks: {every: {pairs: --steps 5}, benign_rate: 1e-4, line: [0.5, 5e-1]}
"""


def test_a_config_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(TEXT)
    found = read_config(tmp_path / "c.yaml")
    assert [plan.name for plan in found.methods] == ["sft", "dpo-beta", "lox-dpo"] and found.judged_against == ["sft"]
    plan = found.methods[1]
    assert plan.method == "dpo" and plan.seeds == [0, 1, 2] and len(plan.trials) == 4
    assert plan.trials[1] == {"learning_rate": "1e-5", "beta": 0.5}  # YAML's 1e-5 is a text, read later as a flag is
    assert found.budgets == {"main": UtilityBounds(), "tight": UtilityBounds(kl=0.02)}
    assert found.attacks.every == [AttackPlan("pairs", "--steps 5")] and found.attacks.line == [0.5, 0.5]
    assert found.attacks.benign_rate == 1e-4 and found.reported[1].limit == 4 and found.tuning.limit == 8
    assert found.decoding_dtype == "auto"
    (tmp_path / "c.json").write_text(json.dumps(LEAST))
    assert read_config(tmp_path / "c.json") == build_config(LEAST)
    assert isinstance(build_config(LEAST), SweepConfig) and build_config(LEAST).methods == [MethodPlan("sft", "sft")]


def test_what_repo_does_by_itself_is_what_the_comparison_measured() -> None:
    config = read_config(ROOT / "benchmarks" / "comparison.yaml")
    (entry,) = [plan for plan in config.methods if plan.name == "repo-rows"]
    default, asked = REPOConfig("out", use_cpu=True), read_settings(config, arms_of(entry)[0])
    for name in ("max_steps", "learning_rate", "withstand", "npo_weight", "npo_beta", "w_retain_text"):
        assert getattr(default, name) == asked.pop(name)
    assert asked.keys() == {"bf16", "use_cpu", "seed", "disable_tqdm"}, "and nothing else"


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_configs_of_the_benchmarks_are_of_settings_that_there_are(file: Path) -> None:
    found = read_config(file)
    assert len(set(count_trials(found).values())) == 1  # all are tuned alike
    assert len(check_trials(found)) == sum(len(plan.trials) for plan in found.methods)
    assert all(relearn_settings(plan).steps for plan in [*found.attacks.every, *found.attacks.best])
    assert all(round_settings(flags).grids for flags in found.attacks.rounding)


def test_the_grid_is_every_combination() -> None:
    assert combinations({"a": [1, 2], "b": 3}) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]
    assert combinations({}) == [{}] and len(combinations({"a": [1, 2], "b": [1, 2, 3]})) == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"surprise": 1}, "the config has the unknown key 'surprise'"),
        ({"base": None}, "the config.base must be a text"),
        ({"methods": []}, "methods: none: name at least one"),
        ({"methods": ["sft", "sft"]}, "methods: sft, sft: name at least one, and each once"),
        ({"methods": ["base"]}, "'base' cannot be a name"),
        ({"methods": ["../x"]}, "cannot be a name"),
        ({"methods": [{"name": "x", "seeds": []}]}, "x needs at least one trial and seed"),
        ({"methods": [{"name": "x", "seeds": ["0"]}]}, "methods.x.seeds must hold whole numbers"),
        ({"methods": [{"name": "x", "after": "y"}]}, "x comes after 'y', which is no entry before it"),
        ({"methods": [{"name": "x", "grid": {"a": [1]}, "trials": [{}]}]}, "both grid and trials"),
        ({"methods": [{"name": "x", "wrong": 1}]}, "methods.x has the unknown key 'wrong'"),
        ({"methods": "sft"}, "methods must be a list"),
        ({"tuning": {"prompts": "t", "limit": 0}}, "limit=0"),
        ({"tuning": {"limit": 3}}, "tuning needs 'prompts'"),
        ({"reported": []}, "scorers, reported and budgets: at least one"),
        ({"budgets": {"main": {"kl": "much"}}}, "budgets.main.kl must be a number"),
        ({"budgets": {"main": {"kl": -1}}}, "kl=-1"),
        ({"budgets": {"a/b": {}}}, "'a/b' cannot be a name"),
        ({"attacks": {"every": {"x": ""}, "best": {"x": ""}}}, "attacks: x, x: each needs a name of its own"),
        ({"attacks": {"every": {"../x": ""}}}, "attacks: '../x' cannot be a name"),
        ({"attacks": {"best": {"moved-0": ""}}}, "attacks: 'moved-0' cannot be a name"),
        ({"attacks": {"moved_steps": -1}}, "moved_steps=-1"),
        ({"attacks": {"least_drop": 1}}, "least_drop=1.0 is no part of a share"),
        ({"decoding_dtype": "half"}, "decoding_dtype='half'"),
        ({"samples": True}, "samples must be a whole number"),
        ({"most": 0}, "most=0"),
        ({"against": "npo"}, "against='npo' is none of the methods"),
        ({"also_against": ["npo"]}, "against='npo' is none of the methods"),
        ({"scorers": "one"}, "scorers must be a list"),
    ],
)
def test_a_mistake_is_said_in_a_line(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(LEAST | change))
    with pytest.raises(UserError, match="c.json") as caught:
        read_config(tmp_path / "c.json")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_config(tmp_path: Path) -> None:
    for text, said in (("[1", "not valid YAML"), ("[1]", "must be a mapping"), ("base: m", "needs 'methods'")):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(UserError, match=said):
            read_config(tmp_path / "c.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_config(tmp_path / "absent.yaml")
