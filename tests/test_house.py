"""Does everything stand where a newcomer would look for it? Rooms and imports, sizes of files, names in documents."""

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from every_method import build
from tiny import tiny_model

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "efface"
ORDER = (
    "errors checks terminal registry flags resampling files data model generation scoring evaluation analysis "
    "training methods pairs attacks audit comparison report export jobs commands cli __main__"
).split()
"""A room imports only rooms before it."""
MOST_LOOSE, MOST_ROOMS, MOST_FLOORS = 14, 27, 13  # the last floor but three is `jobs`, which runs what stands below
LEAST_LINES, MOST_LINES = 40, 300
MOST_LOSS_LINES = 11
REASONS = {"short": "Short: ", "long": "Long: "}
"""How the line of a docstring begins that says why a file is no longer, or no shorter."""


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file; a package's face has the package's name."""
    found = {}
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(name: str) -> Iterator[str]:
    """What a module imports of efface: at its top, on use, or for types alone."""
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                for full in (f"{node.module}.{alias.name}", node.module):
                    if full in modules():
                        yield full
                        break


@cache
def graph() -> dict[str, set[str]]:
    return {name: set(imported(name)) - {name} for name in modules()}


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else name


@cache
def rooms() -> dict[str, set[str]]:
    """Room -> the rooms that it imports. The face of the whole names everything, on use, and is no room."""
    found: dict[str, set[str]] = {}
    for name, others in graph().items():
        if name != "efface":
            found.setdefault(room(name), set()).update({room(other) for other in others} - {room(name), "efface"})
    return found


def test_there_is_no_import_circle():
    """A face that names what is in its room, for types or on use, is part of the walk like any other file."""
    graph_of = {name: others for name, others in graph().items() if name != "efface"}
    ended: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in ended:
            for other in sorted(graph_of[name] - {"efface"}):
                walk(other, (*path, name))
            ended.add(name)

    for name in graph_of:
        walk(name, ())


def test_imports_go_one_way():
    assert set(rooms()) == set(ORDER), "a room that ORDER does not know, or the other way round"
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if "efface" not in (name, other) and ORDER.index(room(other)) > ORDER.index(room(name))
    ]
    assert not wrong, wrong


def test_there_are_few_rooms_and_few_floors():
    loose = [file.stem for file in SOURCE.glob("*.py") if not file.stem.startswith("__")]
    folders = [file.parent for file in SOURCE.rglob("__init__.py") if file.parent != SOURCE]
    assert len(loose) <= MOST_LOOSE, loose
    assert len(loose) + len(folders) <= MOST_ROOMS, (loose, folders)

    @cache
    def floor(name: str) -> int:
        return 1 + max(map(floor, rooms()[name]), default=0)

    assert max(map(floor, rooms())) <= MOST_FLOORS, {name: floor(name) for name in ORDER}


@pytest.mark.parametrize("name", [name for name, file in modules().items() if file.name != "__init__.py"])
def test_a_file_is_of_a_size_to_be_read(name: str):
    text = modules()[name].read_text(encoding="utf-8")
    lines = text.count("\n")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert docstring, "the docstring says which question the file answers"
    if not LEAST_LINES <= lines <= MOST_LINES:
        reason = REASONS["short" if lines < LEAST_LINES else "long"]
        assert re.search(rf"^{reason}", docstring, re.MULTILINE), (
            f"{name} has {lines} lines: merge or split it, or let a line of its docstring begin with {reason!r}"
        )


def test_the_loss_of_a_method_is_read_at_a_glance():
    trainers = [
        node
        for file in (SOURCE / "methods").glob("*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Trainer")
    ]
    losses = {
        trainer.name: [each for each in node.body if not isinstance(each, ast.Expr)]
        for trainer in trainers
        for node in trainer.body
        if isinstance(node, ast.FunctionDef) and node.name == "loss"
    }
    assert {"REPOTrainer", "DPOTrainer", "RMUTrainer"} <= set(losses)
    for name, code in losses.items():
        lines = (code[-1].end_lineno or 0) - code[0].lineno + 1
        assert lines <= MOST_LOSS_LINES, f"{name}: {lines} lines"


def test_every_file_has_a_test_of_its_name_or_is_named_by_one():
    """A test file stands where its source stands, or a line of its docstring says what else it is of: `Of: a.py`."""
    tests, of = ROOT / "tests", {}
    for file in tests.rglob("test_*.py"):
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        named = docstring.partition("\nOf: ")[2].partition("\n\n")[0]
        of |= {name.strip(): file for name in named.replace("\n", " ").split(",") if name.strip()}
    files = {file.relative_to(SOURCE) for file in modules().values() if file.name != "__init__.py"}
    mirrored = {file.as_posix() for file in files if (tests / file.parent / f"test_{file.name}").exists()}
    assert mirrored | set(of) == {file.as_posix() for file in files}
    assert not mirrored & set(of), "named elsewhere, though there is a test file of that name"


def documents() -> list[Path]:
    executed = ROOT / "docs" / "adding.md"  # names files that it adds: tests/test_adding.py
    return [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        *sorted(set((ROOT / "docs").glob("*.md")) - {executed}),
        *sorted((ROOT / "benchmarks").glob("*.py")),
        *sorted((ROOT / "scripts").glob("*.py")),
        *sorted((ROOT / "configs").glob("*.yaml")),
        *sorted(file for file in (ROOT / "examples").iterdir() if file.is_file()),
    ]


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_paths_and_names_in_documents_lead_somewhere(document: Path):
    text = document.read_text(encoding="utf-8")
    bases = (ROOT, SOURCE, SOURCE.parent, document.parent)
    ours = {"src", "efface", *(base.name for base in ROOT.iterdir() if base.is_dir()), *ORDER}
    for path in re.findall(r"(?<![\w/.-])((?:[\w-]+/)+[\w-]+\.(?:py|yaml))\b", text):
        if path.split("/")[0] in ours and not path.endswith("/foo.py"):
            assert any((base / path).exists() for base in bases), f"{document.name} names {path}, which does not exist"
    for dotted in sorted(set(re.findall(r"\befface(?:\.[A-Za-z_]\w*)+(?::\w+)?", text))):
        if ".foo" not in dotted and not re.search(r"\.(json|yaml|md|sh|html)$", dotted):
            assert resolves(dotted), f"{document.name} names {dotted}, which does not exist"


def resolves(dotted: str) -> bool:
    module, _, attribute = dotted.partition(":")
    names = [*module.split("."), *([attribute] if attribute else [])]
    for end in range(len(names), 0, -1):
        try:
            found = importlib.import_module(".".join(names[:end]))
        except ImportError:
            continue
        for name in names[end:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


def test_one_batch_goes_through_the_files_that_contributing_names(tmp_path: Path):
    trainer = build("repo", tiny_model("llama"), tmp_path, max_steps=1)
    pairs = trainer.train_dataset
    visited: dict[str, None] = {}  # in the order of the first visit

    def note(frame: Any, event: str, argument: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(SOURCE):
            visited.setdefault(file.relative_to(SOURCE).as_posix())

    sys.setprofile(note)
    try:
        trainer.compute_loss(trainer.model, trainer.data_collator([pairs[i] for i in range(2)]))
    finally:
        sys.setprofile(None)
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("<!-- one batch -->")[1].split("<!-- end of batch -->")[0]
    steps = re.findall(r"^\d+\. `([\w/]+\.py)`", section, re.MULTILINE)
    assert steps == [file for file in visited if file in steps]
    assert set(re.findall(r"`([\w/]+\.py)`", section)) == set(visited)
