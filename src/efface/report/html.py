"""How does a page reach the disk? One HTML file: no external resource, opens from a mail, escapes whatever it shows.

Text that a model or a file wrote is untrusted: the template escapes all of it. The page has one script, which orders
tables; the page's own policy lets no other run, by its hash, and nothing be fetched.
"""

import base64
import hashlib
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from efface.errors import escaped
from efface.files.results import write_text
from efface.report.figures import marked_up
from efface.report.page import Page

SCRIPT = "page.js"


def write_page(path: Path, page: Page) -> None:
    """Write a page to `path`, atomically."""
    write_text(path, html_of(page))


def html_of(page: Page) -> str:
    """The text of a page."""
    script = files("efface.report").joinpath(SCRIPT).read_text(encoding="utf-8")
    # The hash is of what stands between the tags, to the byte.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text: str = _template().render(page=page, script=script, policy=f"'sha256-{digest}'", marked_up=marked_up)
    return escaped(text)  # a text may turn the direction of what follows, or hold what no page may


def _template() -> Any:
    # StrictUndefined: a misspelt name in the template is an error, not an empty cell.
    environment = Environment(
        loader=PackageLoader("efface.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["anchor"] = anchor
    return environment.get_template("template.html.j2")


def anchor(title: str) -> str:
    """What a heading is called in the page's own links."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
