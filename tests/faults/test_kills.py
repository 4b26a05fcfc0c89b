"""Is a training that is killed at random moments and resumed the same to the bit, whatever its method?

The counts of a long run: benchmarks/faults.py.
"""

from pathlib import Path

import pytest
from kills import METHODS, Tally, kill_at_random, prepare


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize(
    "method",
    [method if method in ("repo", "npo") else pytest.param(method, marks=pytest.mark.full) for method in METHODS],
)
def test_a_killed_run_that_is_resumed_ends_as_one_that_was_not(method: str, given: Path) -> None:
    tally = Tally()
    kill_at_random(given, method, 2, 0, tally)
    assert tally.failures == [] and tally.runs == 2 and tally.kills >= 1
