"""How do command-line flags become the fields of a dataclass? A flag for each field; an unknown one is an error.

Either spelling is accepted, `--max-steps` and `--max_steps`: transformers' parser has both.
"""

import argparse
import dataclasses
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


def flags_help(settings_class: Any) -> str:
    """The settings and their help texts, those of the class itself before those that it inherits."""
    own = vars(settings_class).get("__annotations__", {})
    fields = [field for field in dataclasses.fields(settings_class) if "help" in field.metadata]
    fields.sort(key=lambda field: field.name not in own)
    return "\n".join(f"{_flag(field)}{_default(field)}\n    {field.metadata['help']}" for field in fields)


def _flag(field: "dataclasses.Field[Any]") -> str:
    return "--" + field.name.replace("_", "-")  # the one spelling of help; both are accepted


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f" (default {field.default_factory()!r})"
    return "" if field.default is dataclasses.MISSING else f" (default {field.default!r})"
