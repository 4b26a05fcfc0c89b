"""How do a YAML file and command-line flags become a method's configuration? Flags win; an unknown key is an error."""

import contextlib
import dataclasses
import json
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch

from efface.errors import RunError, UserError, described, one_line, out_of_memory
from efface.files.settings_file import read_settings_file
from efface.flags import FlagParser
from efface.training.config import PairConfig
from efface.training.editor import EditConfig

Settings = PairConfig | EditConfig

HINT = "`efface train METHOD --list-flags` prints every setting."
QUOTED = 100
"""Characters of a value in a message, at most."""
SET_UP_BY = ("transformers", "accelerate", "huggingface_hub")
"""The packages that settings are handed to."""


def parse_settings(config_class: type[Settings], config_file: str | None, flags: Sequence[str]) -> dict[str, Any]:
    """The settings that the file and the flags give, by field name; defaults are not repeated.

    Raises:
        UserError: for a file that cannot be read, an unknown key or flag, or a value of the wrong type.
    """
    parser = FlagParser(config_class, HINT)
    settings = {} if config_file is None else _read_yaml(config_class, config_file, parser)
    return settings | parser.given(flags)


def _read_yaml(config_class: type[Settings], name: str, parser: FlagParser) -> dict[str, Any]:
    settings = read_settings_file(name, "config file") or {}
    if not isinstance(settings, dict):
        raise UserError(f"config file {name!r} must hold `name: value` lines, not a {type(settings).__name__}.")
    known = {field.name for field in dataclasses.fields(config_class)}
    unknown = sorted(set(map(str, settings)) - known)
    if unknown:
        raise UserError(f"config file {name!r} has the unknown key {one_line(repr(unknown[0]), QUOTED)}. {HINT}")
    types = get_type_hints(config_class)
    for key, value in list(settings.items()):
        where = f"config file {name!r}: {key!r}"
        # YAML reads 1e-4 as text and knows nothing of the fields' types: plain values go the way of the flags.
        if isinstance(value, bool | int | float | str):
            try:
                settings |= parser.given([f"--{key}={value}"])
            except UserError as error:
                raise UserError(f"config file {name!r}: {error}") from error
        elif (type(value).__name__ if value is not None else "None") not in str(types[key]):
            raise UserError(f"{where} must be a plain value, but it is {one_line(reprlib.repr(value), QUOTED)}.")
    return settings


def _check_json(value: Any, name: str) -> None:
    """`results.json` records the settings at the end: what JSON cannot hold is found out now."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{name} cannot be recorded as JSON: {described(error)}. Use plain values.") from error


def build_config(config_class: type[Settings], settings: dict[str, Any], output_dir: Path) -> Any:
    """The configuration object, or a `UserError` where a value does not fit."""
    if "output_dir" in settings:
        raise UserError(f"output_dir={settings['output_dir']!r} has no use here: -o DIR says where the run goes.")
    given = {**settings, "output_dir": str(output_dir)}
    if settings.get("bf16") and "use_cpu" not in settings and not torch.accelerator.is_available():
        given["use_cpu"] = True  # which a CPU computes too; transformers wants that said
    with user_error_for_settings(Exception):  # whatever is raised while fields are set is about a field
        config = config_class(**given)
    for name, value in settings.items():
        _check_json(value, name)
    return config


@contextlib.contextmanager
def user_error_for_settings(*kinds: type[Exception]) -> Iterator[None]:
    """What transformers raises for settings that it does not like, as a `UserError`.

    Args:
        kinds: of exceptions that are about the settings wherever they come from. Others are if the code of a library
            that settings are handed to has raised them, such as a tracker's "requires wandb to be installed".
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError | RunError) or out_of_memory(error):
            raise
        if isinstance(error, kinds) or _raiser(error) in SET_UP_BY:
            said = one_line(error) or described(error)
            if isinstance(error, ImportError) or "to be installed" in said:
                said = said.removeprefix("No package metadata was found for ").rstrip(".")
                raise UserError(
                    f"a setting needs a package that is not here: {said}. Install it, or leave the setting out."
                ) from error
            raise UserError(f"the settings do not fit together: {said}") from error
        raise


def _raiser(error: Exception) -> str:
    """The package whose code raised it."""
    frame = error.__traceback__
    assert frame is not None
    while frame.tb_next is not None:
        frame = frame.tb_next
    return str(frame.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
