"""What has an earlier run of an audit left? Its table, the minutes that were spent, and models not given now.

A table has models that were measured alike: where one that stays was measured on other prompts, or attacked at another
budget, the run is refused, since nobody could tell the columns apart.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from efface.audit.battery import Trial, choose_trials
from efface.audit.shape import INTERRUPTED, check_audit
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.files.results import read_json
from efface.files.shapes import Each, Maybe, Missing, check_shape

ATTACKS_MADE = [{"attack": str, "seconds": Maybe(float), "judged": Maybe(dict)}]
SPENT = {
    "budget": str,
    "models": [{"name": str, "model": Maybe(str), "attacks": ATTACKS_MADE}],
    "controls": Missing(Each({"attacks": Missing(ATTACKS_MADE)})),
}
"""The shape of an audit's results, as far as minutes are read from them."""
OWN = ("weights", "tokenizer")
"""Of what `Target.described` says, what models of one table need not share."""


class NotAlike(UserError):
    """A model that stays in the table was measured, or attacked, otherwise than those that are given now."""


class Earlier(NamedTuple):
    """A model in the table of an earlier run."""

    report: Row
    """As it stands there."""
    model: str | None
    """What `Target.load` takes for it; None if it was given as an object, or could not be measured."""
    trials: list[Trial]
    """The rows that were finished."""


def read_earlier(file: Path) -> Row:
    """The results of an earlier run, without models if there was none. One that it had only begun to measure is left
    out: nothing is known of it.

    Raises:
        UserError: if the file is there and no table of an audit.
    """
    earlier = _read(file)
    if "budget" in earlier:
        earlier = check_audit(earlier, os.fspath(file))
    return earlier | {"models": [one for one in earlier["models"] if one["error"] != INTERRUPTED]}


def staying_models(earlier: Row, given: set[str], budget: str) -> list[Earlier]:
    """The models of an earlier run that are not `given` now, and stay in the table.

    Args:
        earlier: `read_earlier`.
        given: names.
        budget: of the audit now.

    Raises:
        NotAlike: if attacks on one of them were made at another budget.
    """
    found = []
    for report in earlier["models"]:
        if report["name"] not in given:
            names = [row["attack"] for row in report["attacks"] if row.get("judged")]
            if names and earlier["budget"] != budget:
                raise NotAlike(_refused(report["name"], [f"budget {earlier['budget']}"]))
            try:
                trials = [one for one in choose_trials(budget, names) if one.name in names] if names else []
                found.append(Earlier(report, report.get("model"), trials))
            except UserError:  # an attack of somebody's, which is not at hand now
                found.append(Earlier(report, None, []))
    return found


def check_alike(reports: Sequence[Row], described: Row) -> None:
    """Refuse models that stay in the table and were measured otherwise.

    Args:
        reports: theirs.
        described: `Target.described` of a model now.

    Raises:
        NotAlike: naming one, and what differs.
    """
    for report in reports:
        if differing := measured_otherwise(report, described):
            raise NotAlike(_refused(report["name"], differing))


def measured_otherwise(report: Row, described: Row) -> list[str]:
    """What differs between how a model or control was measured and how one is now; nothing if it never was.

    Args:
        report: of the model or control.
        described: `Target.described` of a model now.
    """
    found, wanted = report.get("target"), json.loads(json.dumps(described))  # tuples come back as lists
    return [] if found is None else sorted(key for key in wanted if key not in OWN and found.get(key) != wanted[key])


def _refused(name: str, differing: Sequence[str]) -> str:
    return (
        f"{name}, which is in the table of this directory, was audited with other settings ({', '.join(differing)}): "
        "the models of a table must be measured alike. Use the same ones, another output directory, or overwrite=True."
    )


def seconds_spent(file: Path) -> dict[tuple[str, str], float | None]:
    """What each attack on each model, or control ("controls/base"), has taken so far."""
    earlier = _read(file)
    places = {model["name"]: model["attacks"] for model in earlier["models"]}
    places |= {f"controls/{name}": one.get("attacks", []) for name, one in earlier["controls"].items()}
    return {(place, row["attack"]): row.get("seconds") for place, rows in places.items() for row in rows}


def _read(file: Path) -> Row:
    if not os.path.lexists(file):
        return {"models": [], "controls": {}}
    earlier = read_json(file)
    if "budget" not in earlier:
        raise UserError(f"{file} is of no audit: there is nothing to resume. Choose another output directory.")
    check_shape(earlier, SPENT, os.fspath(file))
    return {"controls": {}} | earlier
