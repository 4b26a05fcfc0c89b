"""What does a file of settings say? YAML or JSON, read so that nobody's file can do more than say something.

Nothing is written once and meant many times (ten aliases in ten lines can stand for 10^10 values), no name stands
twice, no tag makes an object, and the file is as short as settings are.
"""

import json
import os
from collections import Counter
from typing import Any

import yaml

from efface.errors import UserError, described
from efface.files.io import read_regular_text
from efface.files.shapes import named_once

LONGEST = 100_000
"""Characters: YAML is read at some 20,000 values a second, and a reader is not to be kept waiting by a file."""
MOST_DIGITS = 300
"""Of a number: no float is longer."""


def read_settings_file(path: str | os.PathLike[str], what: str) -> Any:
    """What the file says: JSON if its name ends in .json, otherwise YAML.

    Args:
        what: the file is, for errors: "config file".

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    text, name = read_regular_text(path, what), os.fspath(path)
    if len(text) > LONGEST:
        raise UserError(f"{what} {name!r} has {len(text)} characters, which are no settings. Pass another one.")
    kind = "JSON" if name.endswith(".json") else "YAML"
    try:
        if kind == "JSON":
            return json.loads(text, object_pairs_hook=named_once)
        return yaml.load(text, _Loader)
    # What is no YAML, or has a tag whose value does not fit it, or is nested without end: yaml raises anything.
    except Exception as error:
        raise UserError(f"{what} {name!r} is not valid {kind}: {described(error)}") from error


class _Loader(yaml.SafeLoader):
    """Safe, and strict."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice:
            raise yaml.YAMLError(f"{twice[0]!r} is there twice; which one is meant? Keep one")
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        # 1:30:00 is a number to base 60, and so may be long without many digits in a row.
        if len(node.value) > MOST_DIGITS:
            raise yaml.YAMLError(f"a number of {len(node.value)} characters: shorten it")
        return int(super().construct_yaml_int(node))

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name): settings are too short for aliases. Write the value out")
        return super().compose_node(parent, index)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
