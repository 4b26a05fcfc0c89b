"""Does every table fit, say all that is in it, and do a terminal no harm?"""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.terminal.table import Notes, Page, Table, paragraph, parts, plain, terminal_width

HEAD = ("attack", "toxic\nof 64", "share", "more than before", "control", "p")
ROWS = [
    ("third_party:of_a_long_name", "58", "0.90 [0.80, 0.95]", "+0.80 [+0.66, +0.91]", "no evidence", "0.012"),
    ("= black box", "5", "0.10 [0.05, 0.20]", "+0.00 [-0.10, +0.10]", "1.00 rises", "1.000"),
]


def test_what_fits_stands_in_one_part() -> None:
    lines = list(plain(Table([("a", "1"), ("bc", "22")], ("name", "n"), title="two")))
    assert lines == ["two", "name  n", "a     1", "bc    22"]


def test_what_does_not_fit_stands_below_with_the_first_columns_again() -> None:
    table = Table(ROWS, HEAD)
    text = str(table)
    first, second = text.split("\n\n")
    assert max(map(len, text.splitlines())) <= 80
    assert first.startswith("attack") and second.splitlines()[0].split() == ["attack", "p"]
    assert all(cell in text for row in ROWS for cell in row[1:]), text  # no figure is broken
    assert "third_party:of_a_\nlong_name" in "\n".join(line.split("  ")[0] for line in first.splitlines())
    whole = "\n".join(plain(table, 120))
    assert "\n\n" not in whole and max(map(len, whole.splitlines())) > 80


def test_keys_are_repeated_and_prose_is_broken_rather_than_put_below() -> None:
    rows = [("main", "repo", "a long story of what was done and why it was done " * 3, "1")]
    table = Table(rows, ("budget", "entry", "what", "seed"), keys=2, prose=(2,))
    assert len(parts(table, 60)) == 1 and len(parts(table, 20)) == 2
    assert all(part.head[:2] == [["budget"], ["entry"]] for part in parts(table, 20))


def test_reasons_stand_below_by_their_numbers() -> None:
    notes = Notes()
    marks = [notes.mark("it broke " * 20), notes.mark("no base"), notes.mark("no base")]
    assert marks == ["(1)", "(2)", "(2)"]
    lines = str(Table([("a", f"failed {mark}") for mark in marks], notes=notes)).splitlines()
    assert lines[:3] == ["a  failed (1)", "a  failed (2)", "a  failed (2)"]
    assert lines[3].startswith("(1) it broke it") and lines[4].startswith("    ") and lines[-1] == "(2) no base"


def test_a_page_has_headings_paragraphs_and_tables() -> None:
    page = Page(["## Relearned", "- a point " + "of a list " * 12, Table([("a", "b")])])
    heading, point, table = str(page).split("\n\n")
    assert heading == "Relearned" and table == "a  b" and point.splitlines()[1].startswith("  of")


def test_a_path_is_never_broken() -> None:
    path = "/a/long/path" * 10
    assert path in list(paragraph(f"written: {path} it is", 40))


def test_control_characters_are_escaped() -> None:
    text = str(Page([Table([("a\x1b[31m", "b\tc")], ("\x07",) * 2, "\x1b", ["\x9b"]), "\x1b[2J"]))
    assert text.replace("\n", "").isprintable() and "\\x1b[31m" in text


cells = st.text(alphabet=string.ascii_letters + " _-/.:[],\n", max_size=30)


@given(st.data(), st.integers(1, 7), st.booleans(), st.integers(24, 130))
def test_no_line_is_too_long_and_nothing_is_lost(data: st.DataObject, n: int, has_head: bool, width: int) -> None:
    row = st.lists(cells, min_size=n, max_size=n)
    rows, head = data.draw(st.lists(row, max_size=4)), data.draw(row) if has_head else []
    keys, prose = data.draw(st.integers(0, n)), data.draw(st.sets(st.integers(0, n - 1)))
    table = Table(rows, head, keys=keys, prose=sorted(prose))
    lines = list(plain(table, width))
    if not keys:  # with keys that take all the room, a column has still one letter's
        assert max(map(len, lines), default=0) <= max(width, 1)
    letters = "".join(sorted("".join(map(str, [*head, *(cell for row in rows for cell in row)]))))
    shown = "".join(sorted("".join(lines)))
    assert all(shown.count(letter) >= letters.count(letter) for letter in set(letters) - set(" \n"))


def test_the_width_is_that_of_columns_or_80(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "61")
    assert terminal_width() == 61
    monkeypatch.setenv("COLUMNS", "1")
    assert terminal_width() == 20
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr("os.get_terminal_size", lambda *given: (_ for _ in ()).throw(OSError))
    assert terminal_width() == 80
