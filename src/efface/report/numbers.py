"""How is a number written on the page? What is missing is a dash, what is not finite says so.

Short: the page, its examples and its figures write numbers alike.
"""

import math
from collections.abc import Sequence

DASH = "–"


def number(value: object, spec: str) -> str:
    """By a format specification; `.1%` has a space before the sign."""
    if not isinstance(value, int | float):
        return DASH
    return format(value, spec).replace("%", " %") if math.isfinite(value) else str(value)


def interval(bounds: Sequence[float] | None, spec: str) -> str:
    """`low to high`; empty where there is none."""
    return f"{number(bounds[0], spec)} to {number(bounds[1], spec)}" if bounds else ""


def bracketed(value: object, bounds: Sequence[float] | None, spec: str) -> str:
    """`value [low to high]`."""
    ends = interval(bounds, spec)
    return number(value, spec) + (f" [{ends}]" if ends else "")


def change(fraction: float | None) -> str:
    """`+3.9 %`; empty where there is none."""
    return f"{100 * fraction:+.1f} %" if fraction is not None and math.isfinite(fraction) else ""


def percent(share: float) -> str:
    """`25.6 %`"""
    return number(share, ".1%")
