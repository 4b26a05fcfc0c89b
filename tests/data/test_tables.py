"""Are rows read from whatever `datasets`, pandas and the hub write, and is what cannot be read said in a line?"""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from efface.data.pairs import load_pairs
from efface.data.rows import load_texts
from efface.errors import UserError

ROWS = [
    {"prompt": f"The man {i} said", "chosen": " NA" if i else ' that, "now", it is 1', "rejected": " you fool é"}
    for i in range(3)
]
CHAT = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }
    for row in ROWS
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def table(path: Path, delimiter: str) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def packed(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode()))


FORMS: dict[str, Any] = {
    "pairs.parquet": lambda path: Dataset.from_list(ROWS).to_parquet(path),
    "named.after.nothing": lambda path: Dataset.from_list(ROWS).to_parquet(path),
    "pairs.csv": lambda path: table(path, ","),
    "pairs.TSV": lambda path: table(path, "\t"),
    "pairs.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "array.jsonl": lambda path: path.write_text(" \n" + json.dumps(ROWS)),
    "pairs.jsonl.gz": lambda path: packed(path, LINES),
    "packed": lambda path: packed(path, LINES),
    "pairs.json.gz": lambda path: packed(path, json.dumps(ROWS)),
    "pairs.csv.gz": lambda path: path.write_bytes(
        gzip.compress(b"prompt,chosen,rejected\n" + b"".join(b'%s,"%s",%s\n' % fields for fields in _fields()))
    ),
    "saved": lambda path: Dataset.from_list(ROWS).save_to_disk(path),
    "splits": lambda path: DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(
        path
    ),
}


def _fields() -> list[tuple[bytes, bytes, bytes]]:
    return [
        (row["prompt"].encode(), row["chosen"].replace('"', '""').encode(), row["rejected"].encode()) for row in ROWS
    ]


@pytest.mark.parametrize("name", FORMS)
def test_rows_from_any_file(name: str, tmp_path: Path) -> None:
    FORMS[name](tmp_path / name)
    assert load_pairs(tmp_path / name).rows == ROWS
    if (tmp_path / name).is_file():
        assert load_texts(tmp_path / name, "prompt") == [row["prompt"] for row in ROWS]


def test_conversations_in_parquet(tmp_path: Path) -> None:
    Dataset.from_list(CHAT).to_parquet(tmp_path / "chat.parquet")
    assert load_pairs(tmp_path / "chat.parquet").rows == CHAT


@pytest.mark.parametrize("rows", [ROWS, CHAT])
def test_rows_from_any_object(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    import pandas

    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    sources = [
        DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:1])),
        Dataset.from_list(rows),
        IterableDataset.from_generator(lambda: iter(rows)),
        pandas.DataFrame(rows),
        pandas.read_parquet(tmp_path / "rows.parquet"),  # which holds arrays for lists
        iter(rows),
        (row for row in rows),
        map(dict, rows),
    ]
    for source in sources:
        assert load_pairs(source).rows == rows


BROKEN: dict[str, tuple[bytes, str]] = {
    "cut.parquet": (b"PAR1" + bytes(40), "is no whole parquet file"),
    "cut.jsonl.gz": (gzip.compress(LINES.encode() * 50)[:80], "is no whole gzip file"),
    "pairs.zip": (b"PK\x03\x04" + bytes(40), "is a zip archive, which is not read"),
    "pairs.jsonl.zst": (b"(\xb5/\xfd" + bytes(40), "is packed with zstd, which is not read"),
    "fields.csv": (b"prompt,chosen,rejected\na,b,c,d\n", "fields.csv:2: the line has 4 fields, the header 3"),
    "twice.csv": (
        b"prompt,chosen,rejected,rejected\na,b,c,d\n",
        "twice.csv:1: 2 columns are called 'rejected'. Rename",
    ),
    "open.csv": (
        b'prompt,chosen,rejected\na,b,"c\nd,e,f\n',
        "open.csv:2: not a row of a table .unexpected end of data",
    ),
    "swallowed.tsv": (b'prompt\tchosen\trejected\na\t"b, c\td\ne\tf" g\th\n', "swallowed.tsv:2: not a row of a table"),
    "python.csv": (
        b"prompt,chosen,rejected\na,\"[{'role': 'assistant', 'content': 'b'}]\",c\n",
        "python.csv:2: field 'chosen' holds chat messages as a text that is no JSON. Write the rows as JSON lines",
    ),
    "latin.csv": (b"prompt,chosen,rejected\na,caf\xe9,c\n", "is not valid UTF-8"),
    "cut.json": (b'[{"prompt": "a"},\n {"chosen"', "cut.json:2: not valid JSON .* begins as a JSON array"),
    "few.csv": (b"prompt,chosen,rejected\na,b\n", "few.csv:2: field 'rejected' is missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_pairs(tmp_path / name)


def test_conversations_in_csv(tmp_path: Path) -> None:
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(CHAT[0]), *([json.dumps(turns) for turns in row.values()] for row in CHAT)])
    assert load_pairs(tmp_path / "pairs.csv").rows == CHAT


