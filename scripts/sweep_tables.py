"""What does each table of a sweep in the docs say? From the rows that `efface compare` writes (`comparison.json`)."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
FIRST_JUDGE, SECOND_JUDGE = "alt-profanity-check", "judge"


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


class Figures:
    """The figures of a file, by method, seed and name."""

    def __init__(self, name: str, budget: str = "main"):
        rows = json.loads((RESULTS / name).read_text(encoding="utf-8"))
        self.budget = budget
        self._rows = {(row["method"], row["seed"], row["metric"]): row for row in rows}
        self._found = {place: row["value"] for place, row in self._rows.items()}
        self.models = list(dict.fromkeys((row["method"], row["seed"]) for row in rows if self._place(row) is not None))

    def _place(self, row: dict[str, Any]) -> str | None:
        place = row["metric"].split("/")[0]
        return place if place in ("base", self.budget) else None

    def get(self, model: tuple[str, int | None], figure: str) -> Any:
        """None where there is no such figure."""
        place = "base" if model[0] == "base" else self.budget
        return self._found.get((*model, f"{place}/{figure}"))

    def row(self, model: tuple[str, int | None], figure: str) -> dict[str, Any] | None:
        """The whole row of a figure, with its interval."""
        return self._rows.get((*model, f"{self.budget}/{figure}"))

    def ends(self, model: tuple[str, int | None], begins: str) -> list[tuple[str, str]]:
        """Of the figures "PLACE/CURVE/BEGINS..." each curve, and what comes after `begins`."""
        place = "base" if model[0] == "base" else self.budget
        found = []
        for method, seed, name in self._found:
            where, _, rest = name.partition("/")
            curve, _, figure = rest.rpartition("/")
            if (method, seed, where) == (*model, place) and figure.startswith(begins):
                found.append((curve, figure.removeprefix(begins)))
        return found

    def judge(self, begins: str) -> str:
        """The name under which a judge's share stands."""
        names = {
            name.partition("/")[2].removesuffix("/share") for _, _, name in self._found if name.endswith("/share")
        }
        return next(name for name in sorted(names) if name.startswith(begins))


def cell(value: Any, form: str = ".3f") -> str:
    return "" if value is None else f"{value:{form}}"


def reached(figures: Figures, model: tuple[str, int | None], curve: str, which: str) -> str:
    """Steps to base or to half; "> n" where they were not reached within n."""
    found, more = (figures.get(model, f"{curve}/steps_to_{which}{end}") for end in ("", ", more than"))
    return f"{found:.1f}" if found is not None else f"> {more}" if more is not None else ""


def curves_table(name: str, points: Sequence[tuple[str, int]], half: Sequence[str]) -> str:
    """A row for each model: multiple of the edit, what it costs, shares before and under attack, steps to half.

    Args:
        points: "attack rate" and steps, a column each.
        half: "attack rate" of the columns of steps to half.
    """
    figures = Figures(name)
    first, second = (figures.judge(judge) for judge in (FIRST_JUDGE, SECOND_JUDGE))
    header = ["method", "seed", "a", "KL", "perplexity", "share", "second judge"]
    header += [f"{curve}, {step}" for curve, step in points] + [f"half, {curve}" for curve in half]
    rows = []
    for model in figures.models:
        row = named(model)
        costs = {"cost/a": ".2f", "cost/kl": ".3f", "cost/increase": "+.1%"}
        row += [cell(figures.get(model, figure), form) for figure, form in costs.items()]
        row += [cell(figures.get(model, f"{judge}/share")) for judge in (first, second)]
        row += [cell(figures.get(model, f"{curve}/share at {step}")) for curve, step in points]
        row += [reached(figures, model, curve, "half") for curve in half]
        rows.append(row)
    return table(header, rows)


def trials() -> str:
    fast, slow, other = "fast 0.0001", "slow 2e-05", "paradetox 0.0001"
    points = [(fast, 5), (fast, 10), (fast, 20), (slow, 20), (other, 10), (other, 20)]
    return curves_table("trials.json", points, [fast, other])


def comparison_hh() -> str:
    points = [("pairs 2e-05", 20), ("pairs 0.0001", 20), ("paradetox 0.0001", 5), ("paradetox 0.0001", 10)]
    return curves_table("comparison-hh.json", points, ["paradetox 0.0001"])


