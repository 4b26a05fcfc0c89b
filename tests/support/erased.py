"""What is found in the hidden states, for tests that show it? A block of any gains, by layer, before and after."""

from typing import Any

LAYERS = (1, 3)
HALF = 0.02
"""Of every interval."""


def quality(gain: float | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"auc": 0.8 + (gain or 0), "balanced_accuracy": 0.7, "bits": 0.8, "shuffled_auc": 0.5}
    found |= {"auc_ci95": [0.7, 0.95], "balanced_accuracy_ci95": [0.6, 0.8]}
    if gain is None:
        return found
    found |= {"auc_gain": gain, "auc_gain_ci95": [gain - HALF, gain + HALF]}
    found |= {"balanced_accuracy_gain": gain, "balanced_accuracy_gain_ci95": [gain - HALF, gain + HALF]}
    return found | {"bits_saved": 0.0, "bits_saved_ci95": [0.0, 0.0], "shuffled_auc_gain": 0.0}


def erased(before: tuple[float, ...], after: tuple[float, ...], layers: tuple[int, ...] = LAYERS) -> dict[str, Any]:
    """What `compare_erasure` would give for these gains in AUC."""
    found, n = {}, {"n": 2_500, "n_groups": 64}
    for layer, was, is_now in zip(layers, before, after, strict=True):
        sides = {
            side: {"token": quality(), "linear": quality(gain), **n}
            for side, gain in zip(("base", "edited"), (was, is_now), strict=True)
        }
        left = is_now / was if was > HALF else None
        found[str(layer)] = {
            **sides,
            "change": is_now - was,
            "change_ci95": [is_now - was - HALF, is_now - was + HALF],
            "left": left,
            "left_ci95": None if left is None else [left - 0.1, left + 0.1],
        }
    falls = [was - is_now for was, is_now in zip(before, after, strict=True)]
    several = {"base": before, "edited": after, "fall": falls, "rise": [-fall for fall in falls]}
    return {
        "n_layers": layers[-1] + 1,
        "n_pairs": 64,
        "layers": found,
        "most": {name: most(layers, gains) for name, gains in several.items()},
    }


def most(layers: tuple[int, ...], gains: Any) -> dict[str, Any]:
    gain, layer = max(zip(gains, layers, strict=True))
    return {"layer": layer, "auc_gain": gain, "auc_gain_ci95": [gain - HALF, gain + HALF]}
