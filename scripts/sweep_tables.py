"""What does each table of a sweep in the docs say? From the rows that `efface compare` writes (`comparison.json`)."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from efface.files.results import read_json

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
FIRST_JUDGE, SECOND_JUDGE = "alt-profanity-check", "judge"


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


class Figures:
    """The figures of a file, by method, seed and name."""

    def __init__(self, name: str, budget: str = "main"):
        rows = read_json(RESULTS / name)
        self.budget = budget
        self._found = {(row["method"], row["seed"], row["metric"]): row["value"] for row in rows}
        self.models = list(dict.fromkeys((row["method"], row["seed"]) for row in rows if self._place(row) is not None))

    def _place(self, row: dict[str, Any]) -> str | None:
        place = row["metric"].split("/")[0]
        return place if place in ("base", self.budget) else None

    def get(self, model: tuple[str, int | None], figure: str) -> Any:
        """None where there is no such figure."""
        place = "base" if model[0] == "base" else self.budget
        return self._found.get((*model, f"{place}/{figure}"))

    def judge(self, begins: str) -> str:
        """The name under which a judge's share stands."""
        names = {name.split("/")[1] for _, _, name in self._found if name.endswith("/share")}
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
        row = [model[0], "" if model[1] is None else str(model[1])]
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
