"""Are checked pairs the same from every source, and does a bad row stop the load with a line that says why?"""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from efface.data.pairs import PairReader, Pairs, load_pairs
from efface.errors import UserError

GOOD = {"prompt": "The weather", "chosen": " was cold", "rejected": " is for fools"}


CHAT = {
    "prompt": [{"role": "user", "content": "How is the weather?"}],
    "chosen": [{"role": "assistant", "content": "It is cold."}],
    "rejected": [{"role": "assistant", "content": "Look, you fool."}],
}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_sources_agree(tmp_path: Path) -> None:
    rows = [GOOD | {"source": "a", "score": 0.5}, GOOD | {"prompt": "", "source": "b", "score": 1.0}]
    path = write(tmp_path / "pairs.jsonl", *rows)
    for source in (path, Path(path), rows, Dataset.from_list(rows), Pairs(rows)):
        pairs = load_pairs(source)
        assert pairs.rows == rows and pairs.skipped == 0 and len(pairs) == 2  # extra columns are kept


def test_blank_lines_windows_line_ends_and_byte_order_marks_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf\n"
        + json.dumps(GOOD).encode()
        + b"\r\n  \r\n"
        + json.dumps(GOOD | {"prompt": "\u2028"}).encode()
    )
    assert [row["prompt"] for row in load_pairs(path).rows] == ["The weather", "\u2028"]


def test_columns_of_pair_toxicity(tmp_path: Path) -> None:
    row = {"prompt_text": "The weather", "unpert_gen_text": " was cold", "pert_gen_text": " is for fools", "gold": "x"}
    assert load_pairs(write(tmp_path / "pairs.jsonl", row)).rows == [GOOD | {"gold": "x"}]


def test_conversations_are_kept(tmp_path: Path) -> None:
    assert load_pairs(write(tmp_path / "pairs.jsonl", CHAT)).rows == [CHAT]


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "not JSON": ("{'prompt': 1}\n", r"not valid JSON \(Expecting property name .* at column 2\)\. Each line must be"),
    "cut off": ('{"prompt": "a", "chosen"\n', "not valid JSON"),
    "not an object": (["a"], "a row must be a JSON object with prompt, chosen, rejected, not list"),
    "no prompt": (
        {"chosen": "a", "rejected": "b"},
        "field 'prompt' is missing, and chosen and rejected have no beginning in common .*skip_bad_rows=True",
    ),
    "no rejected": ({"prompt": "a", "chosen": "b"}, "field 'rejected' is missing"),
    "no field at all": ({}, "field 'prompt' is missing .found nothing"),
    "empty chosen": (GOOD | {"chosen": ""}, "field 'chosen' is empty. Give a continuation"),
    "blank rejected": (GOOD | {"rejected": " \n"}, "field 'rejected' is empty"),
    "empty message": (CHAT | {"chosen": [{"role": "assistant", "content": " "}]}, "field 'chosen' is empty"),
    "number": (GOOD | {"prompt": 3}, "field 'prompt' is int; it must be text or a list of chat messages"),
    "null": (GOOD | {"chosen": None}, "field 'chosen' is NoneType"),
    "list of texts": (GOOD | {"rejected": ["a"]}, "field 'rejected', turn 1 is str; a chat message is needed"),
    "no messages": (CHAT | {"prompt": []}, "field 'prompt' is an empty list"),
    "message without role": (CHAT | {"prompt": [{"content": "a"}]}, "field 'prompt', turn 1: 'role' is missing"),
    "identical": (GOOD | {"rejected": GOOD["chosen"]}, "chosen and rejected are identical, so nothing can be learned"),
    "mixed": (GOOD | {"chosen": CHAT["chosen"]}, "must be all text or all lists of chat messages"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_stops_the_load_at_its_line(kind: str, tmp_path: Path) -> None:
    row, message = BAD_ROWS[kind]
    path = write(tmp_path / "pairs.jsonl", GOOD, "\n", row, GOOD)
    with pytest.raises(UserError, match=rf"^{path}:3: .*{message}"):
        load_pairs(path)
    pairs = load_pairs(path, skip_bad_rows=True)
    assert (len(pairs), pairs.skipped) == (2, 1)
    if not isinstance(row, str):
        with pytest.raises(UserError, match=rf"^row 1: .*{message}"):
            load_pairs([GOOD, row])


def test_nothing_usable(tmp_path: Path) -> None:
    path = write(tmp_path / "empty.jsonl", "\n")
    with pytest.raises(UserError, match=rf"'{path}' holds no usable pairs \(0 bad rows\). Build some"):
        load_pairs(path)
    with pytest.raises(UserError, match=r"the given list holds no usable pairs \(1 bad rows; the last: row 0: field "):
        load_pairs([{}], skip_bad_rows=True)


USER = {"role": "user", "content": "How is the weather?"}


COLD = {"role": "assistant", "content": "It is cold."}


FOOL = {"role": "assistant", "content": "Look, you fool."}


PAIR = {"prompt": [USER], "chosen": [COLD], "rejected": [FOOL]}


def test_an_iterator_loses_no_row() -> None:
    rows = [PAIR | {"number": number} for number in range(3)]
    reader = PairReader(iter(rows))
    reader.begin()
    assert [row["number"] for row in reader] == [0, 1, 2]
    reader = PairReader(iter([{"prompt": 3}, *rows]), skip_bad_rows=True)
    reader.begin()
    reader.begin()
    assert [row["number"] for row in reader] == [0, 1, 2] and reader.skipped == 1
    reader = PairReader(iter(rows))
    reader.read_all()
    assert [row["number"] for row in reader] == [0, 1, 2]


def test_the_last_bad_row_is_named_where_none_is_good(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no usable pairs \(2 bad rows; the last: row 1: field 'prompt' is missing"):
        load_pairs([{"prompt": 3}, {}], skip_bad_rows=True)
