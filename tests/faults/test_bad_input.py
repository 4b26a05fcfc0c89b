"""Is whatever a file holds either taken or refused in a line, by every door that reads one?

The counts of a long run: benchmarks/faults.py.
"""

import logging
from pathlib import Path

import pytest
from fuzzing import doors, fuzz, through_commands


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)


@pytest.mark.parametrize("rounds", [200, pytest.param(5000, marks=pytest.mark.full)])
def test_a_file_changed_at_random_is_taken_or_refused_in_a_line(rounds: int, tmp_path: Path) -> None:
    found = fuzz(doors(), rounds, 0, tmp_path)
    assert found.failures == []
    assert found.tried == rounds == found.taken + found.refused and found.refused > rounds / 3


@pytest.mark.parametrize("rounds", [5, pytest.param(100, marks=pytest.mark.full)])
def test_a_command_given_such_a_file_ends_in_a_line_and_leaves_nothing(rounds: int, tmp_path: Path) -> None:
    found = through_commands(doors(), rounds, 0, tmp_path)
    assert found.failures == []
    assert found.tried == rounds == found.taken + found.refused
