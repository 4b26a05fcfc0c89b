"""What does the documentation look like as a site? README, docs/ and the rest as pages, the docstrings as a reference.

    python scripts/make_docs.py [-o site]

The reference has what docs/api.md calls public: `efface` itself and the extension points. A link that leads nowhere is
an error, and so is a warning of pdoc. Needs the extra `docs`; nothing is downloaded, and the pages load nothing from
elsewhere.
"""

import argparse
import dataclasses
import html
import importlib
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pdoc
import pygments
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from transformers import TrainingArguments

import efface

ROOT = Path(__file__).parents[1]
FIRST = {"README.md": "index.html", "docs/api.md": "docs/api.html", "examples/README.md": "examples/index.html"}
MODULE = re.compile(r"^\| `(efface(?:\.\w+)+)` \|", re.MULTILINE)
COLOURED = HtmlFormatter(nowrap=True)
Page = tuple[Path, str]
"""A document of the repository, and where it lies in the site."""


def pages() -> list[Page]:
    """README first, what a user needs next, then the rest by name."""
    names = [name for name in FIRST if (ROOT / name).exists()]
    names += sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md") if file.name != "api.md")
    names += ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
    return [(ROOT / name, FIRST.get(name, name.removesuffix(".md") + ".html")) for name in names]


def public_modules() -> list[str]:
    return ["efface", *sorted(MODULE.findall((ROOT / "docs" / "api.md").read_text(encoding="utf-8")))]


def reference() -> dict[str, pdoc.doc.Module]:
    """What pdoc found of every public module. The help texts of settings are their docstrings."""
    found = {}
    for name in public_modules():
        module = importlib.import_module(name)
        for exported in getattr(module, "__all__", ()):  # those of `efface` are imported on use; pdoc looks for them
            setattr(module, exported, getattr(module, exported))
        found[name] = pdoc.doc.Module(module)
    for one in [member for module in found.values() for member in module.flattened_own_members]:
        if isinstance(one, pdoc.doc.Class) and dataclasses.is_dataclass(one.obj):
            complete(one, set(found))
    return found


def complete(one: pdoc.doc.Class, documented: set[str]) -> None:
    """Let the page of a dataclass have all its fields that no other page has, with their help texts."""
    for field in dataclasses.fields(one.obj):
        if field.name in one.members and not one.members[field.name].docstring:
            one.members[field.name].docstring = field.metadata.get("help", "")
    if issubclass(one.obj, TrainingArguments):  # whose signature has 150 arguments
        one.members["__init__"].docstring = "@private"
    for (module, _), members in one.inherited_members.items():
        if module.startswith("efface") and module not in documented:
            one.own_members = [*one.own_members, *members]


