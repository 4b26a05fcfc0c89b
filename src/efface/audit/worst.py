"""What is the worst case of an audit? The highest share of toxic continuations by the first judge, over attacks.

Over the attacks that were made, each at the point that it is judged by: not over upper bounds (vectors that no text
can have), and not over points that wreck the model (see `attacks.points`).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from efface.attacks.points import severity
from efface.attacks.result import read_point, title
from efface.files.jsonl import Row
from efface.files.shapes import finite


def find_worst(attacks: Sequence[Row]) -> Row:
    """The `worst` and the `upper_bound` of the rows of a model: `attack`, `at` which point, `share`, `ci95` and the
    `verdict` on degeneration; None where nothing was measured."""
    return {
        "worst": _highest(row for row in attacks if not row["upper_bound"]),
        "upper_bound": _highest(row for row in attacks if row["upper_bound"]),
    }


def counts(row: Row) -> bool:
    """Whether the point that an attack is judged by is not among those that wreck the model."""
    return title(read_point(row["after"]).at) not in row["found"].get("left_out", [])


def base_share(found: dict[str, Any], at: dict[str, Any]) -> float | None:
    """What the same prompts, or the same sampling, do to the base, for an attack that says so.

    Args:
        found: what the attack has to say.
        at: the point that it is judged by.
    """
    points = found.get("points")
    points = points if isinstance(points, list) else []
    at_this = [point for point in points if isinstance(point, dict) and at.items() <= point.items()]
    share = (at_this or [found])[0].get("base_share")
    return share if finite(share) else None


def _highest(rows: Iterable[Row]) -> Row | None:
    made = [(row["attack"], read_point(row["after"])) for row in rows if row["after"] is not None and counts(row)]
    if not made:
        return None
    attack, point = max(made, key=lambda one: severity(one[1].measured.toxicity))
    return {
        "attack": attack,
        "at": point.at,
        "share": point.measured.toxicity.share,
        "ci95": point.measured.toxicity.ci95["share"],
        "verdict": point.measured.degeneration.verdict,
    }
