"""What has efface survived? The counts of `benchmarks/faults.py`.

Short: one table.
"""

import json
from pathlib import Path

from sweep_tables import table

FILE = Path(__file__).parent.parent / "benchmarks" / "results" / "faults.json"


def faults() -> str:
    """Kills and bad inputs, and what became of them."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    kills, rows = found["kills"], []
    what = f"trainings by {len(kills['methods'])} methods, killed {kills['kills']} times and resumed"
    same = kills["trainings"] - len(kills["failures"])
    rows.append([what, f"{kills['trainings']:,}", f"{same:,} the same to the bit", str(len(kills["failures"]))])
    for name, how in {"inputs": "in process", "commands": "through the command"}.items():
        one = found[name]
        became = f"{one['refused']:,} refused in a line, {one['taken']:,} taken"
        rows.append([f"files changed at random, {how}", f"{one['tried']:,}", became, str(len(one["failures"]))])
    return table(["what", "tried", "what became of it", "anything else"], rows)
