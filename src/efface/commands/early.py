"""Which names can be nothing? They are refused before anything is imported that takes seconds.

What is checked here is checked again where it is used: whoever comes through may still be refused, of what a name does
not show.
"""

import argparse
import os
from collections.abc import Callable, Iterable
from typing import Any

from efface.data.rows import check_source
from efface.errors import UserError
from efface.evaluation.prompt_sets import check_prompts
from efface.files.io import is_regular_file
from efface.model.names import check_model


def check_named(options: argparse.Namespace) -> None:
    """Refuse what the flags that commands share name and what is not there."""
    models = [getattr(options, "model", None), *(getattr(options, name, None) for name in ("base", "reference"))]
    _each(check_model, models)
    _each(check_prompts, [getattr(options, "prompts", None)])
    texts = [getattr(options, name, None) for name in ("text", "f1_text", "prompts_from_text", "identity")]
    _each(lambda name: check_source(name, "texts"), [name for name in texts if name is not True])
    _each(check_source, [getattr(options, "rows", None), getattr(options, "pairs", None)])
    _each(check_source, [getattr(options, "eval_pairs", None)])
    check_scorers(getattr(options, "scorer", None))


def check_scorers(given: str | list[str] | None) -> None:
    """Raise a `UserError` if one of them is none."""
    from efface.scoring import check_scorer  # on use: it imports numpy, which --help does not need

    _each(check_scorer, [given] if isinstance(given, str) else given or [])


def check_file(name: str | os.PathLike[str], what: str) -> None:
    """Raise a `UserError` unless there is such a file."""
    if not is_regular_file(name):
        raise UserError(f"{what} {os.fspath(name)} cannot be read: No such file or directory. Pass an existing file.")


def _each(check: Callable[[Any], object], names: Iterable[str | None]) -> None:
    for name in names:
        if name:
            check(name)
