"""What does an analysis say in one table? A row for each figure, a column for each edited model.

Short figures of blocks that say far more: the rest is in `results.json`. A block that was not made has no rows.
"""

from collections.abc import Callable, Sequence

import numpy as np

from efface.files.jsonl import Row
from efface.report.numbers import percent
from efface.terminal.table import Page, Table

Figure = tuple[str, Callable[[Row], str]]
LOCAL = 0.01
"""Of the neurons."""
MOST = 0.8
"""Of the fall, which so many modules bring."""


def analysis_page(results: Row) -> Page:
    """The table of `efface.jobs.analyze.analyze`, and what failed."""
    models = results["models"]
    rows = []
    for block, figures in FIGURES.items():
        found = [model["blocks"].get(block) for model in models]
        if any(found):
            rows += [
                [block if not number else "", name, *_cells(tell, found)]
                for number, (name, tell) in enumerate(figures)
            ]
    head = ["block", "figure", *(model["name"] for model in models)]
    said = f"{results['n_pairs']} pairs; beside figures in parentheses what chance gives."
    failed = [f"{model['name']}, {block}: {why}" for model in models for block, why in model["failed"].items()]
    return Page([f"## What the edits of {results['base']} have done", Table(rows, head, keys=2), said, *failed])


def _cells(tell: Callable[[Row], str], found: Sequence[Row | None]) -> list[str]:
    return ["" if block is None else tell(block) for block in found]


def _last(layers: Row) -> str:
    return max(layers, key=int)


