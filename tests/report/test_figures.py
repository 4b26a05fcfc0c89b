"""Do the figures show the numbers, follow the page's colours, and can they be read on a phone?

Of: report/plots.py, report/style.py, report/svg.py
"""

import re
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import matplotlib.image
import pytest
from erased import erased
from markupsafe import Markup
from matplotlib.figure import Figure

import efface.report
from efface.errors import UserError
from efface.report import FIGURES, SECTIONS, Drawing
from efface.report.figures import Findings, draw, marked_up
from efface.report.plots import overview, perplexity_figure, toxicity_figure, write_overview
from efface.report.style import BASE, CSS, EDITED, INK, PAPER, narrow
from efface.report.svg import inline_svg
from efface.report.training import ACCURACY

PHONE, MARGINS, READABLE = 360, 32, 10
"""Pixels: of the narrowest screen, beside the text, and of the smallest letters."""
HISTORY = [{"step": step, f"{ACCURACY}9": 0.5 + step / 20, "retain_loss": step / 10} for step in (1, 2, 3)]


def side(share: float, perplexity: float, *, high: float | None = None) -> dict[str, Any]:
    ends = {} if high is None else {"share": [max(share - 0.1, 0), high]}
    return {"toxicity": {"share": share, "ci95": ends}, "perplexity": {"value": perplexity}}


WHOLE = Findings(side(0.5, 20.0, high=0.6), side(0.1, 22.0, high=0.2), HISTORY, erased((0.1, 0.12), (0.1, 0.05)))


@cache
def whole() -> list[Any]:
    """All figures of WHOLE, drawn once."""
    return list(draw(WHOLE))


