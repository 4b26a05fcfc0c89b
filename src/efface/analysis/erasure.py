"""How much of what the hidden states say of toxicity has an edit taken away, layer by layer?

What they say beyond the token itself: a fresh linear probe for each layer and either model, on pairs that nothing was
trained on (`conditional.py`). Both models read the same tokens and are judged on the same resamples of prompts, so
that their gains can be subtracted. What is said of all layers at once (`most`, the largest fall and rise) has
intervals that account for there being several.

A linear probe alone: it is what two cores can do while somebody waits. It is blind to what is not linear, so that "it
finds nothing" proves less than "it finds something".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.analysis.conditional import CONDITIONAL, ConditionalResult, conditional_layers, maximum, remaining
from efface.analysis.states import TokenStates, token_states
from efface.files.jsonl import Row
from efface.files.shapes import INTERVAL, Each, Maybe
from efface.model.blocks import decoder_blocks
from efface.resampling import interval_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PARTS = 4
"""The depth is probed after each of so many equal parts; the last one ends with the last block."""
RESAMPLES = 500
MAXIMUM = {"layer": int, "auc_gain": float, "auc_gain_ci95": INTERVAL}
LAYER = {
    "base": CONDITIONAL,
    "edited": CONDITIONAL,
    "change": float,
    "change_ci95": INTERVAL,
    "left": Maybe(float),
    "left_ci95": Maybe(INTERVAL),
}
ERASURE: dict[str, Any] = {
    "n_layers": int,
    "n_pairs": int,
    "layers": Each(LAYER),
    "most": dict.fromkeys(("base", "edited", "fall", "rise"), MAXIMUM),
}
"""The shape of what `compare_erasure` gives, as far as it is read again."""


def probed_layers(n_layers: int) -> list[int]:
    """Blocks after a quarter, half, three quarters and all of the depth, each once."""
    return sorted({math.ceil(n_layers * part / PARTS) - 1 for part in range(1, PARTS + 1)})


def probe_states(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    *,
    progress: bool = False,
) -> dict[int, TokenStates]:
    """Layer -> what `model` holds at the continuation tokens of `rows`, at `probed_layers`."""
    return token_states(model, processing_class, rows, probed_layers(len(decoder_blocks(model))), progress=progress)


def compare_erasure(
    base: Mapping[int, TokenStates],
    edited: Mapping[int, TokenStates],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: bool = False,
) -> Row:
    """What a fresh probe finds in both models, as it is written to JSON, of the shape ERASURE.

    Args:
        base, edited: states of the same tokens at the same layers, the last block among them.

    Returns:
        `n_layers`, `n_pairs`; `layers`: number -> `base` and `edited` (`ConditionalResult`; its `n_groups` are
        prompts), the `change` of the gain in AUC, and which part of it is `left` (null if there was none by its
        interval); `most`: the largest gain of either model over the layers, the largest `fall` of it and the largest
        `rise`.

    Raises:
        UserError: as `conditional_probe`.
    """
    sides = [
        conditional_layers(states, hidden_layer=False, resamples=resamples, seed=seed, progress=progress)
        for states in (base, edited)
    ]
    gains = [{layer: found.resampled["linear"] for layer, found in side.layers.items()} for side in sides]
    falls = {layer: gains[0][layer] - gains[1][layer] for layer in gains[0]}
    return {
        "n_layers": max(base) + 1,
        "n_pairs": len(np.unique(next(iter(base.values())).pairs)),
        "layers": {str(layer): _layer(before, sides[1].layers[layer]) for layer, before in sides[0].layers.items()},
        "most": {
            "base": asdict(sides[0].most["linear"]),
            "edited": asdict(sides[1].most["linear"]),
            "fall": asdict(maximum(falls)),
            "rise": asdict(maximum({layer: -fall for layer, fall in falls.items()})),
        },
    }


def _layer(before: ConditionalResult, after: ConditionalResult) -> Row:
    gains: list[np.ndarray] = [found.resampled["linear"] for found in (before, after)]
    change = gains[1] - gains[0]
    left = remaining(gains[1], gains[0])
    return {
        "base": before.to_dict(),
        "edited": after.to_dict(),
        "change": float(change[0]),
        "change_ci95": interval_of(change[1:]),
        "left": None if left is None else left[0],
        "left_ci95": None if left is None else left[1],
    }
