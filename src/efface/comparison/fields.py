"""How does a block of a config file become a dataclass? Known keys of the right kinds, or the key that is wrong."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from efface.errors import UserError
from efface.files.shapes import shown

Built = TypeVar("Built")


def build(kind: type[Built], found: Any, where: str) -> Built:
    """A dataclass from a mapping: known keys of the right kinds only, numbers also as YAML reads them (1e-5, a text).

    Raises:
        UserError: naming the key.
    """
    block, types = mapping_of(found, where), get_type_hints(kind)
    fields = {one.name: one for one in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in block:
        if name not in fields:
            raise UserError(f"{where} has the unknown key {name!r}. There are: {', '.join(fields)}.")
    for name, one in fields.items():
        needed = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if needed and name not in block:
            raise UserError(f"{where} needs {name!r}.")
    return kind(**{name: _converted(value, types[name], f"{where}.{name}") for name, value in block.items()})


def _converted(value: Any, kind: Any, where: str) -> Any:
    said = getattr(kind, "__name__", str(kind)) if isinstance(kind, type) else str(kind)
    if kind is float:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise UserError(f"{where} must be a number, but it is {shown(value)}.") from None
    if said.startswith("list[float"):
        return [_converted(one, float, where) for one in list_of(value, where)]
    if said == "bool" and not isinstance(value, bool):
        raise UserError(f"{where} must be true or false, but it is {shown(value)}.")
    simple = {"str": str, "int": int}.get(said.removesuffix(" | None"))
    if simple is not None and not (value is None and said.endswith("None")):
        if not isinstance(value, simple) or isinstance(value, bool):
            raise UserError(f"{where} must be {'a text' if simple is str else 'a whole number'}: {shown(value)}.")
    elif said.startswith("list"):
        items = list_of(value, where)
        inner = {"list[str]": str, "list[int]": int}.get(said)
        if inner is not None and not all(isinstance(one, inner) and not isinstance(one, bool) for one in items):
            raise UserError(f"{where} must hold {'texts' if inner is str else 'whole numbers'}: {shown(value)}.")
    elif said.startswith("dict"):
        return mapping_of(value, where)
    return value


def mapping_of(found: Any, where: str) -> dict[str, Any]:
    """A mapping of names to values; nothing is an empty one. Raises UserError for anything else."""
    if found is None:
        return {}
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise UserError(f"{where} must be a mapping of names to values, but it is {shown(found)}.")
    return dict(found)


def list_of(found: Any, where: str) -> list[Any]:
    """Raises UserError for what is no list."""
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise UserError(f"{where} must be a list, but it is {shown(found)}.")
    return list(found)
