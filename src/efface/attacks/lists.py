"""How does a setting hold several values? As a tuple: given as one in Python, with commas between as text ("10,20").

It is read once, when the settings are made. What was written is kept beside the values, and that is what results and
part files record: 2e-5 stays 2e-5, so that a run goes on from what it wrote under the same flags.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, field
from pathlib import Path
from typing import Any, TypeVar

from efface.errors import UserError
from efface.files.digests import file_digest
from efface.files.io import is_regular_file

T = TypeVar("T")
Number = TypeVar("Number", int, float)
LATER = frozenset({"optimizer", "bf16"})
"""Settings that an attack has had only later: results name one only where it is not its default, so that a run goes on
from what it wrote before."""

FILES = "files"
"""What `describe_settings` calls the digests of the files that settings name."""


class Several(tuple[T, ...]):
    """The values of a setting. Shown as they were written."""

    text: str
    """As they were written."""
    kind: type
    """int or float: numbers above 0, ascending; str: different words, in their order."""

    def __new__(
        cls, values: Iterable[T], text: str = "", kind: type = str
    ) -> "Several[T]":  # of the values alone, as `asdict` and `deepcopy` make a tuple
        found = super().__new__(cls, values)
        found.text, found.kind = text or ",".join(map(str, found)), kind
        return found

    def __repr__(self) -> str:
        return repr(self.text)


def several(default: str, kind: type, help: str) -> Any:
    """A field of settings whose `__post_init__` calls `read_lists`; `kind` as that of `Several`."""
    return field(default=_read("", default, kind), metadata={"help": help})


def read_lists(settings: Any) -> None:
    """Make a tuple of what was given for each field that was made by `several`. The settings may be frozen.

    Raises:
        UserError: for a list of numbers that is none, or empty.
    """
    for one in dataclasses.fields(settings):
        given = getattr(settings, one.name)
        if isinstance(one.default, Several) and not isinstance(given, Several):
            found = _read(one.name, given, one.default.kind)
            object.__setattr__(settings, one.name, found)


def describe_settings(settings: Any) -> dict[str, Any]:
    """Settings as results record them, in the order of their flags: a class's own before those that it inherits. What
    a file on this machine holds that one names, by the class's `NAMES_FILES`, is one more, `files`: an edited file is
    another setting."""
    own = vars(type(settings)).get("__annotations__", {})
    names = sorted((one.name for one in dataclasses.fields(settings)), key=lambda name: name not in own)
    values = asdict(settings)
    silent = {
        one.name
        for one in dataclasses.fields(settings)
        if one.name in LATER and getattr(settings, one.name) == one.default
    }
    given = {name: getattr(settings, name) for name in names if name not in silent}
    said = {name: value.text if isinstance(value, Several) else values[name] for name, value in given.items()}
    files = _digests(settings)
    return said | ({FILES: files} if files else {})


def _digests(settings: Any) -> dict[str, str]:
    """Setting -> what stands for the file that it names. What the package ships, and the hub, have no file here."""
    found = {}
    for name, words in getattr(settings, "NAMES_FILES", {}).items():
        given = os.fspath(getattr(settings, name))
        if given not in words and not given.startswith("shipped:") and is_regular_file(Path(given)):
            with contextlib.suppress(OSError):  # whoever reads it says so
                found[name] = file_digest(Path(given))
    return found


def parse_numbers(name: str, given: str, kind: type[Number]) -> list[Number]:
    """The different numbers above 0 in `given`, as in "10,20", ascending; 0, where it all starts, may be named too.

    Args:
        name: of the setting, for the error.
        kind: int or float.

    Raises:
        UserError: if something else stands there, or no number is above 0.
    """
    try:
        found = {kind(part) for part in given.split(",")}
    except ValueError:
        found = {kind(-1)}
    what = "whole numbers" if kind is int else "numbers"
    example = "10,20" if kind is int else "0.5,1"
    if not all(0 <= value < math.inf for value in found):
        raise UserError(f"{name}={given!r}: {what} are needed, separated by commas, as in {example}.")
    above = sorted(found - {kind(0)})
    if not above:
        raise UserError(f"{name}={given!r} leaves nothing to do: name at least one above 0, as in {example}.")
    return above


def _read(name: str, given: Any, kind: type) -> Several[Any]:
    parts = given if isinstance(given, Iterable) else [given]
    text = given if isinstance(given, str) else ",".join(map(str, parts))
    values: Iterable[Any] = dict.fromkeys(part.strip() for part in text.split(","))
    return Several(parse_numbers(name, text, kind) if kind is not str else values, text, kind)