def test_what_a_table_adds_to_objects_is_left_out(tmp_path: Path) -> None:
    tools = [[{"name": name, "parameters": {name: {"type": "string"}}}] for name in ("city", "day")]
    rows = [{**row, "tools": one} for row, one in zip(ROWS, tools, strict=False)]
    dataset = Dataset.from_list(rows)
    assert dataset[0]["tools"][0]["parameters"]["day"] is None  # as datasets keeps it
    dataset.to_parquet(str(tmp_path / "pairs.parquet"))
    dataset.save_to_disk(str(tmp_path / "saved"))
    for source in (dataset, DatasetDict({"train": dataset}), tmp_path / "pairs.parquet", tmp_path / "saved"):
        assert [row["tools"] for row in load_pairs(source).rows] == tools


def test_a_folder_that_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(UserError, match="is no whole saved dataset"):
        load_pairs(tmp_path)


def test_splits_without_train() -> None:
    with pytest.raises(UserError, match="the given DatasetDict has the splits 'a', 'b', and no 'train'. Pass one"):
        load_pairs(DatasetDict(a=Dataset.from_list(ROWS), b=Dataset.from_list(ROWS)))
    with pytest.raises(UserError, match="the given dict is one row or a table by columns"):
        load_pairs(ROWS[0])
    with pytest.raises(UserError, match="rows are to come from int"):
        load_pairs(3)


LINES_THAT_JSON_REFUSES = {
    "number": ('{"prompt": "a", "chosen": "b", "rejected": ' + "9" * 5000 + "}", "a number that cannot be read"),
    "depth": ('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    "half": (json.dumps(ROWS[0] | {"chosen": "\ud83d"}), r"field 'chosen' holds half of a character \(.ud83d at char"),
    "half inside": (json.dumps(ROWS[0] | {"x": [{"y": "\ud83d"}]}), "field 'x', field 'y' holds half of a char"),
}


@pytest.mark.parametrize("kind", LINES_THAT_JSON_REFUSES)
def test_lines_that_json_or_a_tokenizer_refuses(kind: str, tmp_path: Path) -> None:
    line, message = LINES_THAT_JSON_REFUSES[kind]
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    with pytest.raises(UserError, match=f"pairs.jsonl:2: .*{message}"):
        load_pairs(path)
    with pytest.raises(UserError, match=f"pairs.jsonl:2: .*{message}"):
        load_texts(path, "prompt")
    pairs = load_pairs(path, skip_bad_rows=True)
    assert (len(pairs), pairs.skipped) == (1, 1)


def test_a_whole_emoji_as_escapes_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"text": "\N{GRINNING FACE} \\ud83d"}))  # and a backslash that begins no escape
    assert load_texts(path) == ["\N{GRINNING FACE} \\ud83d"]


def test_texts_of_a_list_hold_no_half_characters() -> None:
    with pytest.raises(UserError, match="prompt 1: 'prompt' holds half of a character"):
        load_texts(["a", "b\ud83d"], "prompt")