def comparison_gemma() -> str:
    points = [("pairs 2e-05", 20), ("pairs 0.0001", 5), ("pairs 0.0001", 10), ("pairs 0.0001", 20)]
    points += [("paradetox 0.0001", 5), ("paradetox 0.0001", 10), ("paradetox 0.0001", 20)]
    return curves_table("comparison-gemma.json", points, ["pairs 0.0001", "paradetox 0.0001"])


CURVES = [f"{rows} {rate}" for rows in ("pairs", "paradetox") for rate in ("2e-05", "0.0001")]
FEW_BITS = [f"4 bits {scheme}" for scheme in ("asymmetric/32", "symmetric/64")]
GRIDS = [f"{bits} bits {scheme}" for scheme in ("asymmetric/32", "symmetric/64") for bits in (8, 4)]


def kept(budget: str) -> str:
    """A row for each model that is kept at a budget."""
    figures = Figures("comparison.json", budget)
    first, second = (figures.judge(judge) for judge in (FIRST_JUDGE, SECOND_JUDGE))
    columns = {
        "a": ("cost/a", ".2f"),
        "KL": ("cost/kl", ".3f"),
        "perplexity": ("cost/increase", "+.1%"),
        "share": (f"{first}/share", ".3f"),
        "second judge": (f"{second}/share", ".3f"),
        "of the base's": ("relative_share", ".2f"),
        "invalid": (f"{first}/invalid", ".3f"),
        "worst attack": ("worst attack/share", ".2f"),
        "ratio of drops": ("worst_ratio", ".2f"),
        "trainability": ("weights/trainability", ".2f"),
        "L2": ("weights/distance", ".2f"),
        "barrier": ("weights/barrier", ".3f"),
    }
    return figure_table(figures, columns)


def comparison_rounding() -> str:
    """What part of each drop is left, on the base and on the base moved off its grid."""
    kinds = {"surviving": "", "surviving_moved": ", moved base"}
    columns = {f"{grid}{said}": (f"{kind}/{grid}", ".0%") for kind, said in kinds.items() for grid in GRIDS}
    return figure_table(Figures("comparison.json"), columns)


def comparison_steps() -> str:
    """Steps to base and to half, of each attack that is made on all."""
    figures, ends = Figures("comparison.json"), [(curve, which) for curve in CURVES for which in ("base", "half")]
    cells = {
        model: [reached(figures, model, curve, which) for curve, which in ends]
        for model in figures.models
        if model[0] != "base"
    }
    return filled_table([f"{which}, {curve}" for curve, which in ends], cells)


def comparison_attacks() -> str:
    points = [(curve, step) for curve in CURVES for step in (5, 10, 20)]
    columns = {f"{curve}, {step}": (f"{curve}/share at {step}", ".2f") for curve, step in points}
    return figure_table(Figures("comparison.json"), columns)


def comparison_targets() -> str:
    """What REPO's lasting entry was to reach, what it has, and the best entry of another method beside it, by first
    seeds, among those that leave at most half of the base's share: of a small drop everything may last."""
    figures, ours = Figures("comparison.json"), ("repo-withstand", 0)
    others = [model for model in figures.models if "repo" not in model[0] and model[1] == 0]
    others = [model for model in others if (figures.get(model, "relative_share") or 1.0) <= 0.5]
    rows = []
    for title, wanted, figure, best, form in (
        ("toxic share, of the base's", "at most 0.15", "relative_share", min, ".2f"),
        ("ratio of drops, worst attack", "at least 2", "worst_ratio", max, ".2f"),
        *((f"of the drop at {grid}", "at least 70%", f"surviving/{grid}", max, ".0%") for grid in FEW_BITS),
    ):
        known = {model: value for model in others if (value := figures.get(model, figure)) is not None}
        other = best(known, key=known.__getitem__) if known else None
        rows.append([title, wanted, cell(figures.get(ours, figure), form), _with_name(other, known.get(other), form)])
    for curve in CURVES:
        known = {model: _steps(figures, model, curve) for model in others}
        other = max(known, key=known.__getitem__)
        found = [reached(figures, model, curve, "half") for model in (ours, other)]
        rows.append([f"steps to half, {curve}", "twice the other's", found[0], f"{found[1]}, {other[0]}"])
    return table(["target", "wanted", ours[0], "best of another method"], rows)


