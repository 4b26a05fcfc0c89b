"""Do the attacks that lie in a sweep's directory have the flags that its config gives them now?

A sweep takes what is finished, so that an attack of other flags under the same name would be two things at once: part
of the models attacked one way, part of them the other.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.attacks.lists import describe_settings
from efface.comparison.config import SweepConfig
from efface.comparison.measuring import KEPT, RESULT, relearn_settings, round_settings, rounding_name
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.files.part import differing_keys
from efface.files.results import read_json


def attack_settings(config: SweepConfig) -> dict[str, Any]:
    """The settings of all attacks and roundings of a sweep, by the names of their folders.

    Raises:
        UserError: for flags that the attack does not know.
    """
    plans, found = config.attacks, dict[str, Any]()
    for plan in [*plans.every, *plans.best]:
        found[plan.name] = relearn_settings(plan, config.documents)
    for number, flags in enumerate(plans.rounding):
        for moved in (False, True):
            found[rounding_name(number, moved=moved)] = round_settings(flags)
    return found


def check_attacks(wanted: Mapping[str, Any], folder: Path) -> None:
    """Refuse flags that differ from those of attacks that were made, or begun, under the same name.

    Args:
        wanted: `attack_settings`.
        folder: of the sweep.

    Raises:
        UserError: naming the attack, a file of it, and what differs.
    """
    for name, settings in wanted.items():
        for file in sorted((folder / KEPT).glob(f"**/{name}/{RESULT}*")):
            found = _settings_in(file)
            differing = [] if found is None else differing_keys(found, describe_settings(settings))
            if differing:
                raise UserError(
                    f"attacks: {name} had other flags when {str(file)!r} was made ({', '.join(differing)}). Give it "
                    f"those again, or another name; or delete the folders {name!r} in {str(folder / KEPT)!r}, and all "
                    "models are attacked again."
                )


def _settings_in(file: Path) -> Row | None:
    """Of an attack, finished or begun; None where the file does not say, which whoever makes the attack will meet."""
    try:
        if file.name == RESULT:
            found = read_json(file)["settings"]
        else:
            with file.open(encoding="utf-8") as lines:
                found = json.loads(lines.readline())["settings"]["settings"]
    except (UserError, OSError, ValueError, LookupError, TypeError):
        return None
    return found if isinstance(found, dict) else None
