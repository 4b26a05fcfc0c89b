"""Has a value from outside (a file of results, a part file, an index) the form that is read out of it?

A shape is written like the value itself:

    str, bool, int, dict, list       of that type; True is no int
    float                            a finite number
    {"mean": float}                  an object with at least these keys
    Maybe(shape)                     the same or null; of a key, also a missing one
    Missing(shape)                   of a key: the same or missing, but not null
    Each(shape)                      an object of any keys, whose values are of that shape
    [shape]                          a list of such values
    (shape, shape)                   a list of exactly so many
"""

import math
import reprlib
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from efface.errors import UserError

Filled = TypeVar("Filled")


@dataclass(frozen=True)
class Maybe:
    """`shape`, null, or (of a key) nothing at all."""

    shape: Any


@dataclass(frozen=True)
class Missing:
    """Of a key: `shape`, or not there."""

    shape: Any


@dataclass(frozen=True)
class Each:
    """An object with values of `shape` under any keys."""

    shape: Any


INTERVAL = (float, float)
NAMES = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    dict: "an object",
    list: "a list",
}


def check_shape(value: Any, shape: Any, where: str) -> None:
    """Nothing, if `value` has that shape.

    Raises:
        UserError: saying `where` it was read, which place of it is wrong and what is needed there.
    """
    wrong = _wrong(value, shape, "")
    if wrong is not None:
        raise UserError(f"{where}: {wrong}. It was not written by this version of efface, or it has been changed.")


def fill(kind: type[Filled], block: dict[str, Any]) -> Filled:
    """A dataclass from a block that has its shape. What is no field is passed over; a field that is not there, as in
    files of older versions, has its default, or None."""
    found = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in block:
            found[field.name] = block[field.name]
        elif field.default is MISSING and field.default_factory is MISSING:
            found[field.name] = None
    return kind(**found)


def shown(value: Any) -> str:
    """`repr`, but never long or deep, whatever a file holds."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    try:
        return short.repr(value)
    except ValueError:  # a number of more digits than Python writes
        return f"a {type(value).__name__}"


class RepeatedName(ValueError):
    """A name stands twice in an object of JSON, whose reader would take the last value."""


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` of `json.loads`. Raises RepeatedName."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedName(f"{shown(next(name for name in names if names.count(name) > 1))} is there twice")
    return found


def finite(value: Any) -> bool:
    """Whether this is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _wrong(value: Any, shape: Any, place: str) -> str | None:
    """What is wrong, and at which place; None if nothing is."""
    if isinstance(shape, Maybe):
        return None if value is None else _wrong(value, shape.shape, place)
    if isinstance(shape, Missing):
        return _wrong(value, shape.shape, place)
    if isinstance(shape, type):
        if shape is float:
            fits = finite(value)
        else:
            fits = isinstance(value, shape) and (shape is not int or finite(value))  # True is no number either
        return None if fits else _needed(value, NAMES[shape], place)
    if isinstance(shape, dict | Each):
        if not isinstance(value, dict):
            return _needed(value, NAMES[dict], place)
        parts = shape if isinstance(shape, dict) else dict.fromkeys(value, shape.shape)
        for key, part in parts.items():
            if key not in value and not isinstance(part, Maybe | Missing):
                return f"{_name(place)} has no {key!r}"
        there = [(key, part) for key, part in parts.items() if key in value]
        inside = [(value[key], part, f"{place}.{key}" if place else str(key)) for key, part in there]
    else:
        several = isinstance(shape, tuple)
        what = f"a list of {len(shape)}" if several else NAMES[list]
        if not isinstance(value, list | tuple) or (several and len(value) != len(shape)):
            return _needed(value, what, place)
        parts_of = shape if several else shape * len(value)
        inside = [(one, part, f"{place}[{i}]") for i, (one, part) in enumerate(zip(value, parts_of, strict=True))]
    return next((wrong for found in inside if (wrong := _wrong(*found)) is not None), None)


def _needed(value: Any, what: str, place: str) -> str:
    return f"{_name(place)} must be {what}, but it is {shown(value)}"


def _name(place: str) -> str:
    return repr(place) if place else "it"
