"""What has an earlier, interrupted run left of attacks on several models? What the very same would make is taken.

What makes a figure is in `Target.described`: models, judges and tokenizer by hashes, texts, settings, versions.
"""

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from efface.attacks.lists import FILES, describe_settings
from efface.attacks.measurement import Measurement
from efface.attacks.result import AttackResult
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.files.results import read_json, write_json

log = logging.getLogger(__name__)


class MadeOtherwise(UserError):
    """A result was made by other settings, models, judges or versions; `differing` names them."""

    def __init__(self, file: Path, differing: list[str]):
        super().__init__(
            f"{file} was made with other settings ({', '.join(differing)}). Use the same ones, another output "
            "directory, or overwrite=True."
        )
        self.differing = differing


class Untouched(dict[str, Measurement]):
    """`Target.known`, a file for each measurement, so that a run that goes on knows them; of those that another
    process has made meanwhile, what is asked for."""

    def __init__(self, folder: Path):
        super().__init__({path.stem: _measurement(path) for path in sorted(folder.glob("*.json"))})
        self.folder = folder

    def __contains__(self, key: object) -> bool:
        file = self.folder / f"{key}.json"
        if not super().__contains__(key) and file.exists():
            super().__setitem__(str(key), _measurement(file))
        return super().__contains__(key)

    def __setitem__(self, key: str, found: Measurement) -> None:
        write_json(self.folder / f"{key}.json", asdict(found))
        super().__setitem__(key, found)


def _measurement(file: Path) -> Measurement:
    return Measurement.from_dict(read_json(file), os.fspath(file))


def read_result(file: Path) -> AttackResult:
    """The result of an attack. Raises UserError if it is none."""
    return AttackResult.from_dict(read_json(file), os.fspath(file))


def finished_result(file: Path, name: str, settings: Any, described: Row) -> AttackResult | None:
    """The result of an earlier run; one that is none is made again.

    Raises:
        MadeOtherwise: for one that was made by other settings, models, judges, versions, or by what a file that its
            settings name held before.
    """
    if not os.path.lexists(file):
        return None
    try:
        result = read_result(file)
    except UserError as error:
        log.warning("%s %s is made again.", error, name)
        return None
    found = {**result.target, **_apart(result.settings)}
    wanted = json.loads(json.dumps({**described, **_apart(describe_settings(settings))}))  # tuples come back as lists
    differing = sorted(name for name in wanted if found.get(name) != wanted[name])
    if differing:
        raise MadeOtherwise(file, differing)
    return result


def _apart(settings: Row) -> Row:
    """Settings, and what the files held that they name: whoever is told that one differs knows which."""
    said = {name: value for name, value in settings.items() if name != FILES}
    return {"settings": said, FILES: settings.get(FILES)}
