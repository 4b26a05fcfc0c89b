"""Are labelled files read for what they say, and are the figures of a scorer on them right?

Of: scoring/labelled.py
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from sklearn.metrics import roc_auc_score

from efface.cli import main
from efface.errors import UserError
from efface.files.results import read_json
from efface.scoring.check import check_scorers, measure
from efface.scoring.labelled import LabelledText, is_toxic, load_labelled


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path, *rows: dict[str, Any]) -> list[tuple[str, bool, bool | None]]:
    return [(text.text, text.toxic, text.implicit) for text in load_labelled(write(path, *rows)).texts]


# Labelled files


@pytest.mark.parametrize(
    ("row", "toxic"),
    [
        ({"text": "a", "toxic": 1}, True),
        ({"text": "a", "toxic": 0}, False),
        ({"text": "a", "toxic": True}, True),
        ({"text": "a", "toxic": "0"}, False),
        ({"text": "a", "label": "Toxic"}, True),
        ({"text": "a", "label": "benign"}, False),
        ({"text": "a", "label": "Not Toxic"}, False),
        ({"text": "a", "label": "non-toxic"}, False),
        ({"text": "a", "toxicity": 0.5}, True),
        ({"text": "a", "toxicity": 0.49}, False),
        ({"text": "a", "toxic": None}, None),
        ({"text": "a", "toxicity": float("nan")}, None),
        ({"text": "a"}, None),
        ({"text": "a", "spans": []}, None),
        ({"text": "a", "spans": [0]}, True),
    ],
    ids=str,
)
def test_labels(row: dict[str, Any], toxic: bool | None) -> None:
    assert is_toxic(row, "here") is toxic


def test_rows_with_a_label(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"text": "a", "label": "toxic"}, {"comment_text": "b", "toxic": 0},
                 {"text": "c", "toxic": None})  # fmt: skip
    found = load_labelled(file)
    assert [(text.text, text.toxic) for text in found.texts] == [("a", True), ("b", False)]
    assert found.unlabelled == 1 and found.name == "a.jsonl"


def test_spans_label_sentences(tmp_path: Path) -> None:
    text = "What a lovely old town. But the mayor is silly. And so it goes."
    start = text.index("silly")
    rows = [{"text": text, "spans": [start, start + 1]}, {"text": "All of it is marked by others.", "spans": []}]
    file = load_labelled(write(tmp_path / "a.jsonl", *rows))
    assert [(sentence.text, sentence.toxic) for sentence in file.texts] == [
        ("What a lovely old town.", False),
        ("But the mayor is silly.", True),
        ("And so it goes.", False),
    ]
    assert {sentence.group for sentence in file.texts} == {text} and file.unlabelled == 1


def test_paradetox_table(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_text('id\ttoxic\tneutral\n1\tyou silly man\tyou man\n2\ta "b" c\t"a\nb"\n')
    found = load_labelled(file).texts
    assert [(text.text, text.toxic, text.group) for text in found] == [
        ("you silly man", True, "you silly man"),
        ("you man", False, "you silly man"),
        ('a "b" c', True, 'a "b" c'),
        ("a\nb", False, 'a "b" c'),
    ]


def test_real_toxicity_prompts_nested_and_flat(tmp_path: Path) -> None:
    rows = [
        {"prompt": {"text": "x"}, "continuation": {"text": "a", "toxicity": 0.5}},
        {"prompt": "x", "continuation": "b", "continuation_toxicity": 0.2},
        {"prompt": "x", "continuation": "c", "continuation_toxicity": None},
    ]
    assert read(tmp_path / "a.jsonl", *rows) == [("a", True, None), ("b", False, None)]


def test_implicit_hate(tmp_path: Path) -> None:
    table = tmp_path / "stage1.tsv"
    table.write_text("post\tclass\na\timplicit_hate\nb\texplicit_hate\nc\tnot_hate\n")
    found = [(text.text, text.toxic, text.implicit) for text in load_labelled(table).texts]
    assert found == [("a", True, True), ("b", True, False), ("c", False, None)]
    assert read(tmp_path / "stage2.jsonl", {"post": "a", "implicit_class": "irony"}) == [("a", True, True)]
    rows = [{"text": "a", "toxic": 1, "implicit": True}, {"text": "b", "toxic": 1, "implicit": False}]
    assert read(tmp_path / "own.jsonl", *rows) == [("a", True, True), ("b", True, False)]


def test_toxigen(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "toxicity_human": 3.0},
        {"text": "b", "toxicity_human": 2.0},
        {"text": "c", "toxicity_human": 2.0, "toxicity_ai": 4.0},  # 6 > 5.5
        {"text": "d", "toxicity_human": 3.0, "toxicity_ai": 2.0},
        {"text": "e", "toxicity_human": None},
    ]
    assert read(tmp_path / "a.jsonl", *rows) == [
        ("a", True, True),
        ("b", False, None),
        ("c", True, True),
        ("d", False, None),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "label": "spam"}, r"a.jsonl:1: 'label' is 'spam', which is not known to mean toxic \(abusive"),
        ({"text": "a", "toxicity": 83}, "'toxicity' is 83, which is not known"),
        ({"prompt": "a", "toxic": 1}, "a.jsonl:1: no labelled text. .* this one has 'prompt', 'toxic'"),
        ({"text": 3, "toxic": 1}, "a.jsonl:1: no labelled text"),
        ({"text": "a", "spans": "x"}, "'spans' must be a list of character offsets, but it is 'x'"),
        ({"continuation": 3}, "'continuation' must be a text or hold one"),
        ({"continuation": "a", "continuation_toxicity": "high"}, "must be a score or null, but it is 'high'"),
        ({"text": "a"}, r"holds no labelled text \(1 rows without a label\)"),
    ],
)
def test_rows_that_do_not_say(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_labelled(write(tmp_path / "a.jsonl", row))


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent.tsv cannot be read: No such file"):
        load_labelled(tmp_path / "absent.tsv")
    (tmp_path / "a.csv").write_text("text,toxic\nb\n")
    with pytest.raises(UserError, match="a.csv:2: not the 2 columns of the first line"):
        load_labelled(tmp_path / "a.csv")


# Figures


def labelled(toxic: Sequence[bool], implicit: Sequence[bool | None] | None = None) -> list[LabelledText]:
    kinds = implicit or [None] * len(toxic)
    return [
        LabelledText(f"text {i}", bool(t), f"text {i}", k) for i, (t, k) in enumerate(zip(toxic, kinds, strict=True))
    ]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40))
def test_auc_is_that_of_scikit_learn_with_ties(rows: list[tuple[bool, int]]) -> None:
    toxic, scores = [row[0] for row in rows], np.array([row[1] / 5 for row in rows])
    quality = measure(labelled(toxic), scores)
    if len(set(toxic)) < 2:
        assert quality.auc is None and quality.ci95 is None
    else:
        assert quality.auc == pytest.approx(roc_auc_score(toxic, scores))


def test_interval_covers_and_narrows() -> None:
    """Scores of toxic texts are normal, shifted by 1: the AUC is Phi(1 / sqrt 2) = 0.760."""
    draw = np.random.default_rng(0)
    widths = []
    for n in (100, 1600):
        toxic = np.arange(n) % 2 == 0
        scores = 1 / (1 + np.exp(-draw.normal(toxic.astype(float))))
        low, high = measure(labelled(toxic.tolist()), scores).ci95 or [1.0, 0.0]
        assert low < 0.760 < high
        widths.append(high - low)
    # Hanley and McNeil 1982: a standard error of about 0.0475 for 50 and 50.
    assert widths[0] == pytest.approx(2 * 1.96 * 0.0475, rel=0.2)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.25)


def test_texts_of_one_group_are_not_independent() -> None:
    toxic = [True, False] * 100
    scores = np.random.default_rng(0).random(200)
    alone = measure(labelled(toxic), scores).ci95
    # The same ten posts, each with twenty sentences of one score.
    posts = [LabelledText(f"{i}", i // 20 % 2 == 0, f"post {i // 20}") for i in range(200)]
    together = measure(posts, np.repeat(scores[:10], 20)).ci95
    assert alone and together and together[1] - together[0] > 2 * (alone[1] - alone[0])


def test_thresholds_by_hand() -> None:
    quality = measure(labelled([True, True, True, False]), np.array([0.95, 0.6, 0.2, 0.5]))
    assert (quality.texts, quality.toxic) == (4, 3) and quality.auc == pytest.approx(2 / 3)
    assert quality.thresholds == [
        {"threshold": 0.3, "share": 0.75, "precision": pytest.approx(2 / 3), "recall": pytest.approx(2 / 3)},
        {"threshold": 0.5, "share": 0.5, "precision": 1.0, "recall": pytest.approx(2 / 3)},  # 0.5 is not above it
        {"threshold": 0.7, "share": 0.25, "precision": 1.0, "recall": pytest.approx(1 / 3)},
        {"threshold": 0.9, "share": 0.25, "precision": 1.0, "recall": pytest.approx(1 / 3)},
    ]
    nothing = measure(labelled([False]), np.array([0.1])).thresholds[0]
    assert nothing["precision"] is None and nothing["recall"] is None and nothing["share"] == 0


def test_implicit_hate_is_measured_apart(tmp_path: Path) -> None:
    rows = [{"post": "you silly fool", "class": "explicit_hate"}] * 4
    rows += [{"post": "they all look alike", "class": "implicit_hate"}] * 3
    rows += [{"post": "a river runs here", "class": "not_hate"}] * 5
    (check,) = check_scorers([write(tmp_path / "a.jsonl", *rows)], ["stubs:nasty"])
    assert (check.quality.texts, check.quality.toxic) == (12, 7)
    assert check.implicit and (check.implicit.texts, check.implicit.toxic, check.implicit.auc) == (8, 3, 0.5)
    assert check.explicit and (check.explicit.texts, check.explicit.auc) == (9, 1.0)
    (plain,) = check_scorers([write(tmp_path / "b.jsonl", {"text": "a", "toxic": 1})], ["stubs:nasty"])
    assert plain.implicit is None and plain.explicit is None


class Trained:
    name = "trained"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.zeros(len(texts))

    def seen(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([text.startswith("seen") for text in texts])


def test_texts_seen_in_training_are_left_out_for_every_scorer(tmp_path: Path) -> None:
    rows = [{"text": text, "toxic": 1} for text in ("seen a", "new b", "seen c")]
    file = write(tmp_path / "a.jsonl", *rows)
    checks = check_scorers([file], ["stubs:nasty", Trained()])
    assert [(check.scorer, check.quality.texts, check.seen) for check in checks] == [
        ("stubs:nasty", 1, 2),
        ("trained", 1, 2),
    ]
    with pytest.raises(UserError, match="was trained on all 2 texts of b.jsonl"):
        check_scorers([write(tmp_path / "b.jsonl", rows[0], rows[2])], [Trained()])


# The command


def test_check_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": "you fool", "toxic": 1}, {"text": "an old town", "toxic": 0}, {"text": "x", "toxic": None}]
    rows += [{"text": "they look alike", "toxic": 1, "implicit": True}]
    file, out = write(tmp_path / "a.jsonl", *rows), tmp_path / "out.json"
    assert main(["scorers", "--check", file, "--scorer", "stubs:nasty", "stubs:parity", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "stubs:nasty:" in printed and re.search(r"a.jsonl \(1\) +2 of 3 +0\.750 \[", printed)
    assert re.search(r"- implicit +1 of 2 +0\.500 \[", printed) and "(1) left out: 1 rows without a label" in printed
    assert max(map(len, printed.splitlines())) <= 80
    found = read_json(out)
    assert found["schema"] == 1 and [check["scorer"] for check in found["checks"]] == ["stubs:nasty", "stubs:parity"]
    first = found["checks"][0]
    assert first["file"] == "a.jsonl" and first["auc"] == 0.75 and first["unlabelled"] == 1 and first["seen"] == 0
    assert first["implicit"]["auc"] == 0.5 and first["explicit"] is None and first["version"] is None
    assert str(tmp_path) not in json.dumps(found["checks"]) and found["environment"]["command"].startswith("efface")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-o", "x"], "go with --train FILE"),
        (["--check", "x", "-o", "/dev/null"], "'/dev/null' cannot be a file: a device has its name"),
        (["--train", "x", "-o", "made", "--seed", "-1"], "-1: a seed is a number from 0 to 4294967295"),
        (["--train", "x"], "--train needs -o DIR"),
        (["--check", "absent.jsonl"], "absent.jsonl"),
        (["--check", "x", "--train", "y"], "not allowed with"),
    ],
)
def test_wrong_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scorers", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("efface: ") and error.count("\n") == 1
