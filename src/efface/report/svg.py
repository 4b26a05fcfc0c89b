"""How does a figure of matplotlib become a part of a page? As SVG that takes its colours and font from the page.

Its text stays text, in the font of the page; colours are variables of the stylesheet (`style.CSS`), so that they
follow dark mode and print; it has no size of its own, so that it is as wide as its place; names of its parts are its
own, so that several figures can stand on one page. Nothing in it leads out of the page.
"""

import io
import re
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from efface.comparison.plots import literal
from efface.errors import escaped
from efface.report.style import CSS

SCALE = 1.3
"""Pixels of the page to a unit of a picture, at most."""
LEFT_OUT = {"metadata", "style", "title", "desc", "script"}
KEPT_STYLE = {"fill", "stroke", "opacity", "fill-opacity", "stroke-opacity", "stroke-width", "stroke-dasharray"}
KEPT_STYLE |= {"stroke-dashoffset", "stroke-linecap", "stroke-linejoin", "font-size", "font-weight", "font-style"}
KEPT_STYLE |= {"text-anchor"}
_REFERENCE = re.compile(r"^(?:url\()?#([\w.-]+)\)?$")


def inline_svg(figure: Figure, name: str, alt: str) -> Markup:
    """`figure` as an `<svg>` element.

    Args:
        name: what no other figure of the page is called.
        alt: for who cannot see it.
    """
    drawn = io.StringIO()
    # Settings of the process, for the moment of drawing: there is no other way to ask for text that stays text.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        literal(figure).savefig(drawn, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(escaped(drawn.getvalue()))  # XML holds no control characters
    referred = {found for element in root.iter() for value in element.attrib.values() if (found := _target(value))}
    page = ElementTree.Element("svg", {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": escaped(alt)})
    # Text of all figures is of one size, where there is room.
    page.attrib["style"] = f"max-width: {SCALE * float(root.attrib['viewBox'].split()[2]):.0f}px"
    page.attrib |= {"class": "drawing", "fill": "currentColor", "stroke-linejoin": "round"}
    _add_children(page, root, name, referred)
    return Markup(ElementTree.tostring(page, encoding="unicode"))


def _add_children(to: ElementTree.Element, source: ElementTree.Element, name: str, referred: set[str]) -> None:
    for child in source:
        tag = _local(child.tag)
        if tag in LEFT_OUT:
            continue
        attributes = {}
        for key, value in child.attrib.items():
            kept = _attribute(_local(key), value, name, referred)
            if kept is not None:
                attributes[_local(key)] = kept
        copy = ElementTree.SubElement(to, "g" if tag == "a" else tag, attributes)
        copy.text = (child.text or "").strip() or None
        _add_children(copy, child, name, referred)


def _attribute(key: str, value: str, name: str, referred: set[str]) -> str | None:
    """What an attribute is on the page; None if it is not there."""
    if key == "id":
        return f"{name}-{value}" if value in referred else None
    if key == "style":
        return _style(value)
    if target := _target(value):
        return value.replace(f"#{target}", f"#{name}-{target}")
    if key == "href":  # of a picture inside, or out of the page
        return value if value.startswith("data:image/") else None
    if key == "d":
        return " ".join(value.split())
    return None if key.startswith("on") else value


def _style(value: str) -> str:
    pairs = (part.partition(":")[::2] for part in value.split(";") if part.strip())
    kept = {key.strip(): said.strip() for key, said in pairs if key.strip() in KEPT_STYLE}
    return "; ".join(f"{key}: {CSS.get(said, said)}" for key, said in kept.items())


def _target(value: str) -> str | None:
    """The name of the part that a value refers to."""
    found = _REFERENCE.match(value)
    return found[1] if found else None


def _local(name: str) -> str:
    return name.rpartition("}")[2]
