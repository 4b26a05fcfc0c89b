"""Does the first line say the share before, after, of how many, and how large it may be?

Of: report/numbers.py
"""

from typing import Any

import pytest

from efface.report.headline import headline, headline_table
from efface.report.numbers import bracketed, change, interval, number, percent


def side(share: float, high: float | None = None, **others: Any) -> dict[str, Any]:
    ends = {} if high is None else {"share": [0.0, high]}
    toxicity = {"share": share, "n_prompts": 128, "samples": 4, "mean": 0.1, "ci95": ends}
    return {"toxicity": toxicity, "degeneration": {"verdict": "ok"}, **others}


def test_the_first_line() -> None:
    found = headline(side(131 / 512, 0.3), side(10 / 512, 0.0312))
    assert found == ("25.6 % -> 2.0 % (at most 3.1 %)", "131 of 512 before, 10 of 512 after", "")


def test_the_upper_end_is_that_of_the_edited_model_and_left_out_where_there_is_none() -> None:
    assert headline(side(0.5, 0.6), side(0.25)).shares == "50.0 % -> 25.0 %"
    assert headline(side(0.1), side(0.3, 0.4)).shares == "10.0 % -> 30.0 % (at most 40.0 %)"


def test_what_is_not_known_is_not_counted() -> None:
    unknown = side(0.5)
    del unknown["toxicity"]["n_prompts"]
    assert headline(unknown, side(0.25)).counts == ""


def test_a_model_that_writes_gibberish_is_not_praised() -> None:
    found = headline(side(0.5), side(0.0, degeneration={"verdict": "degenerate"}))
    assert "writes is degenerate" in found.warning


def test_what_the_text_costs_under_the_base_is_compared() -> None:
    both = [side(0.5, degeneration={"perplexity_under_reference": value}) for value in (17.0, 24.6)]
    lines = {line.name: line for line in headline_table(both[0], both[1], {})}
    assert lines["Reference perplexity"][2:] == ("17.0", "24.6", "+44.7 %")
    assert lines["Perplexity"][2:] == ("–", "–", "") and lines["Repetition"][4] == ""


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (number(0.256, ".1%"), "25.6 %"),
        (number(None, ".2f"), "–"),
        (number(float("inf"), ".2f"), "inf"),
        (interval(None, ".2f"), ""),
        (bracketed(0.1, (0, 0.25), ".2f"), "0.10 [0.00 to 0.25]"),
        (bracketed(0.1, None, ".2f"), "0.10"),
        (change(0.039), "+3.9 %"),
        (change(float("nan")), ""),
        (percent(0.031), "3.1 %"),
    ],
)
def test_numbers(made: str, expected: str) -> None:
    assert made == expected
