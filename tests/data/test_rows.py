"""Are rows found wherever a source says they are, and is one line said where there are none?"""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from efface.data.pairs import load_pairs
from efface.data.rows import load_texts, shipped
from efface.errors import UserError

GOOD = {"prompt": "The weather", "chosen": " was cold", "rejected": " is for fools"}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_broken_utf8(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(UserError, match=rf"{path}:2: not valid UTF-8 at byte 15. Re-encode"):
        load_pairs(path)
    assert load_pairs(path, skip_bad_rows=True).skipped == 1


@pytest.mark.parametrize("name", ["absent.jsonl", "./absent", "absent.json"])
def test_missing_file(name: str) -> None:
    with pytest.raises(UserError, match=f"pairs file '{name}' does not exist or is no file. Build one with"):
        load_pairs(name)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist or is no file"):
        load_pairs(tmp_path)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "pairs.jsonl", GOOD)

    def refuse(self: Path, mode: str) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as root, who may read everything
    with pytest.raises(UserError, match="file '.*pairs.jsonl' cannot be read: Permission denied"):
        load_pairs(path)


@pytest.mark.parametrize("reason", ["no route to the hub", ""])
def test_hub_dataset_without_network(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, split: str) -> None:
        assert (name, split) == ("someone/pairs", "train")
        raise ConnectionError(*[reason] * bool(reason))

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(
        UserError, match=rf"'someone/pairs' is no local file .*\({reason or 'ConnectionError'}\). Check the name"
    ):
        load_pairs("someone/pairs")


def test_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda name, split: Dataset.from_list([GOOD, GOOD | {"chosen": ""}]))
    with pytest.raises(UserError, match="^someone/pairs row 1: field 'chosen' is empty"):
        load_pairs("someone/pairs")
    assert load_pairs("someone/pairs", skip_bad_rows=True).rows == [GOOD]


def test_unknown_shipped_name() -> None:
    with pytest.raises(UserError, match="shipped:nothing does not exist. Shipped with the package:"):
        load_pairs("shipped:nothing")
    with pytest.raises(UserError, match="shipped:nothing does not exist"):
        shipped("nothing")


def test_load_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", {"text": "One.", "prompt": "p"}, {"text": "Two."})
    assert load_texts(path) == ["One.", "Two."]
    with pytest.raises(UserError, match=rf"{path}:2: 'prompt' must be a text, but it is"):
        load_texts(path, field="prompt")
    with pytest.raises(UserError, match=rf"{write(tmp_path / 'bad.jsonl', '[')}:1: not valid JSON"):
        load_texts(tmp_path / "bad.jsonl")
    with pytest.raises(UserError, match=r"two.jsonl:1: a row must be a JSON object, not list"):
        load_texts(write(tmp_path / "two.jsonl", ["a"]))
    with pytest.raises(UserError, match="empty.jsonl' is empty: pass at least one text"):
        load_texts(write(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match="does not exist"):
        load_texts(tmp_path / "absent.jsonl")


@pytest.mark.parametrize("line", [b'{"prompt": "a"', b"\xff", b'{"prompt": "\\ud83d"}', b"1" * 5000])
def test_what_is_read_is_called_what_it_is(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(UserError, match=r"prompts\.jsonl:1") as told:
        load_texts(path, "prompt")
    assert "skip_bad_rows" not in str(told.value)  # which is for pairs
    with pytest.raises(UserError, match=r"^prompts file 'absent\.jsonl' does not exist or is no file\. Name"):
        load_texts("absent.jsonl", "prompt")
    with pytest.raises(UserError, match="^texts 'org/absent' is no local file and could not be loaded"):
        load_texts("org/absent")
