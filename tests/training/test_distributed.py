"""Do two real processes train as one does? Half of the pairs each, over gloo; what, is in `two_processes.py`.

With `--full` over 20 steps.

Of: training/processes.py
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import of_both
from tiny import tiny_model
from transformers import AutoModelForCausalLM
from two_processes import CASES, EVALUATED, QUICK, SAVED, SECONDS, STEPS, evaluated, trained, trainer_of

from efface.methods import METHODS

LONG = 20
# Rounding of another order of sums, which every step takes on from the one before.
TOLERANCES = {STEPS: {"rtol": 1e-4, "atol": 1e-5}, LONG: {"rtol": 1e-3, "atol": 1e-4}}


@pytest.fixture(scope="module", params=[STEPS, pytest.param(LONG, marks=pytest.mark.full)])
def of_two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes has; started once, for a process takes seconds to start."""
    folder = tmp_path_factory.mktemp("two")
    cases = list(CASES) if request.config.getoption("--full") else QUICK
    found = of_both("two_processes", folder, str(request.param), *cases, seconds=SECONDS * len(cases))
    return [one | {"steps": request.param, "folder": folder} for one in found]


def test_every_method_that_takes_steps_is_tried() -> None:
    assert {name for name, method in METHODS.items() if method.cost is not None} <= set(CASES)


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.full) for case in CASES]
)
def test_two_processes_train_as_one(case: str, of_two: list[dict[str, Any]], tmp_path: Path) -> None:
    first, second = (results[case] for results in of_two)
    steps = of_two[0]["steps"]
    one = trained(case, tmp_path / "one", 1, steps)
    assert first.keys() == second.keys() == one.keys() and one
    start = dict(tiny_model("llama").named_parameters())
    moved = [(one[name] - start[name]).abs().max() for name in one if name in start]
    moved += [one[name].abs().max() for name in one if name.endswith("lora_B.default.weight")]
    assert max(moved) > 10 * TOLERANCES[steps]["atol"]
    for name, weight in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight, **TOLERANCES[steps], msg=lambda text, n=name: f"{n}: {text}")
        assert torch.isfinite(weight).all(), name


def test_one_process_goes_on_from_what_two_have_saved(of_two: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = of_two[0]["folder"]
    alone = trainer_of("repo", tmp_path, 1, **SAVED)
    alone.train(resume_from_checkpoint=str(folder / "saved" / "checkpoint-2"))
    for name, weight in dict(alone.model.named_parameters()).items():
        torch.testing.assert_close(weight.data, of_two[0]["saved"][name], rtol=1e-4, atol=1e-5)
    saved = AutoModelForCausalLM.from_pretrained(folder / "saved" / "checkpoint-4")
    assert all(torch.equal(each, of_two[0]["saved"][name]) for name, each in saved.named_parameters())


def test_an_odd_number_of_pairs_is_filled_up(of_two: list[dict[str, Any]], tmp_path: Path) -> None:
    """The first pair is seen once more: as one process trains on the pairs and the first again."""
    first, second = (results["odd"] for results in of_two)
    assert all(torch.equal(first[name], second[name]) and first[name].isfinite().all() for name in first)
    assert any(not torch.equal(first[name], weight) for name, weight in of_two[0]["repo"].items())


def test_an_evaluation_counts_every_pair_once(of_two: list[dict[str, Any]], tmp_path: Path) -> None:
    first, second = (results["evaluated"] for results in of_two)
    assert first == second
    for sizes, found in zip(EVALUATED, first, strict=True):
        alone = evaluated(tmp_path, *sizes)
        assert len(alone) >= 4 and found.keys() == alone.keys()
        for name, value in alone.items():
            assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (sizes, name)


def test_a_process_with_a_loss_that_is_no_number_takes_the_others_along(of_two: list[dict[str, Any]]) -> None:
    first, second = (results["broken"] for results in of_two)
    assert first.startswith("the loss is ") and "on another process it is not finite" in first
    assert second.startswith("the loss is nan")


def test_nothing_that_shares_gradients_is_left_after_a_training(of_two: list[dict[str, Any]]) -> None:
    """It would end the process group while it is freed, and wait for ever now and then (`processes.py`)."""
    assert [results["wrapped"] for results in of_two] == [0, 0]