def parsed(svg: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_every_figure_is_drawn_with_its_caption_and_what_it_means() -> None:
    drawn = {figure.name: figure for figure in whole()}
    assert list(drawn) == list(FIGURES)
    for name, figure in drawn.items():
        entry = FIGURES[name]
        assert figure.caption == marked_up(entry.what) and figure.section == entry.section in SECTIONS
        assert bool(figure.sentence) == bool(entry.says)
        assert parsed(figure.svg).attrib["aria-label"] == entry.alt
    assert "The largest fall is in layer 3" in drawn["erasure"].sentence


def test_a_figure_with_nothing_to_show_is_left_out() -> None:
    figures = {"steps": Drawing("drawings:steps", "Steps"), "nothing": Drawing("drawings:nothing", "Nothing")}
    assert [figure.name for figure in draw(Findings({}, {}, [{"step": 1}]), figures)] == ["steps"]
    older = Findings(WHOLE.base, WHOLE.edited, [])  # without a probe and a log
    assert [figure.name for figure in draw(older)] == ["toxicity", "perplexity"]


def test_a_sentence_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(UserError, match="sentence 'drawings:absent' cannot be imported"):
        draw(Findings({}, {}, []), {"steps": Drawing("drawings:steps", "Steps", says="drawings:absent")})


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_can_be_read_on_a_phone(name: str) -> None:
    (svg,) = [parsed(figure.svg) for figure in whole() if figure.name == name]
    assert "width" not in svg.attrib and "height" not in svg.attrib
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    scale = (PHONE - MARGINS) / width
    sizes = [
        float(size) for text in svg.iter("text") for size in re.findall(r"font-size: ([\d.]+)px", text.attrib["style"])
    ]
    assert sizes and min(sizes) * scale >= READABLE
    assert height * scale < PHONE


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_takes_its_colours_from_the_page(name: str) -> None:
    """Nothing is black or white by itself, and no colour of ours is left."""
    (figure,) = [figure for figure in whole() if figure.name == name]
    assert parsed(figure.svg).attrib["fill"] == "currentColor"
    assert not re.findall(r"#[0-9a-f]{6}", figure.svg.lower()), "a colour that does not follow dark mode"
    assert "var(--paper)" in figure.svg and "currentColor" in figure.svg


def test_nothing_of_a_figure_leads_out_of_the_page_or_clashes_with_another() -> None:
    drawn = whole()
    names = [element.attrib["id"] for one in drawn for element in parsed(one.svg).iter() if "id" in element.attrib]
    assert names and len(names) == len(set(names))
    for figure in drawn:
        assert all(name not in figure.svg for name in ("http", "<style", "<script", "<metadata", "font-family"))
        own = set(re.findall(r' id="([^"]+)"', figure.svg))
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', figure.svg)) <= own


def test_text_of_a_figure_is_text_and_escaped() -> None:
    figure, axes = narrow()
    axes.set_title("a <b> & c")
    before = dict(matplotlib.rcParams)
    svg = inline_svg(figure, "one", 'said "so" <b>')
    assert dict(matplotlib.rcParams) == before
    assert "a &lt;b&gt; &amp; c" in svg and "<b>" not in svg
    assert parsed(svg).attrib["aria-label"] == 'said "so" <b>'
    assert inline_svg(figure, "one", "") != inline_svg(figure, "two", "")
    assert inline_svg(figure, "one", "") == inline_svg(figure, "one", "")


def test_links_of_a_foreign_figure_are_cut() -> None:
    figure = Figure()
    figure.add_subplot().plot([0, 1], url="https://example.org/")
    assert "example.org" not in inline_svg(figure, "one", "")


def test_the_bars_are_as_high_as_the_numbers() -> None:
    for figure, expected in ((toxicity_figure(WHOLE), [0.5, 0.1]), (perplexity_figure(WHOLE), [20.0, 22.0])):
        assert figure is not None
        (axes,) = figure.axes
        assert [bar.get_height() for bar in axes.patches] == expected
        assert [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in axes.patches] == [BASE, EDITED]
    assert [text.get_text() for text in toxicity_figure(WHOLE).axes[0].texts] == ["50.0 %", "10.0 %"]


@pytest.mark.parametrize("high", [None, 0.0])
def test_a_model_that_is_not_toxic_and_one_without_intervals(high: float | None) -> None:
    findings = Findings(side(0.0, 20.0, high=high), side(0.0, 22.0, high=high), [])
    assert [figure.name for figure in draw(findings)] == ["toxicity", "perplexity"]
    without = Findings(side(0.5, 1.0) | {"perplexity": None}, side(0.5, 1.0), [])
    assert perplexity_figure(without) is None and len(overview(without).axes) == 1


@pytest.mark.parametrize(
    ("findings", "title"),
    [
        (WHOLE, "Toxicity in the hidden states"),
        (Findings(WHOLE.base, WHOLE.edited, HISTORY), "Drift on benign text"),
        (Findings(WHOLE.base, WHOLE.edited, [{"step": 1, "loss": 0.5}]), "Training loss"),
        (Findings(WHOLE.base, WHOLE.edited, [{"train_runtime": 1.0}]), ""),
    ],
)
def test_the_overview_ends_with_the_most_telling_panel(findings: Findings, title: str) -> None:
    axes = overview(findings).axes
    assert len(axes) == 3 and axes[-1].get_title().startswith(title)
    assert "cannot tell them apart" not in str([text.get_text() for one in axes for text in one.texts])


def test_the_overview_is_written_as_a_png(tmp_path: Path) -> None:
    write_overview(WHOLE, tmp_path / "figure.png")
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]
    height, width, _ = matplotlib.image.imread(tmp_path / "figure.png").shape
    assert height > 500 and width > 2 * height


def test_what_is_code_is_marked_and_all_else_escaped() -> None:
    assert marked_up("a <b> `c <d>` e") == Markup("a &lt;b&gt; <code>c &lt;d&gt;</code> e")


def test_the_page_defines_every_colour_for_light_dark_and_paper() -> None:
    template = (Path(efface.report.__file__).parent / "template.html.j2").read_text(encoding="utf-8")
    rules = re.findall(r":root \{(.*?)\}", template, re.DOTALL)
    assert len(rules) == 3
    for colour in set(CSS.values()) - {CSS[INK]}:
        name = colour.removeprefix("var(").removesuffix(")")
        assert all(f"{name}: #" in rule for rule in rules), name
    assert CSS[PAPER] == "var(--paper)"
