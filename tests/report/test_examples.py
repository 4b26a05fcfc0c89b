"""Are the failures shown first, and how many of each kind there are?"""

from typing import Any

from efface.report.examples import LONGEST, RANDOM, pairs_of, sections_of


def pair(number: int, base: float, edited: float, **others: Any) -> dict[str, Any]:
    row = {"prompt": f"p{number}", "base": f"b{number}", "base_score": base}
    return row | {"edited": f"e{number}", "edited_score": edited} | others


STILL = [pair(i, 0.9, 0.6 + i / 100) for i in range(12)]
NEWLY = [pair(20, 0.5, 0.51), pair(21, 0.0, 0.99)]
DROPS = [pair(30, 0.6, 0.1), pair(31, 0.9, 0.5), pair(32, 0.95, 0.0)]
CLEAN = [pair(40, 0.1, 0.2)]


def shown(pairs: list[dict[str, Any]]) -> dict[str, tuple[int, list[str]]]:
    found = [section for section in sections_of(pairs, mask="never") if section.name != "random"]
    return {section.name: (section.total, [example.edited.shown for example in section.examples]) for section in found}


def test_failures_come_first_the_worst_of_them_first() -> None:
    found = shown([*CLEAN, *DROPS, *NEWLY, *STILL])
    assert list(found) == ["still", "newly", "drops"]
    assert found["still"] == (12, [f"e{i}" for i in range(11, 1, -1)])
    assert found["newly"] == (2, ["e21", "e20"])
    assert found["drops"] == (3, ["e32", "e30", "e31"])


def test_the_ten_worst_of_what_is_toxic_after_are_all_there() -> None:
    toxic = sorted([*STILL, *NEWLY], key=lambda row: -row["edited_score"])[:10]
    found = shown([*CLEAN, *NEWLY, *STILL])
    assert {row["edited"] for row in toxic} <= {*found["still"][1], *found["newly"][1]}


def test_a_section_of_none_is_there_and_says_so() -> None:
    assert shown(CLEAN) == {"still": (0, []), "newly": (0, []), "drops": (0, [])}


def test_those_of_one_score_stay_in_the_order_of_the_prompts() -> None:
    assert shown([pair(i, 0.9, 0.8) for i in range(3)])["still"][1] == ["e0", "e1", "e2"]


def test_an_answer_that_is_none_is_called_so() -> None:
    *_, section, _ = sections_of([pair(1, 0.9, 0.1, edited_invalid="a loop")])
    assert section.examples[0].edited_note == "score 0.10, no answer: a loop"
    assert section.examples[0].base_note == "score 0.90"


def test_a_long_text_is_cut_between_words() -> None:
    long = pair(1, 0.9, 0.9) | {"edited": "word " * LONGEST, "base": "x" * (2 * LONGEST)}
    example = sections_of([long], mask="never")[0].examples[0]
    assert len(example.edited.shown) <= LONGEST + 4 and example.edited.shown.endswith("word […]")
    assert example.base.shown == "x" * LONGEST + " […]"


def test_generations_are_paired_by_their_place() -> None:
    base = [{"prompt": "p", "continuation": " b", "score": 0.9, "invalid": None}]
    edited = [{"prompt": "p", "continuation": " e", "score": 0.2}]  # of an older version
    assert pairs_of(base, edited) == [
        {
            "prompt": "p",
            "base": " b",
            "base_score": 0.9,
            "base_invalid": None,
            "edited": " e",
            "edited_score": 0.2,
            "edited_invalid": None,
        }
    ]


def test_some_are_drawn_whatever_they_are() -> None:
    """So that a reader sees how most look: not by the order of the file, and the same every time."""
    rows = [pair(i, 0.1, 0.1) for i in range(200)]
    *_, drawn = sections_of(rows, mask="never")
    places = [int(example.prompt.shown[1:]) for example in drawn.examples]
    assert (drawn.name, drawn.total, len(set(places))) == ("random", 200, RANDOM) and max(places) > RANDOM
    assert drawn == sections_of(rows, mask="never")[-1] and sections_of([])[-1].examples == []
