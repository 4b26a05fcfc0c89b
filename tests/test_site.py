"""Does `make docs` build a site that has every public name and no link that leads nowhere?"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import efface

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "make_docs.py"
pytestmark = pytest.mark.full  # `.ci/run` builds the site itself

for tool in ("pdoc", "markdown_it"):
    pytest.importorskip(tool, reason="`make docs` needs the extra `docs`")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run([sys.executable, str(SCRIPT), "-o", str(output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr  # also for a dead link, and for a warning of pdoc
    assert done.stdout == f"written: {output / 'index.html'}\n"
    return output


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("make_docs", SCRIPT)
    module: Any = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def test_every_public_name_has_its_place_in_the_reference(site: Path, script: Any) -> None:
    page = (site / "api" / "efface.html").read_text(encoding="utf-8")
    assert not [name for name in efface.__all__ if f'<section id="{name}">' not in page]
    for name in script.public_modules():
        assert (site / "api" / f"{name.replace('.', '/')}.html").is_file()
    for shown in (
        "Weight of the adversarial loss.",
        "Evaluation.toxicity",
        "Fraction of all continuations that score",
    ):
        assert shown in page  # a help text, an inherited property, the docstring of a field


def test_every_document_is_a_page_that_the_others_lead_to(site: Path, script: Any) -> None:
    index = (site / "index.html").read_text(encoding="utf-8")
    for file, target in script.pages():
        assert (site / target).is_file() and f'href="{target}"' in index, file
    assert {file for file, _ in script.pages()} >= set((ROOT / "docs").glob("*.md"))
    assert (site / "docs" / "demo.png").is_file()


def test_names_in_a_document_lead_to_the_reference(site: Path) -> None:
    page = (site / "docs" / "api.html").read_text(encoding="utf-8")
    assert '<a href="../api/efface.html#load_model"><code>load_model</code></a>' in page
    assert '<a href="../api/efface/training/trainer.html"><code>efface.training.trainer</code></a>' in page


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not re.search(r'(<script|<img|<link)[^>]*(src|href)="(https?:)?//', page.read_text(encoding="utf-8")), (
            page
        )


def test_a_link_that_leads_nowhere_is_found(script: Any, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<h1 id="here">A</h1><a href="#here">1</a><a href="b.html#there">2</a>')
    (tmp_path / "b.html").write_text('<a href="a.html">1</a><a href="https://example.org/x">2</a><img src="c.png">')
    assert sorted(script.broken_links(tmp_path)) == ["a.html: b.html#there", "b.html: c.png"]


def test_a_document_that_names_no_file_is_an_error(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n[gone](gone.md)\n", encoding="utf-8")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="page.md links to gone.md, which does not exist"):
        script.Renderer([(page, "page.html")], {}).render(page)
