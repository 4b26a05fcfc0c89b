"""Where is the work until it is whole? In `<output>.part`: the settings, then a line for each prompt."""

import json
import os
from pathlib import Path
from typing import Any

from efface.errors import RunError, UserError
from efface.files.io import is_regular_file
from efface.files.jsonl import Row, read_jsonl
from efface.files.results import write_jsonl
from efface.files.shapes import check_shape


class PartFile:
    """The outcomes so far, in memory (`outcomes`) and on disk.

    Args:
        output: the file that is being made.
        settings: what the outcomes depend on; a part file of others is refused.
        batch: prompts that are worked on together: their draws belong together, so that part of a batch is begun anew.
        resume: continue what lies there, if anything does.
        shape: of an outcome, see `shapes`.

    Raises:
        UserError: if a part file lies there without `resume`, or with other settings, or it is none.
    """

    def __init__(self, output: Path, settings: Row, *, batch: int, resume: bool, shape: Any = dict):
        self.path = output.with_name(output.name + ".part")
        self.shape = shape
        self.outcomes: list[Row] = []
        if not os.path.lexists(self.path):
            write_jsonl(self.path, [{"settings": settings}])
        elif not is_regular_file(self.path):
            raise UserError(f"{self.path} is no regular file, so no work can be kept there. Remove it.")
        elif resume:
            self.outcomes = self._left(settings, batch)
        elif self.path.read_bytes().count(b"\n") > 1:  # more than the settings
            raise UserError(
                f"{self.path} is left from an interrupted run. Pass resume=True to continue it, or delete it."
            )
        else:
            write_jsonl(self.path, [{"settings": settings}])

    def _left(self, settings: Row, batch: int) -> list[Row]:
        try:
            with self.path.open("rb+") as file:  # a power cut can leave half a line
                file.truncate(file.read().rfind(b"\n") + 1)
        except OSError as error:
            raise UserError(f"{self.path} cannot be continued: {error.strerror or error}.") from error
        header, *outcomes = read_jsonl(self.path) or [{"settings": {}}]
        check_shape(header, {"settings": dict}, f"{self.path}, its first line")
        for number, outcome in enumerate(outcomes, 2):
            check_shape(outcome, self.shape, f"{self.path}:{number}")
        if differing := differing_keys(header["settings"], settings):
            raise UserError(
                f"{self.path} was begun with other settings ({', '.join(differing)}). Use the same ones, or delete it."
            )
        whole = len(outcomes) - len(outcomes) % batch
        if whole < len(outcomes):  # or half a batch
            write_jsonl(self.path, [header, *outcomes[:whole]])
        return outcomes[:whole]

    def append(self, outcomes: list[Row]) -> None:
        """A whole batch in one write, flushed to disk, so that an interruption loses at most the batch it was in.

        Raises:
            RunError: if it cannot be written; what was there before is left as it was.
        """
        whole = 0
        try:
            whole = self.path.stat().st_size
            with self.path.open("a", encoding="utf-8", errors="replace") as file:
                file.write("".join(json.dumps(outcome, ensure_ascii=False) + "\n" for outcome in outcomes))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if whole:  # else it is gone: another process has removed it
                os.truncate(self.path, whole)
            reason = error.strerror or error
            raise RunError(f"{self.path} was not written: {reason}. Make room and pass resume=True.") from error
        self.outcomes += outcomes

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def differing_keys(found: Row, settings: Row) -> list[str]:
    """What differs between settings as a file gives them back and others, in which tuples are lists there."""
    settings = json.loads(json.dumps(settings))
    return sorted(key for key in settings | found if settings.get(key) != found.get(key))
