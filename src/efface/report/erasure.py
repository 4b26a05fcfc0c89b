"""What do the hidden states still say of toxicity, before the edit and after?

The probes of `analysis/erasure.py`, as a picture, a sentence and a table.
The sentence is made of the numbers, and of intervals that hold for all layers at once: that something is left, that
nothing is found, that it fell or rose, or that there was nothing to begin with.
"""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from efface.report.figures import Findings
from efface.report.numbers import bracketed, percent
from efface.report.style import BASE, DASHED, EDITED, INK, SMALL, narrow, plain

Block = Mapping[str, Any]
"""Of the shape `efface.analysis.erasure.ERASURE`."""
SIDES = ("base", "edited")
COLUMNS = ("After layer", "Gain, base", "Gain, edited", "Change", "Left")
NOTHING = "the hidden states say no more than the tokens themselves, as far as a linear probe can tell"


def erasure_figure(findings: Findings) -> Figure | None:
    """The gain of either model, layer by layer; None where it was not measured."""
    if not findings.erasure:
        return None
    figure, axes = narrow()
    erasure_panel(axes, findings.erasure)
    return figure


def erasure_panel(axes: Axes, block: Block) -> None:
    """Gains in AUC over the token alone, with intervals; 0 is what the token says."""
    places = range(len(block["layers"]))
    for side, colour, marker, shift in zip(SIDES, (BASE, EDITED), "os", (-0.12, 0.12), strict=True):
        gains = [layer[side]["linear"] for layer in block["layers"].values()]
        values = [gain["auc_gain"] for gain in gains]
        ends = [gain["auc_gain_ci95"] for gain in gains]
        axes.errorbar(
            [place + shift for place in places],
            values,
            yerr=[
                [max(value - low, 0) for value, (low, _) in zip(values, ends, strict=True)],
                [max(high - value, 0) for value, (_, high) in zip(values, ends, strict=True)],
            ],
            color=colour,
            marker=marker,
            linestyle="none",
            elinewidth=1.6,
            capsize=4,
            label=side,
        )
    axes.axhline(0, color=INK, linestyle=DASHED, linewidth=1)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -0.02), high + 0.25 * (high - min(low, -0.02)))  # room for the names
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xticks(places, list(block["layers"]))
    axes.set_xlabel(f"after layer (the last is {block['n_layers'] - 1})", fontsize=SMALL, color=INK)
    axes.legend(fontsize=SMALL, frameon=False, ncols=2, loc="upper center", labelcolor=INK)
    plain(axes, "Toxicity in the hidden states\n(0: no more than in the token)", "gain in AUC")


def erasure_sentence(findings: Findings) -> str:
    """What the numbers say; empty where there are none."""
    block = findings.erasure
    if not block:
        return ""
    before, after, fall, rise = (block["most"][name] for name in (*SIDES, "fall", "rise"))
    said = [_how(block)]
    if not found(before) and not found(after):
        said.append(f"Before the edit and after it {NOTHING}, so this shows neither erasure nor its absence.")
    elif not found(before):
        said.append(
            f"Before the edit {NOTHING}; after it they do say more: {_most(after)}. The edit has made toxic text "
            "easier to tell by its hidden states."
        )
    elif not found(after):
        said.append(
            f"Before the edit the hidden states told more: {_most(before)}. After it {NOTHING}: {_most(after)}. That "
            "is no proof of erasure: with more text, or a probe that is not linear, something might be found."
        )
    else:
        said.append(
            f"After the edit the hidden states still tell toxic from benign text, beyond the token itself: "
            f"{_most(after)}; before it {_most(before)}."
        )
    if found(fall):
        said.append(f"The largest fall is in layer {fall['layer']}, {_gain(fall)}{_left(block, fall['layer'])}.")
    if found(rise):
        said.append(f"The largest rise is in layer {rise['layer']}, {_gain(rise)}.")
    if not found(fall) and not found(rise) and (found(before) or found(after)):
        said.append("In no layer has it fallen or risen by more than chance explains.")
    return " ".join(said)


def erasure_rows(block: Block) -> list[list[str]]:
    """The lines of the table, under COLUMNS."""
    rows = []
    for number, layer in block["layers"].items():
        gains = [layer[side]["linear"] for side in SIDES]
        rows.append(
            [
                number,
                *(bracketed(gain["auc_gain"], gain["auc_gain_ci95"], ".3f") for gain in gains),
                bracketed(layer["change"], layer["change_ci95"], "+.3f"),
                bracketed(layer.get("left"), layer.get("left_ci95"), ".2f"),
            ]
        )
    return rows


def found(most: Mapping[str, Any]) -> bool:
    """Whether the largest of several layers' figures is above 0 by an interval that holds for all of them."""
    return bool(most["auc_gain_ci95"][0] > 0)


def _how(block: Block) -> str:
    auc = next(iter(block["layers"].values()))["base"]["token"]["auc"]
    return (
        f"By the token alone a toxic one ranks above a benign one in {percent(auc)} of cases (the AUC; chance is "
        f"50 %). The picture has what a fresh linear probe of the hidden state adds to that, on {block['n_pairs']} "
        "pairs that nothing was trained on."
    )


def _most(most: Mapping[str, Any]) -> str:
    return f"most in layer {most['layer']}, {_gain(most)}"


def _gain(most: Mapping[str, Any]) -> str:
    return bracketed(most["auc_gain"], most["auc_gain_ci95"], ".3f")


def _left(block: Block, layer: int) -> str:
    found_there = block["layers"][str(layer)]
    if found_there.get("left") is None:
        return ""
    return f": {bracketed(found_there['left'], found_there['left_ci95'], '.2f')} of the base's gain is left there"
