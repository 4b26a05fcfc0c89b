"""What does a sweep show? From what was measured of kept models, the figures of the protocol (docs/comparison.md).

Of each kept model, beside the base under the very same: steps to base and to half for each attack and rate, drops and
their ratios to the best other method's, what of the drop survives rounding, trainability. Entries are compared in
pairs on the same prompts, and the p of all pairs of a budget corrected together (Holm).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from efface.attacks.selection import Option, reach
from efface.comparison.config import BASE, AttackPlan, SweepConfig
from efface.comparison.curves import Curves, curves_of, planned
from efface.comparison.figures import (
    as_curve,
    ratio_of_drops,
    steps_to_base,
    steps_to_half,
    surviving_part,
    trainability,
)
from efface.evaluation.comparison import compare, holm
from efface.files.jsonl import Row

Options = Mapping[str, Mapping[str, Sequence[Option]]]
GRID = ("bits", "scheme", "group_size")


def conclude(config: SweepConfig, kept: Mapping[str, Row], options: Options, reported: Mapping[str, Option]) -> Row:
    """`figures` of each place, and the `comparisons` of each budget.

    Args:
        kept: place -> what was measured of a model, the base's among them.
        options: place -> attack -> what it lets an attacker do.
        reported: place -> what it wrote after the reported prompts.
    """
    base = kept.get(BASE)
    if base is None or "weights" not in base:
        return {"figures": {}, "comparisons": []}
    done = {place: row for place, row in kept.items() if "weights" in row}
    attacks = planned(config)
    figures = {
        place: figures_of(row, base, _others(row, done), attacks) for place, row in done.items() if place != BASE
    }
    comparisons = [
        one for budget in config.budgets for one in _compare(config, budget, done, options, reported, config.seed)
    ]
    return {"figures": figures, "comparisons": comparisons}


def _others(row: Row, kept: Mapping[str, Row]) -> list[Row]:
    """The models of other entries at the same budget, of their first seeds."""
    found: dict[str, Row] = {}
    for other in kept.values():
        if other["budget"] == row["budget"] and other["entry"] not in (row["entry"], BASE):
            found.setdefault(other["entry"], other)
    return list(found.values())


def figures_of(row: Row, base: Row, others: Sequence[Row], attacks: Sequence[AttackPlan] = ()) -> Row:
    """The figures of one kept model.

    Args:
        others: kept models of other methods, for ratios.
        attacks: which of them lie on one curve, see `curves_of`; by default each is one of its own.

    Returns:
        `drop`, untouched, and as a part of the base's share, `relative_share`; for each attack and rate, `curves`: its
        `steps_to_base`, `steps_to_half` (None: not within the attack, or the attack does not move the base, which
        `moves_base` says), the `last` step at which both were measured and, at each such point, the `drop` and the
        `ratio` to the best other method's; the same two of the worst attack, `worst_drop` and `worst_ratio`;
        `surviving`, for each grid, and `surviving_moved`; `trainability`, `distance`, `barrier`.
    """
    share, base_share = _share(row), _share(base)
    worst, ratio = _worst_drop(row, base), None
    if worst is not None:
        drops = [drop for other in others if (drop := _worst_drop(other, base)) is not None]
        ratio = ratio_of_drops(worst, drops)
    ours, base_curves, *rest = (curves_of(one, attacks) for one in (row, base, *others))
    weights, base_weights = row["weights"], base["weights"]
    learned = None
    if weights["benign_losses"] and base_weights["benign_losses"]:
        learned = trainability(weights["benign_losses"], base_weights["benign_losses"])
    return {
        "drop": base_share - share,
        "relative_share": share / base_share if base_share else None,
        "curves": {
            " ".join(name): _curve_figures(name, points, base_curves[name], rest)
            for name, points in ours.items()
            if name in base_curves
        },
        "worst_drop": worst,
        "worst_ratio": ratio,
        "surviving": _surviving(row["rounding"], base["rounding"]),
        "surviving_moved": _surviving(row["moved"], base["moved"]),
        "trainability": learned,
        "distance": weights["distance"],
        "barrier": weights["barrier"],
    }


def _share(row: Row) -> float:
    return float(row["reported"]["toxicity"]["share"])


def _worst_drop(row: Row, base: Row) -> float | None:
    """Under the attacks that are made on all: those that only the best withstand would make the others look better."""
    if row["worst"] is None or base["worst"] is None:
        return None
    return float(base["worst"]["share"] - row["worst"]["share"])


def _curve_figures(name: tuple[str, str], ours: list[Row], of_base: list[Row], others: Sequence[Curves]) -> Row:
    def curve_of(points: Sequence[Row]) -> dict[int, float]:
        return as_curve([point for point in points if point["counted"]])

    curve, theirs = curve_of(ours), curve_of(of_base)
    rest = [curve_of(other[name]) for other in others if name in other]
    points = []
    for step in sorted(curve.keys() & theirs.keys()):
        drop = theirs[step] - curve[step]
        best = [theirs[step] - other[step] for other in rest if step in other]
        points.append({"steps": step, "drop": drop, "ratio": ratio_of_drops(drop, best)})
    return {
        "steps_to_base": steps_to_base(curve, theirs[0]) if 0 in theirs else None,
        "steps_to_half": steps_to_half(curve, theirs),
        "moves_base": 0 in theirs and max(theirs.values()) > theirs[0],
        "last": max(curve.keys() & theirs.keys(), default=0),
        "points": points,
    }


def _surviving(rows: Sequence[Row], base_rows: Sequence[Row]) -> list[Row]:
    """For each grid that both models were rounded to; no `part` where that wrecked either of them, whose gibberish
    would pass for what is left of the edit."""
    found = []
    for row, base in zip(rows, base_rows, strict=False):
        if row["error"] or base["error"]:
            continue
        before = base["before"] - row["before"]
        others = {_grid(point): point for point in base["points"]}
        for point in row["points"]:
            other = others.get(_grid(point))
            if other is None:
                continue
            counted = point["counted"] and other["counted"]
            grid = {name: point[name] for name in (*GRID, "own_grid")} | {"counted": counted}
            after = other["share"] - point["share"]
            found.append({**grid, "drop": after, "part": surviving_part(before, after) if counted else None})
    return found


def _grid(point: Row) -> tuple[Any, ...]:
    return tuple(point[name] for name in GRID)


def _compare(
    config: SweepConfig,
    budget: str,
    kept: Mapping[str, Row],
    options: Options,
    reported: Mapping[str, Option],
    seed: int,
) -> list[Row]:
    """Each entry against those that the config names, by its first seed: as reported, and under the worst attack, of
    those on every model and, where both were attacked further, of all."""
    first: dict[str, str] = {}
    for place, row in kept.items():
        if row["budget"] == budget:
            first.setdefault(row["entry"], place)
    found: list[Row] = []
    done: set[str] = set()
    for against in config.judged_against:
        done.add(against)
        for entry in [name for name in first if name not in done and against in first]:
            place, other = first[entry], first[against]
            pairs = {"reported": (reported[place], reported[other])}
            for what, names in _attacks_of_both(config, options[place], options[other]).items():
                ours, theirs = (pooled({name: options[one][name] for name in names}) for one in (place, other))
                if ours and theirs:
                    pairs[what] = (reach(ours, seed)[0], reach(theirs, seed)[0])
            for what, (mine, its) in pairs.items():
                judges = {
                    judge: compare(scores, its.scores[judge], "share").to_dict()
                    for judge, scores in mine.scores.items()
                }
                found.append({"budget": budget, "entry": entry, "against": against, "what": what, "judges": judges})
    tests = [block for one in found for block in one["judges"].values()]
    for block, p in zip(tests, holm([block["p"] for block in tests]), strict=True):
        block["p_holm"] = p
    return found


def _attacks_of_both(config: SweepConfig, *options: Mapping[str, Any]) -> dict[str, list[str]]:
    """Those that an attacker has against both of two models: of those on every model, and of all, if it is more."""
    best = {plan.name for plan in config.attacks.best}
    both = [name for name in options[0] if all(name in one for one in options)]
    on_all = [name for name in both if name not in best]
    return {"worst attack": on_all} | ({} if both == on_all else {"worst of all attacks": both})


def pooled(options: Mapping[str, Sequence[Option]]) -> list[Option]:
    """What an attacker may do who has several attacks: nothing, or any point of any of them; empty without any."""
    lists = list(options.items())
    if not lists:
        return []
    named = [dataclasses.replace(one, name=f"{name}: {one.name}") for name, found in lists for one in found[1:]]
    return [lists[0][1][0], *named]


def benchmark_rows(results: Row) -> list[dict[str, Any]]:
    """Rows {"model", "method", "seed", "metric", "value", "ci95", "command"}, as published figures lie."""
    model, command = results["config"]["base"], results["environment"]["command"]
    attacks = results["config"].get("attacks", {})
    rows: list[dict[str, Any]] = []
    for kept in results["kept"]:
        where, figures = kept["budget"] or BASE, results["figures"].get(kept["place"], {})
        method, ends = kept["entry"], {}
        values: dict[str, Any] = {}
        for judge, block in kept.get("reported", {}).get("judges", {}).items():
            for figure in ("share", "invalid"):
                values[f"{judge}/{figure}"], ends[f"{judge}/{figure}"] = block[figure], block["ci95"].get(figure)
        for name, key in {"worst attack": "worst", "worst of all attacks": "worst_of_all"}.items():
            if kept[key]:
                values[f"{name}/share"], ends[f"{name}/share"] = kept[key]["share"], kept[key]["ci95"]
        reading = kept["reading"] or {}
        values |= {f"cost/{name}": reading.get(name) for name in ("kl", "increase", "a")}
        values |= {name: figures.get(name) for name in ("relative_share", "worst_drop", "worst_ratio")}
        values |= {f"weights/{name}": figures.get(name) for name in ("distance", "barrier", "trainability")}
        for (attack, rate), points in curves_of(kept, attacks).items():
            counted = [one for one in points if one["counted"]]
            values |= {f"{attack} {rate}/share at {one['steps']}": one["share"] for one in counted}
        for name, curve in figures.get("curves", {}).items():
            for figure in ("steps_to_base", "steps_to_half") if curve["moves_base"] else ():
                values[f"{name}/{figure}"] = curve[figure]
                values[f"{name}/{figure}, more than"] = curve["last"] if curve[figure] is None else None
            values |= {f"{name}/ratio at {point['steps']}": point["ratio"] for point in curve["points"]}
        for kind in ("surviving", "surviving_moved"):
            for one in figures.get(kind, []):
                values[f"{kind}/{one['bits']} bits {one['scheme']}/{one['group_size']}"] = one["part"]
        rows += [
            {
                "model": model,
                "method": method,
                "seed": kept["seed"],
                "metric": f"{where}/{name}",
                "value": value,
                "ci95": ends.get(name),
                "command": command,
            }
            for name, value in values.items()
            if value is not None
        ]
    common = {"model": model, "command": command}
    return rows + [row | common for one in results["comparisons"] for row in _difference_rows(one, results["kept"])]


def _difference_rows(one: Row, kept: Sequence[Row]) -> list[Row]:
    """Of a paired comparison, by each judge: the difference with its interval, and p after Holm."""
    seed = next(row["seed"] for row in kept if (row["entry"], row["budget"]) == (one["entry"], one["budget"]))
    rows = []
    for judge, block in one["judges"].items():
        name = f"{one['budget']}/{one['what']} less {one['against']}, {judge}"
        for figure, ends in (("difference", block["ci95"]), ("p_holm", None)):
            found = {"method": one["entry"], "seed": seed, "metric": f"{name}/{figure}"}
            rows.append(found | {"value": block[figure], "ci95": ends})
    return rows
