"""Do the wanted and the unwanted completions of a prompt meet, and is it told what does not?"""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from efface.data.pairs import load_pairs
from efface.errors import UserError


def row(prompt: Any, completion: Any, label: Any, **rest: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "label": label, **rest}


ROWS = [
    row("The man", " is kind.", True),
    row("The dog", " is a fool.", False, rejected_spans=[[6, 10]]),
    row("The man", " is a fool.", False),
    row("The man", " sings.", True),
    row("The dog", " sleeps.", True, source="mine"),
    row("The cat", " sleeps.", True),
    row("The man", " is silly.", False),
]


def test_those_of_one_prompt_become_pairs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pairs = load_pairs(ROWS).rows
    assert pairs == [
        {"prompt": "The man", "chosen": " is kind.", "rejected": " is a fool."},
        {"prompt": "The dog", "chosen": " sleeps.", "rejected": " is a fool.", "rejected_spans": [[6, 10]]},
        {"prompt": "The man", "chosen": " sings.", "rejected": " is silly."},
    ]
    assert "1 of 7 unpaired rows" in caplog.text


def test_messages_and_datasets() -> None:
    prompt = [{"role": "user", "content": "Hello"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("Hello.", "Go away.")]
    rows = [row(prompt, answers[0], True), row(prompt, answers[1], False)]
    for source in (rows, Dataset.from_list(rows)):
        assert load_pairs(source).rows == [{"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}]


def test_paired_rows_stay_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    pair = {"prompt": "a", "chosen": " b", "rejected": " c", "label": True, "completion": "kept"}
    assert load_pairs([pair]).rows == [pair] and not caplog.records


@pytest.mark.parametrize("label", [None, "yes", 2])
def test_a_label_that_is_none(label: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, [*ROWS[:3], row("The man", " x", label)])))
    with pytest.raises(UserError, match=r"rows.jsonl:4: field 'label' is .*; it must be true"):
        load_pairs(file)
    assert len(load_pairs(file, skip_bad_rows=True)) == 1


def test_rows_that_never_meet() -> None:
    with pytest.raises(UserError, match="none of the 2 unpaired rows .* Give both, or"):
        load_pairs([ROWS[0], ROWS[1]])
