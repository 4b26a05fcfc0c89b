"""How do the analyses of several models look over each other? A picture for each question, as SVG files.

Chance is drawn in grey and dashed wherever it was measured: noise of the same length, random value vectors, the base.
In the heat maps of tokens toxic words keep their first letter only.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from efface.analysis.concentration import RANKS
from efface.comparison.plots import COLOURS, GREY, MARKERS, literal
from efface.errors import escaped
from efface.files.jsonl import Row
from efface.files.results import write_text
from efface.report.erasure import erasure_panel
from efface.report.masking import BULLET, WordScorer, mask_tokens
from efface.report.style import DASHED, INK, SMALL, plain

Blocks = Mapping[str, Row]
"""Name of a model -> a block of it."""
CAPTIONS = {
    "certificate": "What a fresh probe reads off the hidden states beyond the token itself, layer by layer.",
    "drift": "How far the states of toxic and of benign continuations have moved, and how alike they still are.",
    "tokens": "The shift of each token, layer by layer; toxic words are marked and keep their first letter only.",
    "lens": "The probability of toxic words where the states of some layer are read as the last one's.",
    "neurons": "How many neurons bring the fall along the toxic direction, and which; random values dashed.",
    "weights": "Where the weights have changed, and in how many directions.",
    "patching": "Modules of the edit put into the base, and taken out of the edited model, the best first.",
}
"""By the first part of a picture's name."""
WIDTH, HEIGHT = 4.6, 3.2
SHOWN = 24
"""Characters of a token under a heat map."""


def write_figures(results: Row, folder: Path) -> list[Path]:
    """Every picture that has something to show, into `folder`.

    Args:
        results: as of `efface.jobs.analyze.analyze`.
    """
    written = []
    for name, figure in figures_of(results):
        path = folder / f"{name}.svg"
        drawn = io.StringIO()
        literal(figure).savefig(drawn, format="svg", metadata={"Date": None})
        write_text(path, escaped(drawn.getvalue()))  # a token may be a control character, which XML does not hold
        written.append(path)
    return written


def figures_of(results: Row, scorer: WordScorer | None = None) -> Iterator[tuple[str, Figure]]:
    """Name and picture, one after the other.

    Args:
        scorer: masks the tokens of words that it finds offensive, besides those that tell toxic text.
    """
    if scorer is not None:
        results = _masked(results, scorer)
    for block, draw in DRAWINGS.items():
        found = {model["name"]: model["blocks"][block] for model in results["models"] if block in model["blocks"]}
        if found:
            yield from draw(found)


def _masked(results: Row, scorer: WordScorer) -> Row:
    """The results with every token of an offensive word masked, and among the `toxic` ones of its picture."""

    def model_of(model: Row) -> Row:
        drift = model["blocks"].get("drift")
        if drift is None:
            return model
        pictures = []
        for one in drift["pictures"]:
            tokens = mask_tokens(one["tokens"], scorer)
            masked = {place for place, token in enumerate(tokens) if token != one["tokens"][place]}
            pictures.append(one | {"tokens": tokens, "toxic": sorted(masked.union(one["toxic"]))})
        return model | {"blocks": model["blocks"] | {"drift": drift | {"pictures": pictures}}}

    return results | {"models": [model_of(model) for model in results["models"]]}


def _panels(n: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH * n, HEIGHT), layout="constrained", facecolor="white")
    return figure, [figure.add_subplot(1, n, i + 1) for i in range(n)]


def _styles(names: Sequence[str]) -> Iterator[tuple[str, Row]]:
    for number, name in enumerate(names):
        yield name, {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "label": name}


def _finish(axes: Axes, title: str, x: str, y: str) -> None:
    plain(axes, title, y)
    axes.set_xlabel(x, fontsize=SMALL, color=INK)
    if axes.get_legend_handles_labels()[0]:  # an edit that changes nothing draws nothing
        axes.legend(fontsize=SMALL - 3, frameon=False, labelcolor=INK)


def _certificate(blocks: Blocks) -> Iterator[tuple[str, Figure]]:
    figure, panels = _panels(len(blocks))
    for axes, (name, block) in zip(panels, blocks.items(), strict=True):
        erasure_panel(axes, block)
        axes.set_title(f"{name}: toxicity in the states\n(0: no more than in the token)", fontsize=SMALL, color=INK)
    yield "certificate", figure


def _drift(blocks: Blocks) -> Iterator[tuple[str, Figure]]:
    figure, (shift, alike) = _panels(2)
    for name, style in _styles(list(blocks)):
        layers = blocks[name]["layers"]
        x = [int(layer) for layer in layers]
        for kind, line in (("toxic", "-"), ("benign", ":")):
            own = style | {"linestyle": line, "label": f"{name}, {kind}"}
            shift.plot(x, [layer[kind]["shift"] for layer in layers.values()], **own)
            alike.plot(x, [_or_nan(layer[kind]["cka"]) for layer in layers.values()], **own)
    _finish(shift, "How far the states have moved", "after layer", "relative shift")
    _finish(alike, "How alike they are", "after layer", "CKA")
    yield "drift", figure
    for name, block in blocks.items():
        for picture in block["pictures"]:
            yield f"tokens/{name}-{picture['pair']}-{picture['side']}", _heat_map(name, picture)


