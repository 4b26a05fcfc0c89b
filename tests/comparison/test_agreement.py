"""Is a sweep that gives an attack other flags under the same name refused, before anything is loaded?"""

from pathlib import Path
from typing import Any

import pytest

from efface.attacks.lists import describe_settings
from efface.comparison.agreement import attack_settings, check_attacks
from efface.comparison.config import SweepConfig, build_config
from efface.errors import UserError
from efface.files.results import write_json, write_jsonl

FLAGS = "--data toxic --learning_rates 2e-5,1e-4 --steps 5,10"


def config_of(**attacks: Any) -> SweepConfig:
    plans = {"every": {"pairs": FLAGS}, "best": {"slow": "--steps 20"}, "rounding": ["--bits 8,4"]} | attacks
    return build_config({"base": "x", "methods": ["sft"], "tuning": "t", "reported": "r", "attacks": plans})


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A sweep that has made, or begun, an attack of each kind."""
    said = {name: describe_settings(settings) for name, settings in attack_settings(config_of()).items()}
    assert sorted(said) == ["moved-0", "pairs", "rounding-0", "slow"]
    write_json(tmp_path / "kept/base/pairs/result.json", {"settings": said["pairs"]})
    write_json(tmp_path / "kept/main/sft-1-s0/rounding-0/result.json", {"settings": said["rounding-0"]})
    write_jsonl(tmp_path / "kept/main/sft-1-s0/slow/result.json.part", [{"settings": {"settings": said["slow"]}}])
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"every": {"pairs": "--data toxic --steps 5,10"}}, r"pairs had other flags .*base/pairs.*\(learning_rates\)"),
        ({"best": {"slow": "--steps 40"}}, r"slow had other flags when .*result.json.part' was made \(steps\)"),
        ({"rounding": ["--bits 4"]}, r"rounding-0 had other flags .*\(bits\)"),
        ({"rounding": ["--bits 4", "--bits 8,4"]}, r"rounding-0 had other flags"),
    ],
)
def test_other_flags_of_what_was_made_or_begun_are_refused(begun: Path, changed: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_attacks(attack_settings(config_of(**changed)), begun)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"every": {"pairs": "--steps 5,10 --learning_rates 2e-5,1e-4"}},
        {"best": {"slow": "--steps 20", "more": "--steps 40"}},
        {"best": {}},
        {"rounding": ["--bits 8,4", "--bits 2"]},
    ],
    ids=["same", "another order", "a new one", "one less", "a grid more"],
)
def test_the_same_flags_and_new_attacks_go_on(begun: Path, changed: Any) -> None:
    check_attacks(attack_settings(config_of(**changed)), begun)


def test_a_file_that_says_nothing_is_left_to_the_attack(begun: Path) -> None:
    for name in ("result.json", "result.json.part"):
        (begun / "kept/base/pairs" / name).write_bytes(b"\xff[1]")
    (begun / "kept/main/sft-1-s0/slow/result.json.part").write_text("[1]\n")
    check_attacks(attack_settings(config_of(every={"pairs": "--steps 3"}, best={"slow": "--steps 3"})), begun)


def test_unknown_flags_are_refused() -> None:
    with pytest.raises(UserError, match=r"attacks.rounding: unknown flag '--bitz'"):
        attack_settings(config_of(rounding=["--bitz 4"]))
