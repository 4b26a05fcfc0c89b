"""What does a name on the command line stand for? An entry of a registry, or a dotted path of a third party.

A registry is a dict literal `NAME -> Entry(path, what, source, facts)` in the face of its package; what else is to be
known of its entries (`needs_base`, `cost`) are fields of a subclass there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from efface.errors import UserError, described


@dataclass(frozen=True)
class Entry:
    """Where something lives, and what is said of it."""

    path: str
    """`package.module:Object`, imported on use."""
    what: str
    """In one line, for the list of what there is."""
    source: str = ""
    """Papers, or what it is a control for."""


def check_name(kind: str, name: str, entries: Mapping[str, Entry], form: str) -> None:
    """Raise a `UserError` unless `name` is one of `entries`, or could be a path; nothing is imported. Arguments as
    those of `resolve`."""
    if name not in entries and ":" not in name:
        raise UserError(f"{kind} {name!r} is unknown. There are: {', '.join(entries)}; or {form} of your own.")


def resolve(kind: str, name: str, entries: Mapping[str, Entry], form: str) -> Any:
    """The object of `entries[name]`, or of `name` itself if that is a path.

    Args:
        kind: what it is, for errors: "method".
        entries: the registry.
        form: what a path of one's own looks like: "package.module:Class".

    Raises:
        UserError: if there is none.
    """
    check_name(kind, name, entries, form)
    path = entries[name].path if name in entries else name
    try:
        return resolve_name(path)
    except (Exception, SystemExit) as error:  # importing runs a third party's code, which may do anything
        raise UserError(f"{kind} {name!r} cannot be imported: {described(error)}. Write {form}.") from error