def _heat_map(name: str, picture: Row) -> Figure:
    table = np.array(picture["shift"])
    labels = [_label(token, place in picture["toxic"]) for place, token in enumerate(picture["tokens"])]
    figure = Figure(figsize=(max(0.26 * len(labels) + 1.4, WIDTH), HEIGHT), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    image = axes.imshow(table, aspect="auto", origin="lower", cmap="magma_r", vmin=0)
    axes.axvline(picture["start"] - 0.5, color=INK, linestyle=DASHED, linewidth=1)
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=SMALL - 4)
    for place in picture["toxic"]:
        axes.get_xticklabels()[place].set_color("#c8500a")
    axes.set_ylabel("layer", fontsize=SMALL, color=INK)
    axes.set_title(f"{name}: shift of each token, {picture['side']} side", fontsize=SMALL, color=INK)
    figure.colorbar(image, ax=axes)
    return figure


def _label(token: str, toxic: bool) -> str:
    text = "".join(character if character.isprintable() else " " for character in token).strip()[:SHOWN] or "·"
    return text[0] + BULLET * (len(text) - 1) if toxic else text


def _lens(blocks: Blocks) -> Iterator[tuple[str, Figure]]:
    figure, (axes,) = _panels(1)
    for number, (name, style) in enumerate(_styles(list(blocks))):
        layers = blocks[name]["layers"]
        x = [int(layer) for layer in layers]
        if not number:
            axes.plot(x, [one["base"] for one in layers.values()], color=GREY, linestyle=DASHED, label="base")
        axes.plot(x, [one["edited"] for one in layers.values()], **style)
    _finish(axes, "Toxic words, read at some depth", "after layer", "probability")
    yield "lens", figure


def _neurons(blocks: Blocks) -> Iterator[tuple[str, Figure]]:
    figure, (curve, groups) = _panels(2)
    width = 0.8 / len(blocks)
    for number, (name, style) in enumerate(_styles(list(blocks))):
        block = blocks[name]
        curve.plot(block["ranks"], block["cumulative"], **style)
        dashed = {"color": style["color"], "linestyle": DASHED, "linewidth": 1, "alpha": 0.6}
        curve.plot(block["ranks"], block["random"], label=f"{name}, random values", **dashed)
        places = [place + (number - (len(blocks) - 1) / 2) * width for place in range(len(block["groups"]))]
        groups.bar(places, list(block["groups"].values()), width, color=style["color"], label=name)
    curve.set_xscale("log")
    curve.axhline(1, color=GREY, linewidth=1)
    _finish(curve, "How many neurons lower <h, w>?", "so many neurons", "part of the fall")
    names = [group.replace(", ", ",\n") for group in next(iter(blocks.values()))["groups"]]
    groups.set_xticks(range(len(names)), names)
    groups.axhline(0, color=GREY, linewidth=1)
    _finish(groups, "Which ones?", "", "part of the fall")
    groups.tick_params(labelsize=SMALL - 3)
    yield "neurons", figure


def _weights(blocks: Blocks) -> Iterator[tuple[str, Figure]]:
    figure, (depth, spectrum) = _panels(2)
    for name, style in _styles(list(blocks)):
        block = blocks[name]
        layers: dict[int, float] = {}
        for part, squares in block["parts"].items():
            layer = int(part.partition(".")[0])
            layers[layer] = layers.get(layer, 0.0) + squares
        depth.plot(list(layers), list(layers.values()), **(style | {"markersize": 3}))
        changed = [one["spectrum"] for one in block["maps"] if one["squares"]]
        if changed:
            spectrum.plot(RANKS, np.mean(changed, axis=0), **style)
    depth.axhline(1 / max(len(layers), 1), color=GREY, linestyle=DASHED, linewidth=1, label="evenly spread")
    _finish(depth, "Where the weights have changed", "layer", "part of the squared change")
    spectrum.set_xscale("log", base=2)
    _finish(spectrum, "In how many directions of a matrix", "singular values", "part of its squared change")
    yield "weights", figure


def _patching(blocks: Blocks) -> Iterator[tuple[str, Figure]]:
    figure, panels = _panels(2)
    titles = {"sufficient": "The edit of the best modules alone", "necessary": "All the edit but theirs"}
    for axes, (curve, title) in zip(panels, titles.items(), strict=True):
        for name, style in _styles(list(blocks)):
            points = blocks[name][curve]
            x = [point["parameters"] for point in points]
            axes.plot(x, [_or_nan(point["of_fall"]) for point in points], **style)
        axes.axhline(1, color=GREY, linewidth=1)
        _finish(axes, title, "part of the weights", "part of the fall of toxic words")
    yield "patching", figure


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


DRAWINGS: dict[str, Callable[[Blocks], Iterator[tuple[str, Figure]]]] = {
    "certificate": _certificate,
    "drift": _drift,
    "lens": _lens,
    "neurons": _neurons,
    "weights": _weights,
    "patching": _patching,
}
