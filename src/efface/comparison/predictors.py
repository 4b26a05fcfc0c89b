"""Does anything that is known of an edit beforehand say how long it lasts? Rank correlations over the methods.

A predictor is a number of a kept model that no attack was made for: its distance to the base, the barrier on the way,
its cost, its toxic share, and what an analysis adds. An outcome is how it fared: steps to half under an attack (never
within the attack: longer than all others), or the drop that is left. Both are ranked, so that neither needs a unit; a
positive correlation says that more of the predictor lasts longer. Few methods say little: the interval is that of
methods drawn with replacement, p of the outcome dealt to the methods at random.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from efface.comparison.config import BASE
from efface.files.jsonl import Row
from efface.resampling import draw_resamples, interval_of
from efface.terminal.table import Table

LEAST = 5
"""Methods; of fewer nothing is said."""
DEALS = 5000
NEVER = np.inf

Numbers = Mapping[str, float]


def predictors_of(kept: Row, figures: Row) -> dict[str, float]:
    """What is known of a kept model without an attack; what was not measured is left out."""
    reading = kept["reading"] or {}
    found = {
        "distance to the base": figures.get("distance"),
        "barrier on the way to the base": figures.get("barrier"),
        "KL to the base": reading.get("kl"),
        "rise of perplexity": reading.get("increase"),
        "drop of the toxic share": figures.get("drop"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def outcomes_of(figures: Row, within: Mapping[str, int]) -> dict[str, float]:
    """How a kept model fared: of each attack and rate that moves the base its steps to half, and its drop at the last
    point.

    Args:
        within: up to how many steps each attack is looked at: a model that was not attacked for longer, or only at
            points that do not count, has not lasted longer for that.
    """
    found: dict[str, float] = {}
    for name, last in within.items():
        curve = figures.get("curves", {}).get(name)
        if curve is None or not curve["moves_base"]:
            continue
        half = curve["steps_to_half"]
        found[f"{name}: steps to half"] = NEVER if half is None or half > last else half
        found |= {
            f"{name}: drop at {last} steps": point["drop"] for point in curve["points"] if point["steps"] == last
        }
    return found


def horizons(figures: Sequence[Row]) -> dict[str, int]:
    """Up to how many steps all of them were attacked that were attacked at all."""
    found: dict[str, int] = {}
    for one in figures:
        for name, curve in one.get("curves", {}).items():
            found[name] = min(curve["last"], found.get(name, curve["last"]))
    return found


def correlate(results: Row, more: Mapping[str, Numbers] | None = None, *, seed: int = 0) -> list[Row]:
    """Each predictor against each outcome, over the first seeds of the entries that were attacked at the main budget.

    Args:
        results: of a sweep.
        more: entry -> further predictors, as an analysis gives them.

    Returns:
        Rows of `predictor`, `outcome`, `n` methods, `rho`, its `ci95` and `p`; of pairs with at least LEAST methods
        and something to rank.
    """
    first: dict[str, tuple[Row, Row]] = {}
    for kept in results["kept"]:
        figures = results["figures"].get(kept["place"], {})
        if kept["budget"] == results["main"] and kept["entry"] != BASE and figures.get("curves"):
            first.setdefault(kept["entry"], (kept, figures))
    within = horizons([figures for _, figures in first.values()])
    of = {
        entry: (predictors_of(kept, figures) | dict((more or {}).get(entry, {})), outcomes_of(figures, within))
        for entry, (kept, figures) in first.items()
    }
    names = [list(dict.fromkeys(name for one in of.values() for name in one[side])) for side in (0, 1)]
    rows = []
    for predictor in names[0]:
        for outcome in names[1]:
            pairs = [
                (known[predictor], fared[outcome])
                for known, fared in of.values()
                if predictor in known and outcome in fared
            ]
            found = rank_correlation(*zip(*pairs, strict=True), seed=seed) if len(pairs) >= LEAST else None
            if found is not None:
                rows.append({"predictor": predictor, "outcome": outcome, "n": len(pairs), **found})
    return rows


def rank_correlation(x: Sequence[float], y: Sequence[float], *, seed: int = 0) -> dict[str, Any] | None:
    """Spearman's rho with ties, its 95 % interval and p (two-sided); None if all of one are the same."""
    ranks = np.stack([rankdata(np.asarray(one, dtype=float)) for one in (x, y)])  # (2, n)
    rho = spearman(x, y)
    if np.isnan(rho):
        return None
    n, draw = ranks.shape[1], np.random.default_rng(seed)
    # Ranks are taken anew in each resample: a method that is drawn twice is a tie.
    times = np.concatenate(list(draw_resamples(n, 2000, seed)))  # (r, n)
    drawn = [np.repeat(np.arange(n), row) for row in times]
    resampled = np.array([spearman(*ranks[:, rows]) for rows in drawn])
    dealt = np.array([_correlation(ranks[0], draw.permutation(ranks[1])) for _ in range(DEALS)])
    p = (1 + (np.abs(dealt) >= abs(rho) - 1e-12).sum()) / (1 + DEALS)
    return {"rho": float(rho), "ci95": list(interval_of(resampled)), "p": float(p)}


def spearman(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Rho; NaN if all of one are the same."""
    return _correlation(*(rankdata(np.asarray(one, dtype=float)) for one in (x, y)))


def predictors_table(rows: Sequence[Row]) -> Table:
    """A line for each predictor, a column for each outcome: rho, its interval, p."""
    outcomes = list(dict.fromkeys(row["outcome"] for row in rows))
    by = {(row["predictor"], row["outcome"]): row for row in rows}
    lines = [
        [predictor, *(_cell(by.get((predictor, outcome))) for outcome in outcomes)]
        for predictor in dict.fromkeys(row["predictor"] for row in rows)
    ]
    return Table(lines, ["known beforehand", *outcomes])


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    low, high = row["ci95"]
    return f"{row['rho']:+.2f} [{low:+.2f}, {high:+.2f}], p {row['p']:.3f}, {row['n']} methods"


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; NaN if either does not vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 0 else float("nan")
