"""Is the public face whole, typed and cheap?"""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import efface
from efface.methods import METHODS, load_method

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", efface.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    found = getattr(efface, name)
    assert inspect.getdoc(found) and name in dir(efface)


def test_what_is_typed_is_what_is_resolved() -> None:
    """A type checker sees the imports under TYPE_CHECKING, a program what `_EXPORTS` says."""
    tree = ast.parse(Path(efface.__file__).read_text(encoding="utf-8"))
    imports = [node for block in tree.body if isinstance(block, ast.If) for node in block.body]
    typed = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in imports
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == efface._EXPORTS and sorted(typed) == sorted(efface.__all__)


def test_every_method_is_public() -> None:
    for name in METHODS:
        trainer = load_method(name)
        assert getattr(efface, trainer.__name__) is trainer
        assert getattr(efface, trainer.config_class.__name__) is trainer.config_class


def test_all_that_the_documents_import_is_public() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for names in re.findall(r"^from efface import (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE):
            assert {name.strip() for name in names.split(",")} <= set(efface.__all__), document.name


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'efface' has no attribute 'nosuch'"):
        efface.nosuch  # noqa: B018


def test_importing_efface_imports_nothing_heavy() -> None:
    program = """
import sys
import efface
dir(efface), efface.__all__
heavy = {"torch", "transformers", "numpy", "sklearn", "datasets", "peft"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
