"""What has an earlier run of an audit left? The minutes that were spent, and models that are not given now."""

import os
from pathlib import Path
from typing import NamedTuple

from efface.audit.battery import Trial, choose_trials
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.files.results import read_json
from efface.files.shapes import Each, Maybe, Missing, check_shape

ATTACKS_MADE = [{"attack": str, "seconds": Maybe(float), "judged": Maybe(dict)}]
AUDIT = {
    "budget": str,
    "models": [{"name": str, "model": Maybe(str), "attacks": ATTACKS_MADE}],
    "controls": Missing(Each({"attacks": Missing(ATTACKS_MADE)})),
}
"""The shape of an audit's results, as far as one that goes on reads them."""


class Earlier(NamedTuple):
    """A model in the table of an earlier run."""

    report: Row
    """As it stands there."""
    model: str | None
    """What `Target.load` takes for it; None if it was given as an object, or could not be measured."""
    trials: list[Trial]
    """The rows that were finished."""


def earlier_models(file: Path, without: set[str]) -> list[Earlier]:
    """Those in a table, but for some.

    Raises:
        UserError: if the file is there and no table of an audit.
    """
    found = []
    earlier = _read(file)
    for report in earlier.get("models", []):
        if report["name"] not in without:
            names = [row["attack"] for row in report["attacks"] if row.get("judged")]
            try:
                trials = [one for one in choose_trials(earlier["budget"], names) if one.name in names] if names else []
                found.append(Earlier(report, report.get("model"), trials))
            except UserError:  # an attack of somebody's, which is not at hand now
                found.append(Earlier(report, None, []))
    return found


def seconds_spent(file: Path) -> dict[tuple[str, str], float | None]:
    """What each attack on each model, or control ("controls/base"), has taken so far."""
    earlier = _read(file)
    places = {model["name"]: model["attacks"] for model in earlier.get("models", [])}
    places |= {f"controls/{name}": one.get("attacks", []) for name, one in earlier.get("controls", {}).items()}
    return {(place, row["attack"]): row.get("seconds") for place, rows in places.items() for row in rows}


def _read(file: Path) -> Row:
    if not os.path.lexists(file):
        return {}
    earlier = read_json(file)
    if "budget" not in earlier:
        raise UserError(f"{file} is of no audit: there is nothing to resume. Choose another output directory.")
    check_shape(earlier, AUDIT, os.fspath(file))
    return earlier