def _middle(layers: Row) -> str:
    return sorted(layers, key=int)[(len(layers) - 1) // 2]


def _gain(block: Row, layer: str) -> str:
    one = block["layers"][layer]
    left = "" if one["left"] is None else f", {one['left']:.2f} left"
    return f"{one['base']['linear']['auc_gain']:.3f} -> {one['edited']['linear']['auc_gain']:.3f}{left}"


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _shift(block: Row) -> str:
    one = block["layers"][_last(block["layers"])]
    return f"{_number(one['toxic']['shift'])}, {_number(one['benign']['shift'])}"


def _mass(block: Row, layer: str) -> str:
    one = block["layers"][layer]
    return f"{one['base']:.4f} -> {one['edited']:.4f}"


def _few(block: Row) -> str:
    """The part of the drop that the 1 % of neurons have that lower <h, w> most."""
    wanted = LOCAL * block["ranks"][-1]
    number = int(np.argmin([abs(np.log(rank / wanted)) for rank in block["ranks"]]))
    return f"{block['ranks'][number]}: {block['cumulative'][number]:.2f} ({block['random'][number]:.2f})"


def _enriched(block: Row) -> str:
    one = block["enrichment"]
    return "" if one["fold"] is None else f"x {one['fold']:.1f}, p {one['p']:.3g}"


def _stable(block: Row) -> str:
    ranks = [one["stable_rank"] for one in block["maps"] if one["squares"]]
    return f"{np.median(ranks):.1f}" if ranks else ""


def _deepest(block: Row) -> str:
    """Where half of the squared change lies at least, block by block from the last one down."""
    layers = _by_layer(block["parts"])
    total, so_far = sum(layers.values()), 0.0
    for layer in sorted(layers, reverse=True):
        so_far += layers[layer]
        if total and so_far >= total / 2:
            return f"{layer} to {max(layers)}"
    return ""


def _by_layer(parts: Row) -> dict[int, float]:
    found: dict[int, float] = {}
    for name, squares in parts.items():
        layer = int(name.partition(".")[0])
        found[layer] = found.get(layer, 0.0) + squares
    return found


def _enough(curve: str, falling: bool) -> Callable[[Row], str]:
    def tell(block: Row) -> str:
        for point in block[curve]:
            reached = point["of_fall"] is not None and (
                point["of_fall"] >= MOST if not falling else point["of_fall"] <= 1 - MOST
            )
            if reached:
                return f"{point['k']} modules, {percent(point['parameters'])} of the weights"
        return "none"

    return tell


def _carried(block: Row) -> str:
    one = block["states"][_middle(block["states"])]
    return ", ".join(_number(one[what], 2) for what in ("enough", "needed"))


def _fired(group: str) -> Callable[[Row], str]:
    def tell(block: Row) -> str:
        one = block["neurons"][group]
        parts = [(one[what], one["random"][what]) for what in ("enough", "needed")]
        said = [_number(value, 2) + ("" if group == "all" else f" ({_number(chance, 2)})") for value, chance in parts]
        return ", ".join(said) if one["enough"] is not None else ""

    return tell


def _written(block: Row) -> str:
    written = block["written"]
    for name, one in written["modules"].items():  # the best first
        shares = ", ".join(percent(side["share"]) for side in (written["base"], written["edited"]))
        return f"{name}: {percent(one['alone']['share'])}, of {shares}"
    return ""


def _overlap(name: str) -> Callable[[Row], str]:
    def tell(block: Row) -> str:
        rank = max(block[name]["left"], key=int)
        sides = [(block[name][side][rank], block[name]["chance"][side][rank]) for side in ("left", "right")]
        return ", ".join(f"{value:.2f} ({chance:.2f})" for value, chance in sides if value is not None)

    return tell


FIGURES: dict[str, list[Figure]] = {
    "certificate": [
        ("what a probe reads beyond the token, last layer", lambda block: _gain(block, _last(block["layers"]))),
        ("half-way up", lambda block: _gain(block, _middle(block["layers"]))),
    ],
    "drift": [
        ("relative shift of toxic, benign states, last layer", _shift),
        ("CKA of toxic states", lambda block: _number(block["layers"][_last(block["layers"])]["toxic"]["cka"])),
        (
            "shift along the direction",
            lambda block: _number(block["layers"][_last(block["layers"])]["toxic"]["along"], 2),
        ),
    ],
    "lens": [
        ("mass of toxic words, last layer", lambda block: _mass(block, _last(block["layers"]))),
        ("half-way up", lambda block: _mass(block, _middle(block["layers"]))),
    ],
    "neurons": [
        (
            "fall along the direction",
            lambda block: f"{block['height']['base']:.2f} -> {block['height']['edited']:.2f}",
        ),
        ("due to MLP neurons", lambda block: f"{block['by_neurons']:.2f}"),
        ("due to the first so many", _few),
        ("firing less, values moved", lambda block: f"{block['fires_less']:.2f}, {block['moved']:.2f}"),
    ],
    "weights": [
        ("relative change", lambda block: f"{block['relative']:.4f}"),
        ("half of it lies in blocks", _deepest),
        ("top 1 % of the neurons have", lambda b: f"{b['neurons']['top']:.3f} ({b['neurons']['random']['top']:.3f})"),
        ("Gini", lambda b: f"{b['neurons']['gini']:.2f} ({b['neurons']['random']['gini']:.2f})"),
        ("stable rank, median", _stable),
        ("in the null space of text", lambda b: f"{_number(b['null_part'])} ({_number(b['null_dimensions'])})"),
        ("moved neurons among toxic ones", _enriched),
    ],
    "overlap": [
        ("edit along the forget gradient: writes, reads", _overlap("edit")),
        ("an attacker's change likewise", _overlap("attack")),
        ("cosine of the two", lambda block: _number(block["cosine"], 2)),
    ],
    "patching": [
        (f"enough for {MOST:.0%} of the fall", _enough("sufficient", falling=False)),
        ("taken out, the same is gone", _enough("necessary", falling=True)),
        ("in the states half-way up: enough, needed", _carried),
        ("in how all neurons fire: enough, needed", _fired("all")),
        ("in how the toxic ones fire that fire (as many random ones)", _fired("toxic, firing")),
        ("the best module's edit alone writes, of base, edited", _written),
    ],
}
