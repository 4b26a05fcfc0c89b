"""What do docs/mechanism.md's tables say? From what `benchmarks/mechanism.py` wrote.

The figures are those that `efface analyze` prints.
"""

import json
from pathlib import Path
from typing import Any

from sweep_tables import table

from efface.analysis.patching import STEPS
from efface.report.analysis_table import analysis_page

CURVES = {"sufficient": "base with the best", "necessary": "edited without the best"}
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def _results(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def mechanism(name: str = "mechanism") -> str:
    """A row for each figure, a column for each method."""
    found: Any = analysis_page(_results(name)).blocks[1]
    return table(list(found.head), [list(row) for row in found.rows])


def mechanism_command(name: str = "mechanism") -> str:
    """By what it was made."""
    return f"`{_results(name)['environment']['command']}`\n"


def patching() -> str:
    """The block that patches, of fewer methods."""
    return mechanism("patching")


def patching_command() -> str:
    return mechanism_command("patching")


def patching_curves() -> str:
    """How few modules are enough: a row for each curve and number of modules, a column for each method."""
    models = _results("patching")["models"]
    blocks = {model["name"]: model["blocks"]["patching"] for model in models}
    points = {
        (name, curve, point["k"]): point
        for name, block in blocks.items()
        for curve in CURVES
        for point in block[curve]
    }
    whole = {name: block["sufficient"][-1]["k"] for name, block in blocks.items()}
    ks = [k for k in STEPS if all(k < most for most in whole.values())]
    return table(
        ["modules", *blocks],
        [
            [f"{said} {k}", *(_point(points[name, curve, k]) for name in blocks)]
            for curve, said in CURVES.items()
            for k in ks
        ],
    )


def _point(point: dict[str, Any]) -> str:
    fall = "" if point["of_fall"] is None else f"{point['of_fall']:.2f}"
    return f"{fall}, {100 * point['parameters']:.1f} % of the weights"
