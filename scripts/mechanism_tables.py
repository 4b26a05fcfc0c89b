"""What do docs/mechanism.md's tables say? From what `benchmarks/mechanism.py` wrote.

The figures are those that `efface analyze` prints.
"""

import json
from pathlib import Path
from typing import Any

from sweep_tables import table

from efface.report.analysis_table import analysis_page

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def _results() -> dict[str, Any]:
    return json.loads((RESULTS / "mechanism.json").read_text(encoding="utf-8"))


def mechanism() -> str:
    """A row for each figure, a column for each method."""
    found: Any = analysis_page(_results()).blocks[1]
    return table(list(found.head), [list(row) for row in found.rows])


def mechanism_command() -> str:
    """By what it was made."""
    return f"`{_results()['environment']['command']}`\n"
