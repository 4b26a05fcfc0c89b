"""How far is long work? A bar on a terminal, now and then a plain line in a file; nothing unless asked for.

A command states with `bars` whether anything is shown while it works, and whatever works inside follows: our own bars,
and those that transformers, datasets and the hub draw whether or not they are asked.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")
EVERY = 60.0
"""Seconds from one line to the next, where there is no terminal."""
HUB, DATASETS, LOGGING = "huggingface_hub.utils", "datasets", "transformers.utils.logging"
VARIABLES = {HUB: "HF_HUB_DISABLE_PROGRESS_BARS", DATASETS: "HF_DATASETS_DISABLE_PROGRESS_BARS"}
"""What a library reads when it is imported. Transformers asks the hub's, and has a switch of its own for later."""
_SHOWN: ContextVar[bool] = ContextVar("shown", default=True)


def track(
    items: Iterable[T],
    description: str,
    *,
    show: bool,
    total: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterable[T]:
    """Iterate over `items`; with `show`, standard error tells how far the work is and how long it takes."""
    if not (show and shown()):
        return items
    if draws():
        return tqdm(items, desc=description, total=total, dynamic_ncols=True, leave=False)
    return _lines(items, description, total, clock)


def _lines(items: Iterable[T], description: str, total: int | None, clock: Callable[[], float]) -> Iterator[T]:
    """A line a minute: short work leaves none."""
    total = len(items) if total is None and isinstance(items, Sized) else total
    start = said = clock()
    for number, item in enumerate(items):
        if (now := clock()) - said >= EVERY:
            said = now
            of = "" if total is None else f" of {total}"
            _write(f"{description}: {number}{of} after {said - start:.0f} s")
        yield item


def _write(line: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def shown() -> bool:
    """Whether the command shows how far its work is."""
    return _SHOWN.get()


def draws() -> bool:
    """Whether a bar can be drawn: not into a file, but on a terminal, or as a notebook's."""
    notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return notebook or (sys.stderr is not None and sys.stderr.isatty())


@contextlib.contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Inside, work shows how far it is, or keeps quiet; libraries draw bars only where that is a terminal."""
    token = _SHOWN.set(shown)
    try:
        if shown and draws():
            yield
        else:
            with _without_theirs():
                yield
    finally:
        _SHOWN.reset(token)


@contextlib.contextmanager
def _without_theirs() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for module in (HUB, DATASETS, LOGGING):
            if module in sys.modules:
                stack.callback(_switched_off(sys.modules[module]))
            elif module in VARIABLES and VARIABLES[module] not in os.environ:
                os.environ[VARIABLES[module]] = "1"
                stack.callback(os.environ.pop, VARIABLES[module], None)
        yield


def _switched_off(library: Any) -> Callable[[], object]:
    """Switch its bars off; returns what puts them back as they were."""
    if library.__name__ == LOGGING:
        shown, off, on = library.is_progress_bar_enabled(), library.disable_progress_bar, library.enable_progress_bar
    else:
        shown, off = not library.are_progress_bars_disabled(), library.disable_progress_bars
        on = library.enable_progress_bars
    if not shown:
        return lambda: None
    off()
    return on


def close_bars() -> None:
    """End the line of every bar that an error left open."""
    for bar in list(tqdm._instances):
        bar.close()