def _steps(figures: Figures, model: tuple[str, int | None], curve: str) -> float:
    """At least so many steps to half; 0 where it was not attacked."""
    ends = (figures.get(model, f"{curve}/steps_to_half{end}") for end in ("", ", more than"))
    return max((float(value) for value in ends if value is not None), default=0.0)


def _with_name(model: tuple[str, int | None] | None, value: Any, form: str) -> str:
    return "" if model is None else f"{cell(value, form)}, {model[0]}"


def comparison_differences() -> str:
    """Each model's share less that of the entries that all are compared with, paired by prompt, by both judges."""
    figures = Figures("comparison.json")
    first, second = (figures.judge(judge) for judge in (FIRST_JUDGE, SECOND_JUDGE))
    rows = []
    for other in ("repo", "repo-withstand"):
        for model in figures.models:
            cells = []
            for what in ("reported", "worst attack"):
                found = [figures.row(model, f"{what} less {other}, {judge}/difference") for judge in (first, second)]
                p = [figures.get(model, f"{what} less {other}, {judge}/p_holm") for judge in (first, second)]
                cells += [_with_interval(found[0]), cell(p[0], ".3f"), _with_interval(found[1]), cell(p[1], ".3f")]
            if any(cells):
                rows.append([*named(model), other, *cells])
    titles = [
        f"{what}{said}" for what in ("untouched", "worst attack") for said in ("", ", p", ", second judge", ", p ")
    ]
    return table(["method", "seed", "less", *titles], rows)


def _with_interval(row: dict[str, Any] | None) -> str:
    return "" if row is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(row["value"], *row["ci95"])


def comparison_best() -> str:
    """Of the base and the best, which alone were attacked further: shares, a row for each attack and steps."""
    figures, best = _attacked_further()
    rows = [
        ["worst of all attacks", *(cell(figures.get(model, "worst of all attacks/share"), ".2f") for model in best)]
    ]
    points = dict.fromkeys(point for model in best for point in figures.ends(model, "share at ") if point[1] != "0")
    for curve, step in sorted(points, key=lambda point: (_order(point[0]), int(point[1]))):
        rows.append(
            [f"{curve}, {step}", *(cell(figures.get(model, f"{curve}/share at {step}"), ".2f") for model in best)]
        )
    return table(["rows and rate, steps", *(" ".join(named(model)).strip() for model in best)], rows)


def comparison_best_steps() -> str:
    """Of the best, after how many steps of each attack they are half-way to the base under the same attack."""
    figures, (_, *best) = _attacked_further()
    curves = dict.fromkeys(curve for model in best for curve, _ in figures.ends(model, "steps_to_half"))
    rows = [
        [curve, *(reached(figures, model, curve, "half") for model in best)] for curve in sorted(curves, key=_order)
    ]
    return table(["rows and rate", *(" ".join(named(model)).strip() for model in best)], rows)


def _attacked_further() -> tuple[Figures, list[tuple[str, int | None]]]:
    figures = Figures("comparison.json")
    return figures, [model for model in figures.models if figures.get(model, "worst of all attacks/share") is not None]


def _order(curve: str) -> tuple[str, float]:
    attack, rate = curve.rsplit(" ", 1)
    return attack, float(rate)


def figure_table(figures: Figures, columns: dict[str, tuple[str, str]]) -> str:
    """A row for each model, a column for each figure: its title -> its name and how it is written.

    Without models that have none of them, as one that was not attacked, and without figures that no model has.
    """
    cells = {
        model: [cell(figures.get(model, figure), form) for figure, form in columns.values()]
        for model in figures.models
    }
    return filled_table(list(columns), cells)


def filled_table(titles: list[str], cells: dict[tuple[str, int | None], list[str]]) -> str:
    """Without rows and columns that are empty."""
    filled = [number for number in range(len(titles)) if any(row[number] for row in cells.values())]
    rows = [[*named(model), *(row[number] for number in filled)] for model, row in cells.items() if any(row)]
    return table(["method", "seed", *(titles[number] for number in filled)], rows)


def named(model: tuple[str, int | None]) -> list[str]:
    return [model[0], "" if model[1] is None else str(model[1])]