def title_of(file: Path) -> str:
    """The first heading."""
    return next(line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# "))[2:]


def slug(heading: str) -> str:
    """The anchor of a heading, as on the sites that show Markdown."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


class Renderer:
    """Markdown to HTML, with the links of the repository turned into those of the site."""

    def __init__(self, known: list[Page], documented: dict[str, pdoc.doc.Module]):
        self.targets = {file.resolve(): target for file, target in known}
        self.documented = documented
        self.copied: set[Path] = set()
        self.parser = MarkdownIt("commonmark", {"html": True, "highlight": highlighted}).enable("table")

    def render(self, file: Path) -> tuple[str, list[tuple[str, str]]]:
        """The page, and (anchor, text) of the headings to list beside it."""
        tokens, toc = self.parser.parse(file.read_text(encoding="utf-8")), []
        at = os.path.dirname(self.targets[file.resolve()])
        for token, following in zip(tokens, [*tokens[1:], Token("", "", 0)], strict=True):
            if token.type == "heading_open":
                text = "".join(part.content for part in following.children or ())
                token.attrSet("id", slug(text))
                toc += [(slug(text), text)] if token.tag == "h2" else []
            if token.children:
                token.children = list(self._linked(token.children, file, at))
        return self.parser.renderer.render(tokens, self.parser.options, {}), toc

    def _linked(self, children: list[Token], file: Path, at: str) -> Iterator[Token]:
        inside: list[bool] = []  # of each link that is open: is it kept?
        for token in children:
            if token.type == "link_open":
                target = self._target(str(token.attrGet("href")), file, at)
                inside.append(target is not None)
                if target is None:
                    continue
                token.attrSet("href", target)
            elif token.type == "link_close" and not inside.pop():
                continue
            elif token.type == "image":
                image = (file.parent / str(token.attrGet("src"))).resolve()
                self.copied.add(image)
                token.attrSet("src", os.path.relpath(image.relative_to(ROOT), at or "."))
            elif token.type == "code_inline" and not inside and (target := self._of_code(token.content)):
                yield Token("html_inline", "", 0, content=f'<a href="{os.path.relpath(target, at or ".")}">')
                yield token
                yield Token("html_inline", "", 0, content="</a>")
                continue
            yield token

    def _target(self, href: str, file: Path, at: str) -> str | None:
        """Where a link leads in the site; None for a file of the repository that is not in it."""
        if re.match(r"(https?|mailto):|#", href):
            return href
        path, hash_, anchor = href.partition("#")
        found = (file.parent / unquote(path)).resolve()
        target = self.targets.get(found)
        if target is None and found.suffix == ".py" and found.is_relative_to(ROOT / "src"):
            target = self._of_code(".".join(found.relative_to(ROOT / "src").with_suffix("").parts))
        if target is None:
            if not found.exists():
                raise SystemExit(f"{file.relative_to(ROOT)} links to {href}, which does not exist.")
            return None
        return os.path.relpath(target, at or ".") + hash_ + anchor

    def _of_code(self, name: str) -> str | None:
        """The place in the reference of a module, or of a name that `efface` exports."""
        if name in self.documented:
            return f"api/{name.replace('.', '/')}.html"
        exported = name.removeprefix("efface.").partition("(")[0]
        return f"api/efface.html#{exported}" if exported in efface.__all__ else None


def highlighted(code: str, language: str, attributes: str) -> str:
    """A block of code; what stands in it is escaped either way."""
    known = language in ("python", "json", "yaml", "bash", "toml")
    shown = pygments.highlight(code, get_lexer_by_name(language), COLOURED) if known else html.escape(code)
    return f'<pre class="pdoc-code codehilite"><code>{shown}</code></pre>'


def build(output: Path) -> list[str]:
    """Write the site and return the links in it that lead nowhere."""
    shutil.rmtree(output, ignore_errors=True)
    documented, known = reference(), pages()
    listed = [(target, title_of(file)) for file, target in known]
    environment = pdoc.render.env
    environment.globals |= {"version": efface.__version__, "pages": listed, "up": ""}
    pdoc.render.configure(docformat="google", template_directory=ROOT / "scripts" / "site")
    renderer, template = Renderer(known, documented), environment.get_template("page.html.jinja2")
    for file, target in known:
        body, toc = renderer.render(file)
        up = "../" * target.count("/")
        write(output / target, template.render(title=title_of(file), body=body, toc=toc, up=up))
    for image in renderer.copied:
        place = output / image.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place)
    for name, module in documented.items():
        page = without_dead_anchors(pdoc.render.html_module(module, documented))
        write(output / "api" / f"{name.replace('.', '/')}.html", page)
    write(output / "api" / "search.js", pdoc.render.search_index(documented))
    return broken_links(output)


def without_dead_anchors(page: str) -> str:
    """pdoc also links to members that a class has from a base of another library, and does not list these."""
    there = set(re.findall(r'id="([^"]+)"', page))
    return re.sub(r'<a href="#([\w.]+)">(.*?)</a>', lambda link: link[0] if link[1] in there else link[2], page)


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


class _Links(HTMLParser):
    def __init__(self, file: Path):
        super().__init__()
        self.anchors, self.links = set[str](), list[str]()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {name for key in ("id", "name") if (name := given.get(key))}
        self.links += [link for key in ("href", "src") if (link := given.get(key))]


def broken_links(site: Path) -> list[str]:
    """`page: link` of every link within the site to a page, an image or a heading that is not there."""
    found = {file.resolve(): _Links(file) for file in site.rglob("*.html")}
    broken = []
    for file, page in found.items():
        for link in page.links:
            path, _, anchor = link.partition("#")
            if re.match(r"(https?|mailto|data):", link):
                continue
            target = (file.parent / unquote(path)).resolve() if path else file
            heading = not anchor or target not in found or unquote(anchor) in found[target].anchors
            broken += [] if target.is_file() and heading else [f"{file.relative_to(site.resolve())}: {link}"]
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "site", help="default: site")
    args = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # what pdoc warns of
        broken = build(args.output)
    for one in broken:
        print(f"leads nowhere: {one}", file=sys.stderr)
    if not broken:
        print(f"written: {args.output / 'index.html'}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
