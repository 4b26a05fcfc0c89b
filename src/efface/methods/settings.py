"""How do a YAML file and command-line flags become a method's configuration? Flags win; an unknown key is an error."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from efface.errors import UserError
from efface.flags import FlagParser
from efface.methods.config import PairConfig
from efface.methods.edit import EditConfig

Settings = PairConfig | EditConfig


HINT = "`efface train METHOD --list-flags` prints every setting."


def parse_settings(config_class: type[Settings], config_file: str | None, flags: Sequence[str]) -> dict[str, Any]:
    """The settings that the file and the flags give, by field name; defaults are not repeated.

    Raises:
        UserError: for a file that cannot be read, an unknown key or flag, or a value of the wrong type.
    """
    parser = FlagParser(config_class, HINT)
    settings = {} if config_file is None else _read_yaml(config_class, config_file, parser)
    return settings | parser.given(flags)


def _read_yaml(config_class: type[Settings], name: str, parser: FlagParser) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(Path(name).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"config file {name!r} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config file {name!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise UserError(f"config file {name!r} must hold `name: value` lines, not a {type(settings).__name__}.")
    known = {field.name for field in dataclasses.fields(config_class)}
    unknown = sorted(set(map(str, settings)) - known)
    if unknown:
        raise UserError(f"config file {name!r} has the unknown key {unknown[0]!r}. {HINT}")
    types = get_type_hints(config_class)
    for key, value in list(settings.items()):
        # YAML reads 1e-4 as text and knows nothing of the fields' types: plain values go the way of the flags.
        if isinstance(value, bool | int | float | str):
            try:
                settings |= parser.given([f"--{key}={value}"])
            except UserError as error:
                raise UserError(f"config file {name!r}: {error}") from error
        elif (type(value).__name__ if value is not None else "None") not in str(types[key]):
            raise UserError(f"config file {name!r}: {key!r} must be a plain value, but it is {value!r}.")
    return settings


def build_config(config_class: type[Settings], settings: dict[str, Any], output_dir: Path) -> Any:
    """The configuration object, or a `UserError` where a value does not fit."""
    with user_error_for_settings(TypeError, ValueError):
        return config_class(**{**settings, "output_dir": str(output_dir)})


@contextlib.contextmanager
def user_error_for_settings(*kinds: type[Exception]) -> Iterator[None]:
    """What transformers raises for settings that it does not like, as a `UserError`."""
    try:
        yield
    except kinds as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the settings do not fit together: {' '.join(str(error).split())}") from error
