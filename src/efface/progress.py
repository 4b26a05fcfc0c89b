"""A progress bar with an estimate for long work; silent unless asked for, as a library should be.

Short: tqdm does the work, and it is told in one place how.
"""

from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def track(items: Iterable[T], description: str, *, show: bool, total: int | None = None) -> Iterable[T]:
    """Iterate over `items`; with `show`, a bar on standard error tells how far the work is and how long it takes."""
    return tqdm(items, desc=description, total=total, disable=not show, dynamic_ncols=True, leave=False)


def close_bars() -> None:
    """End the line of every bar that an error left open."""
    for bar in list(tqdm._instances):
        bar.close()
