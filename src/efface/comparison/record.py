"""What has a sweep measured of a kept model before? Part by part, taken without the model, which may be gone by now.

    DIR/kept/PLACE/record.json    which arm was scaled how, its weights, and of each part what it was made by

A checkpoint is as large as the base and what was measured of it is not: a sweep goes on from its JSON alone, on
another machine too. The model is loaded, or trained again, when a part is missing. If its weights have become others,
nothing that was measured of it before is taken.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from efface.errors import UserError
from efface.files.digests import digest
from efface.files.jsonl import Row
from efface.files.results import read_json, write_json
from efface.files.shapes import Each, Maybe, check_shape
from efface.model.fingerprint import fingerprint_of

SHAPE = {"made_by": str, "weights": Maybe(str), "parts": Each({"how": str, "found": dict})}


class OtherWeights(Exception):
    """The model that was loaded is not the one that parts were measured of; these are forgotten now."""


class Record:
    """What is known of one kept model.

    Args:
        file: where it lies; one that is not whole, or was made by other things, is begun anew.
        made_by: what makes the model and says on what it is measured, as JSON.
        load: gives the model.
    """

    def __init__(self, file: Path, made_by: Any, load: Callable[[], Any]):
        self.file, self._load = file, load
        self.changed = False
        """Whether a part was made now."""
        self._model: Any = None
        self.found: Row = {"made_by": digest(made_by), "weights": None, "parts": {}}
        self.read_again()

    def read_again(self) -> None:
        """Take what lies on the disk: another process may have measured more meanwhile."""
        if self.file.exists():
            with contextlib.suppress(UserError):
                check_shape(found := read_json(self.file), SHAPE, str(self.file))
                if found["made_by"] == self.found["made_by"]:
                    self.found = found

    def model(self) -> Any:
        """Loaded once, until `release`. Raises OtherWeights, once, if parts were measured of others."""
        if self._model is None:
            self._model = self._load()
            weights, before = fingerprint_of(self._model), self.found["weights"]
            if before != weights:
                self.found |= {"weights": weights, "parts": {}}
                if before is not None:
                    raise OtherWeights
        return self._model

    def release(self) -> None:
        self._model = None

    def take(self, name: str, how: Any, make: Callable[[], Row], file: Path | None = None) -> Row:
        """A part: as it was found before by the same `how`, or made now. One that failed is made again.

        Args:
            how: what else it depends on, as JSON.
            file: what it leaves beside the record, and is nothing without.
        """
        how, part = digest(how), self.found["parts"].get(name)
        there = part is not None and part["how"] == how and not part["found"].get("error")
        if there and (file is None or file.exists()):
            return dict(part["found"])
        found, self.changed = make(), True
        self.found["parts"][name] = {"how": how, "found": found}
        write_json(self.file, self.found)
        return found
