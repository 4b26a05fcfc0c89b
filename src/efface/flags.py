"""How do command-line flags become the fields of a dataclass? A flag for each field; an unknown one is an error.

Either spelling is accepted, `--max-steps` and `--max_steps`: transformers' parser has both.
"""

import argparse
import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any, get_origin

from transformers import HfArgumentParser

from efface.errors import UserError


class FlagParser(HfArgumentParser):
    """Knows the fields of `settings_class` and returns only those that are given.

    Args:
        hint: a sentence that ends every error: where all flags are listed.
    """

    def __init__(self, settings_class: Any, hint: str):
        super().__init__(settings_class, add_help=False, argument_default=None)
        self.hint = hint
        for action in self._actions:
            action.default, action.required = argparse.SUPPRESS, False
            if get_origin(action.type) is tuple:  # a list with commas, which the settings themselves read
                action.type = str

    def error(self, message: str) -> Any:
        raise UserError(f"{message.rstrip('.')}. {self.hint}")

    def given(self, flags: Sequence[str]) -> dict[str, Any]:
        """Field -> value of the flags that are given.

        Raises:
            UserError: for an unknown flag or a value of the wrong type.
        """
        found, unknown = self.parse_known_args(list(flags))
        if unknown:
            raise UserError(f"unknown flag {unknown[0]!r}. {self.hint}")
        return vars(found)


def flags_help(settings_class: Any, width: int = 10_000) -> str:
    """The settings, their defaults and help texts: those of the class itself, those that it shares with others of
    efface, then those of transformers' Trainer.

    Args:
        width: of the terminal.
    """
    named: dict[str, list[str]] = {OWN: [], SHARED: [], THEIRS: []}
    for field in dataclasses.fields(settings_class):
        if "help" in field.metadata:
            named[_whose(settings_class, field.name)] += [f"{_flag(field)}{_default(field)}", *_wrapped(field, width)]
    return "\n".join(line for title, lines in named.items() if lines for line in (f"{title}:", *lines, ""))


OWN, SHARED, THEIRS = "its own settings", "settings that it shares with others", "settings of transformers' Trainer"


def _whose(settings_class: Any, name: str) -> str:
    owner = next(each for each in settings_class.__mro__ if name in vars(each).get("__annotations__", {}))
    if owner.__module__.partition(".")[0] == "transformers":
        return THEIRS
    return OWN if owner is settings_class else SHARED


def _wrapped(field: "dataclasses.Field[Any]", width: int) -> list[str]:
    text = " ".join(field.metadata["help"].replace("%%", "%").split())
    indent = " " * 4
    how: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, **how)


def _flag(field: "dataclasses.Field[Any]") -> str:
    return "--" + field.name.replace("_", "-")  # the one spelling of help; both are accepted


def _default(field: "dataclasses.Field[Any]") -> str:
    factory = field.default_factory
    value = field.default if factory is dataclasses.MISSING else factory()
    if value is dataclasses.MISSING:
        return ""
    value = getattr(value, "value", value)  # of an enumeration
    said = "none" if value is None else str(value).strip("'")  # a list shows as it was written, which is in quotes
    return f" (default: {said})"
