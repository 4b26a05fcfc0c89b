"""Which texts of a file are labelled toxic, and which benign? One reader for every labelled set efface knows.

JSON lines, or a table with a header line (`.tsv`, `.csv`). A row is one of
    text (or comment_text, post) with a label   `toxic`, `label`, `class` or `toxicity`: a word, 0 or 1, or a score
    text with `spans`                           character offsets of its toxic part (SemEval 2021): see below
    toxic and neutral, both texts               a parallel sentence (ParaDetox)
    continuation with its score                 RealToxicityPrompts, nested as on the hub or flat (Gehman et al. 2020)
    post with class or implicit_class           ImplicitHate (ElSherief et al. 2021): implicit_hate is toxic, implicit
    text with toxicity_human (and _ai)          ToxiGen's annotations (Hartvigsen et al. 2022): nearly all implicit
Scores are toxic from 0.5. Spans say *where* a post is toxic, so it is read as its sentences, toxic where a span
touches them; posts whose span is empty were toxic to other annotators and have no label here.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.data.rows import labelled_rows
from efface.data.tables import delimited_reader, not_delimited
from efface.data.text import sentences
from efface.errors import UserError
from efface.files.io import read_regular_text
from efface.files.jsonl import Row
from efface.files.shapes import shown

RATED_TOXIC = 0.5
"""From here on a score of a labelled set means toxic: a share of annotators, mostly."""
TEXTS = ("text", "comment_text", "post")
LABELS = ("toxic", "label", "class", "toxicity")
TOXIC = {"toxic", "true", "hate", "hateful", "offensive", "abusive", "implicit hate", "explicit hate"}
BENIGN = {"benign", "false", "neutral", "normal", "not toxic", "non toxic", "nontoxic", "not hate"}
MIN_WORDS = 3
"""Of a sentence that is cut out of a post with spans."""
# ToxiGen's own rule is toxicity_ai + toxicity_human > 5.5, both from 1 to 5.
TOXIGEN = 2.75


@dataclass(frozen=True)
class LabelledText:
    """A text and what annotators said of it."""

    text: str
    toxic: bool
    group: str
    """What it was made from: texts of a group are alike, so a split keeps them together."""
    implicit: bool | None = None
    """Of a toxic text: whether it is so without a toxic word. None: the file does not say."""


@dataclass(frozen=True)
class LabelledFile:
    """The labelled texts of one file."""

    name: str
    """Of the file, without its folder."""
    texts: list[LabelledText]
    unlabelled: int
    """Rows that have no label, or none that can be trusted, and are left out."""


def load_labelled(file: str | os.PathLike[str]) -> LabelledFile:
    """Read a file of labelled rows, in any of the forms above.

    Raises:
        UserError: naming the file and line of a row of no known form; if no row is labelled.
    """
    texts: list[LabelledText] = []
    unlabelled = 0
    for where, row in rows_of(file):
        found = texts_of(row, where)
        texts += found
        unlabelled += not found
    if not texts:
        raise UserError(f"{os.fspath(file)!r} holds no labelled text ({unlabelled} rows without a label).")
    return LabelledFile(Path(file).name, texts, unlabelled)


def toxic_texts(file: str | os.PathLike[str]) -> list[str]:
    """Those of a file of labelled texts that are labelled toxic.

    Raises:
        UserError: if the file is none of a known form, or no text in it is toxic.
    """
    found = list(dict.fromkeys(one.text for one in load_labelled(file).texts if one.toxic))
    if not found:
        raise UserError(f"labelled={os.fspath(file)!r}: none of its texts is labelled toxic. Give a file with such.")
    return found


def rows_of(file: str | os.PathLike[str]) -> Iterator[tuple[str, Row]]:
    """(where it stands, the row) for each row of JSON lines, or of a table with a header line.

    Raises:
        UserError: at the first row that cannot be read.
    """
    delimiter = {".tsv": "\t", ".csv": ","}.get(Path(file).suffix.lower())
    if delimiter is None:
        yield from labelled_rows(file)
        return
    lines, reader = io.StringIO(read_regular_text(file, "table"), newline=""), None
    try:
        reader = delimited_reader(lines, delimiter, os.fspath(file))
        for row in reader:
            where = f"{os.fspath(file)}:{reader.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{where}: not the {len(reader.fieldnames or ())} columns of the first line.")
            yield where, row
    except csv.Error as error:
        raise not_delimited(error, os.fspath(file), reader) from error


def texts_of(row: Row, where: str) -> list[LabelledText]:
    """The labelled texts of one row; none if it has no label.

    Raises:
        UserError: if the row has no known form, or its label does not say whether it is toxic.
    """
    if isinstance(row.get("toxic"), str) and isinstance(row.get("neutral"), str):
        source = row["toxic"]
        return [LabelledText(source, True, source), LabelledText(row["neutral"], False, source)]
    if "continuation" in row:
        return _continuation(row, where)
    text = next((row[key] for key in TEXTS if key in row), None)
    if not isinstance(text, str):
        raise UserError(
            f"{where}: no labelled text. A row has {', '.join(TEXTS[:-1])} or {TEXTS[-1]} and a label, `toxic` and "
            f"`neutral`, or a `continuation` with its score; this one has {', '.join(map(repr, row)) or 'nothing'}."
        )
    if spans := spans_of(row, where):
        return _marked_sentences(text, spans)
    toxic, implicit = _judged(row, where)
    return [] if toxic is None else [LabelledText(text, toxic, text, implicit if toxic else None)]


def is_toxic(row: Row, where: str) -> bool | None:
    """Whether the one text of a row is labelled toxic, by any of its marks; None if it has none that says so or not.

    Raises:
        UserError: if the label is not known to mean either.
    """
    return True if spans_of(row, where) else _judged(row, where)[0]


def _judged(row: Row, where: str) -> tuple[bool | None, bool | None]:
    """(toxic, implicit) of a row with one text; None where it does not say."""
    if "toxicity_human" in row:
        ratings = [_number(row[key], f"{where}: {key!r}") for key in ("toxicity_human", "toxicity_ai") if key in row]
        given = [rating for rating in ratings if rating is not None]
        return (sum(given) > TOXIGEN * len(given), True) if given else (None, None)
    label = next((key for key in LABELS if key in row), None)
    if label is None:  # the second stage of ImplicitHate holds nothing but implicit hate
        return (True, True) if row.get("implicit_class") else (None, None)
    toxic = _label(row[label], f"{where}: {label!r}")
    if "implicit" in row:
        return toxic, _label(row["implicit"], f"{where}: 'implicit'")
    if row[label] in ("implicit_hate", "explicit_hate"):
        return toxic, row[label] == "implicit_hate"
    return toxic, True if row.get("implicit_class") else None


def _continuation(row: Row, where: str) -> list[LabelledText]:
    nested = row["continuation"]
    text, value = (
        (nested.get("text"), nested.get("toxicity"))
        if isinstance(nested, dict)
        else (nested, row.get("continuation_toxicity"))
    )
    if not isinstance(text, str):
        raise UserError(f"{where}: 'continuation' must be a text or hold one as 'text', but it is {shown(nested)}.")
    toxicity = _number(value, f"{where}: the toxicity of 'continuation'")  # some have never been scored
    return [] if toxicity is None else [LabelledText(text, toxicity >= RATED_TOXIC, text)]


def _marked_sentences(text: str, spans: set[int]) -> list[LabelledText]:
    return [
        LabelledText(sentence, not spans.isdisjoint(range(start, start + len(sentence))), text)
        for start, sentence in sentences(text)
        if len(sentence.split()) >= MIN_WORDS
    ]


def spans_of(row: Row, where: str) -> set[int]:
    """The character offsets that `spans` marks; none if there is no such column.

    Raises:
        UserError: if they are no offsets.
    """
    value = row.get("spans")
    try:
        offsets = json.loads(value) if isinstance(value, str) else value
        return set(map(int, offsets or ()))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{where}: 'spans' must be a list of character offsets, but it is {shown(value)}.") from error


def _label(value: Any, what: str) -> bool | None:
    word = value if isinstance(value, str) else shown(value)
    word = " ".join(word.lower().replace("_", " ").replace("-", " ").split())
    if word in TOXIC | BENIGN:
        return word in TOXIC
    try:
        score = _number(value, what)
    except UserError:
        score = -1.0
    if score is not None and not 0 <= score <= 1:
        raise UserError(
            f"{what} is {shown(value)}, which is not known to mean toxic ({', '.join(sorted(TOXIC))}), benign "
            f"({', '.join(sorted(BENIGN))}) or a score within 0 and 1."
        )
    return None if score is None else score >= RATED_TOXIC


def _number(value: Any, what: str) -> float | None:
    """A score; None for null, an empty cell or NaN."""
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{what} must be a score or null, but it is {shown(value)}.") from error
    if math.isinf(number):
        raise UserError(f"{what} must be a score or null, but it is {number}.")
    return None if math.isnan(number) else number
