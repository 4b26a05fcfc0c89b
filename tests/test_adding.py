"""Does docs/adding.md say how to add each kind of thing? It is followed in a copy of the package, tests and all."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n# (.*?)\n(.*?)```", re.DOTALL)
ENTRY = re.compile(r"entry of (\w+) in (\S+)")


def blocks() -> list[tuple[str, str]]:
    """(the first line without its mark, the rest) of each block of the document."""
    return BLOCK.findall((ROOT / "docs" / "adding.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with what the document adds: nothing there is written over."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "support", folder / "tests" / "support")
    for name in ("tests/conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    for title, code in blocks():
        entry = ENTRY.fullmatch(title)
        if entry is None:
            file = folder / title
            assert not file.exists(), f"{title} is there already"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(code, encoding="utf-8")
        else:
            name, path = entry.groups()
            text = (folder / path).read_text(encoding="utf-8")
            opening = re.compile(rf"^{name}\b[^\n]*= \{{\n", re.MULTILINE)
            (found,) = opening.finditer(text)  # the dict literal
            (folder / path).write_text(text[: found.end()] + code + text[found.end() :], encoding="utf-8")
    return folder


def test_each_kind_takes_one_file_one_entry_and_a_test():
    titles = [title for title, _ in blocks()]
    files = [title for title in titles if title.startswith("src/")]
    entries = [title for title in titles if ENTRY.fullmatch(title)]
    tests = [title for title in titles if title.startswith("tests/")]
    assert len(files) == len(entries) == len(tests) == 5 and len(titles) == 15


@pytest.mark.full
def test_its_tests_pass_and_the_command_line_knows_the_new_names(copy: Path):
    environment = os.environ | {"PYTHONPATH": str(copy / "src"), "COLUMNS": "200"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    found = run("-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "tests")
    assert found.split()[0] == "." * 7, found
    for kind, name in (("methods", "unlikelihood"), ("attacks", "ask_twice"), ("scorers", "shouting")):
        assert name in run("-m", "efface.cli", kind)
    assert "cost not measured" in run("-m", "efface.cli", "methods")
    assert "shouted" in run("-m", "efface.cli", "pairs", "--help")
