"""Can a setting have this value? One line for the user if not."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from efface.errors import UserError


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise a `UserError` unless `value` is among `allowed`."""
    if value not in allowed:
        raise UserError(f"{name}={value!r} is unknown. Choose one of {', '.join(allowed)}.")


def not_negative(name: str, value: float) -> None:
    """Raise a `UserError` unless `value` is a finite number, 0 or more."""
    if not (_is_number(value) and value >= 0):
        raise UserError(f"{name}={value}: it must be a finite number, 0 or more.")


def positive(name: str, value: float) -> None:
    """Raise a `UserError` unless `value` is a finite number above 0."""
    if not (_is_number(value) and value > 0):
        raise UserError(f"{name}={value}: it must be a finite number above 0.")


def at_least_one(settings: Any, *names: str) -> None:
    """Raise a `UserError` unless each of these fields of `settings` is 1 or more, or None."""
    at_least(settings, 1, *names)


def at_least(settings: Any, least: int, *names: str) -> None:
    """Raise a `UserError` unless each of these fields of `settings` is a finite number from `least` on, or None."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not (_is_number(value) and value >= least):
            number = "it must be a finite number, 0 or more" if least == 0 else f"it must be at least {least}"
            raise UserError(f"{name}={value}: {number}.")


def one_or_more(name: str, value: int | None) -> None:
    """Raise a `UserError` unless an argument that counts something, such as `limit`, is 1 or more, or None for all."""
    if value is not None and value < 1:
        raise UserError(f"{name}={value}: it must be at least 1.")


def all_finite(settings: Any) -> None:
    """Raise a `UserError` if a field of the dataclass `settings` is a float, or holds one, that is NaN or infinite.

    No setting means anything then, and JSON could not hold the record of the run. What a field may be beside that is
    said where it is defined.
    """
    for field in dataclasses.fields(settings):
        for value in _numbers(getattr(settings, field.name)):
            if not math.isfinite(value):
                raise UserError(f"{field.name}={value}: it must be a finite number.")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, OverflowError):  # text, or a whole number beyond every float
        return False
