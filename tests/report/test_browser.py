"""Does the page work where it is read: sorted, unmasked, by keyboard, in the dark, and without a complaint?

In headless Chromium, through Playwright; skipped where either is missing. Of: report/page.js
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attacked import attacked
from told import write_audit, write_edit

from efface.report.dossier import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    rows = [attacked("relearn", 30), attacked("sampling", 4), attacked("prune", 12)]
    write_report([write_edit(folder / "edit"), write_audit(folder / "audit", *rows)], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright (pip install efface[browser])")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Any]:
    """The report, opened; whatever it fetched or complained of fails the test."""
    opened, complaints = browser.new_page(color_scheme="light"), []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: complaints.append(request.url) if request.url != file.as_uri() else None)
    opened.goto(file.as_uri())
    yield opened
    assert complaints == []
    opened.close()


def column(page: Any, number: int) -> list[str]:
    """Of the first table that can be sorted, that of the attackers."""
    cells: list[str] = (
        page.locator("table.sortable").first.locator(f"tbody tr > :nth-child({number})").all_inner_texts()
    )
    return cells


def shares(page: Any) -> list[float]:
    place = page.locator("table.sortable").first.locator("th").all_inner_texts()
    number = next(i for i, head in enumerate(place, 1) if head.startswith("Toxic share"))
    return [float(cell.split()[0]) for cell in column(page, number)]


def test_a_table_is_sorted_by_a_click_and_the_other_way_by_another(page: Any) -> None:
    before = shares(page)
    assert before != sorted(before), "else nothing is shown"
    head = page.locator("table.sortable").first.get_by_role("button", name="Toxic share")
    head.click()
    assert shares(page) == sorted(before)
    head.click()
    assert shares(page) == sorted(before, reverse=True)
    assert page.locator("table.sortable").first.locator("th[aria-sort=descending]").count() == 1


def test_a_table_is_sorted_by_the_keyboard_alone(page: Any) -> None:
    button = page.locator("table.sortable").first.get_by_role("button", name="Attack").first
    button.focus()
    page.keyboard.press("Enter")
    names = column(page, 1)
    assert names == sorted(names, key=str.lower)


def test_offensive_words_are_seen_after_a_click_or_a_key_only(page: Any) -> None:
    first, second = page.locator(".side details").nth(0), page.locator("details").nth(2)
    assert not first.locator("blockquote").is_visible()
    first.locator("summary").click()
    assert first.locator("blockquote").is_visible() and "<i>" in first.locator("blockquote").inner_text()
    second.locator("summary").focus()
    page.keyboard.press("Enter")
    assert second.locator("blockquote").is_visible()


def test_the_page_follows_dark_mode_and_prints_on_white_without_what_is_hidden(page: Any) -> None:
    def paper() -> str:
        colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return colour

    assert paper() == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    assert paper() == "rgb(22, 25, 29)"
    page.locator("details").first.locator("summary").click()
    page.emulate_media(media="print")
    assert paper() == "rgb(255, 255, 255)"
    assert not page.locator("details").first.locator("blockquote").is_visible()


def test_it_fits_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_what_a_model_wrote_runs_nothing(browser: Any, tmp_path: Path) -> None:
    """Also if it came through unescaped: the policy of the page stands behind the escaping."""
    folder = write_edit(tmp_path / "edit")
    generations = folder / "edited.generations.jsonl"
    attack = "<script>document.title = 'run'</script><img src=x onerror=\\\"document.title='run'\\\">"
    generations.write_text(generations.read_text().replace(" edited rotten <i>", attack))
    write_report([folder], tmp_path / "r.html", mask="never", title="calm")
    through = tmp_path / "through.html"
    through.write_text(
        (tmp_path / "r.html").read_text().replace("&lt;", "<").replace("&gt;", ">").replace("&#34;", '"')
    )
    for path in (tmp_path / "r.html", through):
        page = browser.new_page()
        page.goto(path.as_uri())
        page.wait_for_timeout(100)
        assert page.title() == "calm", path
        page.close()
