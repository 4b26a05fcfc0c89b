"""Is a hostile file of settings, results or rows refused in one line, in seconds and without memory?

Of: files/settings_file.py
"""

import resource
import time
from pathlib import Path
from typing import Any

import pytest

from efface.errors import UserError
from efface.files.jsonl import read_jsonl
from efface.files.results import read_json
from efface.files.settings_file import LONGEST, read_settings_file

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n"
for before, after in zip("abcdefghi", "bcdefghij", strict=True):
    BOMB += f"{after}: &{after} [{','.join([f'*{before}'] * 9)}]\n"
YAML = {
    "bomb": (BOMB, r"an alias \(\*name\)"),
    "tag": ("max_steps: !!python/object/apply:os.mkdir ['ran']", "could not determine a constructor for the tag"),
    "name": ("max_steps: !!python/name:os.system", "could not determine a constructor"),
    "date": ("max_steps: 2001-99-99", "month must be in 1..12"),
    "no date": ("max_steps: !!timestamp x", "is not valid YAML"),
    "digits": ("max_steps: " + "9" * 5000, "a number of 5000 characters"),
    "base 60": ("max_steps: " + "1:" * 2000 + "1", "a number of 4001 characters"),
    "deep list": ("max_steps: " + "[" * 99_000, "RecursionError"),
    "deep mapping": ("max_steps: " + "{a: " * 24_000, "RecursionError"),
    "deeper": ("max_steps: " + "[" * 100_000, "which are no settings"),
    "twice": ("max_steps: 1\nmax_steps: 2", "'max_steps' is there twice"),
    "no key": ("[1, 2]: 3", "unhashable key"),
    "number": ("max_steps: !!int x", "invalid literal"),
    "truth": ("max_steps: !!bool maybe", "is not valid YAML"),
    "zero byte": ("a\0b: 1", "special characters are not allowed"),
    "long": ("x: " + "a" * LONGEST, "100003 characters, which are no settings"),
}
JSON = {
    "deep": ("[" * 90_000, "RecursionError|nested too deeply"),
    "deep object": ('{"a":' * 19_000, "RecursionError|nested too deeply"),
    "digits": ('{"base": ' + "9" * 5000 + "}", "4300 digits|thousands of digits|cannot be read"),
    "twice": ('{"a": {"base": 1, "base": 2}}', "'base' is there twice"),
    "cut": ('{"base": ', "valid JSON"),
}


def refused(read: Any, file: Path, match: str) -> None:
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=match):
        read(file)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # kilobytes, on Linux
    assert time.monotonic() - start < 10 and grown < 100_000


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_means_harm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, match = YAML[name]
    Path("x.yaml").write_text(content)
    refused(lambda file: read_settings_file(file, "config file"), Path("x.yaml"), match)
    assert [file.name for file in tmp_path.iterdir()] == ["x.yaml"]


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("kind", ["settings", "results", "rows"])
def test_json_that_means_harm(kind: str, name: str, tmp_path: Path) -> None:
    content, match = JSON[name]
    file = tmp_path / "x.json"
    file.write_text(content)
    read = {"settings": lambda one: read_settings_file(one, "sweep config"), "results": read_json, "rows": read_jsonl}
    refused(read[kind], file, match)


@pytest.mark.parametrize("name", ["bomb", "tag", "deep list", "twice", "digits"])
def test_commands_tell_it_in_one_line(name: str, fails: Any, tmp_path: Path) -> None:
    content, match = YAML[name]
    file = tmp_path / "x.yaml"
    file.write_text(content)
    for argv in (["sweep", file, "-o", tmp_path / "out"],
                 ["train", "sft", "model", "shipped:train", "-o", tmp_path / "out", "--config", file]):  # fmt: skip
        line = fails(2, *argv)
        assert f"{str(file)!r} is not valid YAML" in line and len(line) < 500
    assert not (tmp_path / "out").exists()


def test_ordinary_settings_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("# a comment\nmax_steps: 3\nlearning_rate: 1e-4\nlist: [1, 0x10]\nnone:\n")
    found = read_settings_file(tmp_path / "x.yaml", "config file")
    assert found == {"max_steps": 3, "learning_rate": "1e-4", "list": [1, 16], "none": None}
    (tmp_path / "x.json").write_text('{"max_steps": 3}')
    assert read_settings_file(tmp_path / "x.json", "config file") == {"max_steps": 3}
