"""How do the fields of a dataclass become flags of argparse, without an import that costs time? And one spelling.

`flags.py` does the same for settings that are only known once a method or an attack is named, by transformers' parser.
"""

import argparse
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

Field = dataclasses.Field[Any]


def flag_of(name: str) -> str:
    """The flag of a field, as help prints it."""
    return "--" + name.replace("_", "-")


def spell_with_dashes(word: str, options: Iterable[str], *, abbreviated: bool) -> str:
    """A flag that is written with underscores as one of `options` if it is one; other words are left as they are."""
    name, equals, value = word.partition("=")
    dashed = flag_of(name.removeprefix("--"))
    known = any(option == dashed or (abbreviated and option.startswith(dashed)) for option in options)
    return dashed + equals + value if name.startswith("--") and known else word


def described_fields(settings_class: Any) -> list[Field]:
    """The fields with a help text."""
    return [field for field in dataclasses.fields(settings_class) if "help" in field.metadata]


def add_field(group: Any, field: Field, text: str, defaults: Mapping[str, Any]) -> None:
    """A flag for one field.

    Args:
        text: its help.
        defaults: of each source of settings that has it, by name: the first without its name, others that differ.
    """
    kind = _kind_of(field)
    first, *others = defaults.items()
    values = [str(first[1]), *(f"{value} of {name}" for name, value in others if value != first[1])]
    if kind is not bool and first[1] not in (None, ()) and "(default" not in text:
        text = f"{text} (default: {'; '.join(values)})"
    how: dict[str, Any] = {"type": kind}
    if kind is bool:
        how = {"action": argparse.BooleanOptionalAction}
    elif kind is tuple:
        how = {"nargs": "+", "metavar": "FILE"}
    group.add_argument(flag_of(field.name), default=None, help=text.replace("%", "%%"), **how)


def _kind_of(field: Field) -> Any:
    """What a value of the field is, beside None: int, float, str, bool, or tuple (of texts)."""
    members = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
    (kind,) = (each for each in members if each is not NoneType)
    return get_origin(kind) or kind


def given_fields(options: argparse.Namespace, settings_class: Any, names: Sequence[str] = ()) -> dict[str, Any]:
    """Field -> value of the flags that were given; `names` are of fields whose flags were declared elsewhere."""
    names = [*(field.name for field in described_fields(settings_class)), *names]
    found = {name: getattr(options, name) for name in names}
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in found.items() if value is not None
    }
