"""What has an earlier, interrupted run of an audit left, and may it be taken? Only what was made by the very same.

What makes a figure is in `Target.described`: models, judges and tokenizer by hashes, texts, settings, versions.
"""

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

from efface.attacks.lists import describe_settings
from efface.attacks.measurement import Measurement
from efface.attacks.result import AttackResult
from efface.audit.battery import Trial
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.files.results import read_json, write_json
from efface.files.shapes import Each, Maybe, Missing, check_shape

log = logging.getLogger(__name__)
ATTACKS_MADE = [{"attack": str, "seconds": Maybe(float)}]
AUDIT = {
    "models": [{"name": str, "attacks": ATTACKS_MADE}],
    "controls": Missing(Each({"attacks": Missing(ATTACKS_MADE)})),
}
"""The shape of an audit's results, as far as one that goes on reads them."""


class Untouched(dict[str, Measurement]):
    """`Target.known`, a file for each measurement, so that an audit that goes on knows them."""

    def __init__(self, folder: Path):
        there = sorted(folder.glob("*.json"))
        super().__init__({path.stem: Measurement.from_dict(read_json(path), os.fspath(path)) for path in there})
        self.folder = folder

    def __setitem__(self, key: str, found: Measurement) -> None:
        write_json(self.folder / f"{key}.json", asdict(found))
        super().__setitem__(key, found)


def seconds_spent(file: Path) -> dict[tuple[str, str], float | None]:
    """What each attack on each model, or control ("controls/base"), has taken so far."""
    if not os.path.lexists(file):
        return {}
    earlier = read_json(file)
    if "budget" not in earlier:
        raise UserError(f"{file} is of no audit: there is nothing to resume. Choose another output directory.")
    check_shape(earlier, AUDIT, os.fspath(file))
    places = {model["name"]: model["attacks"] for model in earlier["models"]}
    places |= {f"controls/{name}": one.get("attacks", []) for name, one in earlier.get("controls", {}).items()}
    return {(place, row["attack"]): row.get("seconds") for place, rows in places.items() for row in rows}


def read_result(file: Path) -> AttackResult:
    """The result of an attack. Raises UserError if it is none."""
    return AttackResult.from_dict(read_json(file), os.fspath(file))


def finished_result(file: Path, trial: Trial, described: Row) -> AttackResult | None:
    """The result of an earlier run; one that is none is made again.

    Raises:
        UserError: for one that was made by other settings, models, judges, versions.
    """
    if not os.path.lexists(file):
        return None
    try:
        result = read_result(file)
    except UserError as error:
        log.warning("%s %s is made again.", error, trial.name)
        return None
    found = {**result.target, "settings": result.settings}
    wanted = json.loads(
        json.dumps({**described, "settings": describe_settings(trial.settings)})
    )  # tuples come back as lists
    differing = sorted(name for name in wanted if found.get(name) != wanted[name])
    if differing:
        raise UserError(
            f"{file} was made with other settings ({', '.join(differing)}). Use the same ones, another output "
            "directory, or overwrite=True."
        )
    return result
