"""Can a setting have this value? One line for the user if not."""

import math
from typing import Any

from efface.errors import UserError


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise a `UserError` unless `value` is among `allowed`."""
    if value not in allowed:
        raise UserError(f"{name}={value!r} is unknown. Choose one of {', '.join(allowed)}.")


def not_negative(name: str, value: float) -> None:
    """Raise a `UserError` unless `value` is a finite number, 0 or more."""
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{name}={value}: it must be a finite number, 0 or more.")


def positive(name: str, value: float) -> None:
    """Raise a `UserError` unless `value` is a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{name}={value}: it must be a finite number above 0.")


def at_least_one(settings: Any, *names: str) -> None:
    """Raise a `UserError` unless each of these fields of `settings` is 1 or more, or None."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UserError(f"{name}={value}: it must be at least 1.")
