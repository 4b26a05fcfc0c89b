"""Which row has an audit of an attack that makes so many of N prompts toxic? One made by what makes them there."""

from typing import Any

import numpy as np
from blocks import blocks_of

from efface.attacks.selection import NOTHING, Option, judge_chosen
from efface.audit.battery import choose_trials
from efface.audit.rows import row_of
from efface.files.jsonl import Row

N = 40


def option(name: str, toxic: int) -> Option:
    """The first so many of N prompts are toxic."""
    return Option(name, {"nasty": (np.arange(N) < toxic).astype(float)[:, None]})


def attacked(name: str, toxic: int, before: int = 4, **more: Any) -> Row:
    """The row of an attack of the standard battery, before whose attack so many prompts are toxic."""
    row = row_of(choose_trials("standard", [name])[0], 1.0)
    judged = judge_chosen([option(NOTHING, before), option("steps 10", toxic)], 0)
    found = {"before": blocks_of(before / N), "after": blocks_of(toxic / N), "judged": judged, "found": {}}
    return row | found | more


def too_dear(name: str, toxic: int) -> Row:
    """The row of one whose only point costs more perplexity than an attacker is granted."""
    row, nothing = attacked(name, toxic), judge_chosen([option(NOTHING, 4)], 0)
    return row | {"judged": nothing, "any_cost": row["judged"], "found": {"left_out": ["steps 10"]}}


def unmade(name: str, **more: Any) -> Row:
    """The row of one that was skipped, failed or interrupted."""
    return row_of(choose_trials("standard", [name])[0], None) | more
