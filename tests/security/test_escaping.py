"""Is what a model or a file of anybody's says harmless wherever it is shown: page, Markdown, terminal, picture?

Of: files/markdown.py, terminal/harmless.py
"""

import io
import json
import logging
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from checkpoints import edit, saved
from hostile import CONTROL, PAYLOADS
from matplotlib.figure import Figure
from told import write_edit

from efface.commands.printing import show
from efface.comparison.table import markdown
from efface.errors import UserError, escaped, one_line, reason_of
from efface.files.jsonl import read_jsonl
from efface.files.markdown import code, inert, inert_lines
from efface.files.results import read_json, write_json, write_jsonl
from efface.model.card import card_of
from efface.report.dossier import write_report
from efface.report.svg import inline_svg
from efface.terminal.harmless import harmless
from efface.terminal.table import Notes, Page, Table

ALL = pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())


class Elements(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def harmful(page: str) -> list[tuple[str, dict[str, str | None]]]:
    """What on a page would run, or lead out of it."""
    return [
        (tag, given)
        for tag, given in Elements(page).found
        if tag in ("iframe", "object", "embed", "base", "form")
        or any(name.startswith("on") for name in given)
        or any(not str(given.get(name) or "#").startswith(("#", "data:image/")) for name in ("src", "href"))
    ]


def test_every_control_character_is_written_out() -> None:
    for character in CONTROL:
        assert character not in escaped(f"a{character}b") and character not in one_line(f"a{character}b")
    assert escaped("tab\tline\né 汉 \N{GRINNING FACE}") == "tab\tline\né 汉 \N{GRINNING FACE}"


@ALL
def test_errors_are_one_line_and_move_nothing(payload: str, fails: Any, tmp_path: Path) -> None:
    name = payload.replace("/", "_").replace("\0", "0")
    for argv in (
        ["evaluate", f"./{name}", "-o", tmp_path / "x.json"],
        ["train", f"{name}:x", "a", "b", "-o", tmp_path / "x"],
        ["sweep", tmp_path / name, "-o", tmp_path / "x"],
    ):
        line = fails(2, *argv)
        assert not set(line) & {*CONTROL, "\n"}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", payload: 1}) + "\n")
    assert not set(fails(2, "train", "sft", "a/b", tmp_path / "rows.jsonl", "-o", tmp_path / "x")) & set(CONTROL)
    assert not set(reason_of(ValueError(payload))) & {*CONTROL, "\n"}


@ALL
def test_tables_and_lines_of_a_terminal(payload: str, capsys: pytest.CaptureFixture[str]) -> None:
    notes = Notes()
    table = Table([[payload, notes.mark(payload)]], ["head", payload], title=payload, notes=notes)
    show(table, Page([payload, table]), payload)
    assert not set(capsys.readouterr().out) & set(CONTROL)


@ALL
def test_log_lines_and_warnings_of_others(payload: str) -> None:
    """As transformers has them, which puts what a configuration says behind its own handler."""
    written = io.StringIO()
    handler, logger = logging.StreamHandler(written), logging.getLogger("somebody.else")
    logger.addHandler(handler)
    try:
        with harmless():
            logger.warning("unknown type %s", payload)
            logger.warning(f"unknown 100 % {payload}")
            print_of = warnings.formatwarning(payload, UserWarning, "x.py", 1)
        before = logging.getLogRecordFactory()
    finally:
        logger.removeHandler(handler)
    assert not set(written.getvalue() + print_of) & set(CONTROL)
    assert before is logging.LogRecord and warnings.formatwarning("\x1b", UserWarning, "x", 1).count("\x1b")


def test_what_a_configuration_says_reaches_the_terminal_escaped(tmp_path: Path) -> None:
    path = saved(tmp_path / "model")
    edit(path / "config.json", quantization_config={"quant_method": PAYLOADS["title"]})
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    logging.getLogger("transformers").addHandler(handler)
    try:
        from efface.model.load import load_model

        with harmless(), pytest.raises(UserError, match="is quantised by"):
            load_model(path)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert "renamed" in written.getvalue() and not set(written.getvalue()) & set(CONTROL)


@ALL
def test_markdown_shows_it_as_text(payload: str) -> None:
    parser: Any = pytest.importorskip("markdown_it", reason="it is in the extra `docs`").MarkdownIt("gfm-like")
    said, coded = inert(payload), code(payload)
    text = f"Of {said} and {coded}.\n\n| a | b |\n| --- | --- |\n| {said} | {coded} |\n"
    page = parser.disable("linkify").render(text)
    allowed = {"p", "code", "table", "thead", "tbody", "tr", "th", "td", "em", "strong", "s"}
    assert {tag for tag, _ in Elements(page).found} <= allowed, page
    assert [tag for tag, _ in Elements(page).found].count("td") == 2 and not set(page) & set(CONTROL)


@ALL
def test_the_page_of_a_comparison_and_a_model_card(payload: str, tmp_path: Path) -> None:
    parser: Any = pytest.importorskip("markdown_it", reason="it is in the extra `docs`").MarkdownIt("gfm-like")
    pages = [markdown(["## Kept", inert_lines(payload), Table([[payload, "1"]], ["entry", payload], keys=1)])]
    result = {"model": payload, "method": payload, "pairs": payload, "settings": {payload: payload}}
    (tmp_path / "adapter_config.json").write_text("{}")
    pages.append(card_of(result, tmp_path).split("---\n", 2)[2])
    for page in pages:
        shown = parser.disable("linkify").render(page)
        links = [given.get("href") for tag, given in Elements(shown).found if tag == "a"]
        assert set(links) <= {"https://arxiv.org/abs/2602.23391"}, shown
        assert not {tag for tag, _ in Elements(shown).found} & {"script", "img", "iframe", "b"}, shown


@ALL
def test_the_report_shows_it_as_text(payload: str, tmp_path: Path) -> None:
    folder = write_edit(tmp_path / "edit")
    result = read_json(folder / "results.json")
    for side in ("base", "edited"):
        result[side] |= {"model": payload, "settings": {"prompts": payload}}
        file = folder / f"{side}.generations.jsonl"
        write_jsonl(file, [row | {"prompt": payload, "continuation": payload} for row in read_jsonl(file)])
    write_json(folder / "results.json", result | {"environment": result["environment"] | {"command": payload}})
    training = read_json(folder / "model" / "results.json")
    write_json(folder / "model" / "results.json", training | {"method": payload, "settings": {payload: payload}})
    write_report([folder], tmp_path / "report.html", mask="never", title=payload)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not harmful(page) and not set(page) & set(CONTROL)
    assert [tag for tag, _ in Elements(page).found].count("script") == 1  # our own, which the policy names by its hash
    assert "default-src 'none'" in page and "'unsafe-eval'" not in page
    assert "49" not in page.partition("<title>")[2].partition("</title>")[0]  # nothing of a text is a template


@ALL
def test_pictures_show_it_as_text(payload: str) -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 1000], [1, 1000], label=payload)
    axes.set_xscale("log")
    axes.set_title(payload)
    axes.set_xticks([1, 10], [payload, "b"])
    axes.legend()
    drawn = str(inline_svg(figure, "x", payload))
    assert "mathdefault" not in drawn  # the figures of the axis are drawn as ever
    for element in ElementTree.fromstring(drawn).iter():
        assert element.tag.rpartition("}")[2] not in ("script", "a", "image", "foreignObject")
        assert not [name for name in element.attrib if name.startswith("on")]
        assert element.get("href", "#").startswith("#") and not set(element.text or "") & set(CONTROL)
