"""Is the public face whole, typed and cheap, and does a user import from it alone?"""

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import efface
from efface.methods import METHODS, load_method

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.md")]
EXAMPLES = [*(ROOT / "examples").glob("*.py"), *(ROOT / "examples").glob("*.ipynb")]

SCRIPT = """
import efface
from efface import *
from efface import REPOConfig, audit_models

model, tokenizer = load_model("name")
pairs = load_pairs([{"prompt": "a", "chosen": "b", "rejected": "c"}])
trainer = REPOTrainer(model, REPOConfig("out", max_steps=2), pairs, processing_class=tokenizer)
found = evaluate(model, PromptSet("rtp:challenging", limit=8), decoding=Decoding(samples=4), text=OrdinaryText("t"))
audit = audit_models({"edited": "out"}, output="audit", measurement={"base": "base"})
"""
TYPES = {
    "model": "PreTrainedModel",
    "tokenizer": "PreTrainedTokenizerBase",
    "pairs.rows": "list[dict[str, Any]]",
    "trainer": "REPOTrainer",
    "trainer.args": "REPOConfig",
    "trainer.args.w_erase": "float",
    "trainer.train().global_step": "int",
    "found.toxicity.share": "float",
    "found.toxicity.ci95": "dict[str, list[float]]",
    "found.perplexity": "Perplexity | None",
    "generate(model, tokenizer, ['a'], samples=2)": "list[list[str]]",
    "generate_ids(model, tokenizer, ['a'])[0][0].token_ids": "list[int]",
    "build_pairs(model, output='pairs.jsonl').keep_rate": "float",
    "load_method('repo')": "type[PairTrainer] | type[PairEditor]",
    "load_attack('relearn')": "(Target, Any) -> AttackResult",
    "Target.load('out', base='base').model": "PreTrainedModel",
    "audit['models'][0]['attacks'][0]['p_holm']": "float | None",
    "load_scorer('words:list.txt').name": "str",
    "score(NamedScorer('mine', lambda texts: [0.0 for text in texts]), ['a'])": "ndarray[tuple[Any, ...], dtype[Any]]",
    "LeaceEditor(model, train_dataset='shipped:train').model": "PreTrainedModel",
    "efface.__version__": "str",
}
"""What a type checker is to say of an expression; names without their modules."""
WRONG = {
    "efface.nosuch": "a name that is not public",
    "load_pairs(3)": "no pairs",
    "REPOConfig('out', w_eraze=1.0)": "a setting that there is not",
}


@pytest.mark.parametrize("name", efface.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    found = getattr(efface, name)
    assert inspect.getdoc(found) and name in dir(efface)


def test_what_is_typed_is_what_is_resolved() -> None:
    """A type checker sees the imports under TYPE_CHECKING, a program what `_EXPORTS` says."""
    tree = ast.parse(Path(efface.__file__).read_text(encoding="utf-8"))
    imports = [node for block in tree.body if isinstance(block, ast.If) for node in block.body]
    typed = {
        alias.asname: node.module
        for node in imports
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name  # or a checker takes it for private
    }
    assert typed == efface._EXPORTS and list(efface._EXPORTS) == efface.__all__


@pytest.mark.parametrize("name", [name for name in efface.__all__ if inspect.isfunction(getattr(efface, name))])
def test_a_public_function_has_types_and_says_what_its_arguments_are_and_what_it_raises(name: str) -> None:
    signature, said = inspect.signature(getattr(efface, name)), inspect.getdoc(getattr(efface, name)) or ""
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty, parameter.name
        assert re.search(rf"\b{parameter.name}\b", said), parameter.name
    assert "Raises:" in said


@pytest.mark.parametrize("method", METHODS)
def test_a_trainer_says_what_it_takes(method: str) -> None:
    """Not `*args`: editors show it, and a checker finds what is misspelt."""
    parameters = inspect.signature(load_method(method)).parameters
    assert list(parameters)[:3] == ["model", "args", "train_dataset"] and "processing_class" in parameters
    assert all(one.kind is not one.VAR_POSITIONAL for one in parameters.values())


def script(folder: Path) -> tuple[Path, list[str]]:
    """A user's script, and the expressions in it, one a line at its end."""
    expressions = [*TYPES, *WRONG]
    lines = [f"reveal_type({one})" for one in TYPES] + list(WRONG)
    file = folder / "script.py"
    file.write_text(SCRIPT + "\n".join(lines) + "\n", encoding="utf-8")
    return file, expressions


def check_what_is_said(told: dict[str, str], errors: set[str]) -> None:
    """Args:
    told: expression -> its type by a checker.
    errors: the expressions at which it found something wrong.
    """
    assert {one: re.sub(r"\bdef |\b(?:\w+\.)+(?=\w)", "", kind) for one, kind in told.items()} == TYPES
    assert errors == set(WRONG)


@pytest.mark.full
def test_mypy_sees_the_types(tmp_path: Path) -> None:
    file, expressions = script(tmp_path)
    first = SCRIPT.count("\n") + 1
    # With the settings of the project, so that what `make check` has found out of the libraries is not found again.
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--no-error-summary", str(file)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"MYPYPATH": "src"}, capture_output=True, text=True, timeout=900
    )
    of_script = re.findall(r"script\.py:(\d+): (\w+): (.*)", done.stdout)
    told = {
        expressions[int(line) - first]: match[1]
        for line, kind, text in of_script
        if (match := re.search(r'^Revealed type is "(.*)"$', text))
    }
    check_what_is_said(told, {expressions[int(line) - first] for line, kind, _ in of_script if kind == "error"})


def test_pyright_sees_the_types(tmp_path: Path) -> None:
    beside = Path(sys.executable).parent
    command = shutil.which("pyright") or shutil.which("basedpyright") or shutil.which("basedpyright", path=beside)
    if command is None:
        pytest.skip("pyright is not installed; mypy has been asked the same")
    file, expressions = script(tmp_path)
    settings = {"include": [file.name], "extraPaths": [str(ROOT / "src")], "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    asked = [command, "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    found = json.loads(subprocess.run(asked, capture_output=True, text=True, timeout=900).stdout)
    told, errors = {}, set()
    for one in found["generalDiagnostics"]:
        expression = expressions[one["range"]["start"]["line"] - SCRIPT.count("\n")]
        if one["severity"] == "information":
            told[expression] = re.sub(r'^.*" is "(.*)"$', r"\1", one["message"], flags=re.DOTALL)
        elif one["severity"] == "error":
            errors.add(expression)
    check_what_is_said(told, errors)


def test_every_method_is_public() -> None:
    for name in METHODS:
        trainer = load_method(name)
        assert getattr(efface, trainer.__name__) is trainer
        assert getattr(efface, trainer.config_class.__name__) is trainer.config_class


def public_modules() -> list[str]:
    """The extension points of docs/api.md: what a user may import from beside `efface` itself."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `(efface(?:\.\w+)+)` \|", text, re.MULTILINE)


def blocks(document: Path) -> Iterator[tuple[str, str]]:
    """(what it is, the code) of every piece of Python in a document, a script or a notebook."""
    text = document.read_text(encoding="utf-8")
    if document.suffix == ".py":
        yield document.name, text
    elif document.suffix == ".ipynb":
        for cell in json.loads(text)["cells"]:
            if cell["cell_type"] == "code":
                yield document.name, "".join(cell["source"])
    else:
        for title, code in re.findall(r"^```python\n(# .*\n)?(.*?)^```", text, re.MULTILINE | re.DOTALL):
            yield title.removeprefix("# ").strip() or document.name, code
        yield document.name, "\n".join(re.findall(r"^    ((?:from|import) efface.*)$", text, re.MULTILINE))


@pytest.mark.parametrize("document", [*DOCUMENTS, *EXAMPLES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_user_imports_from_the_face_and_from_extension_points_alone(document: Path) -> None:
    found = list(blocks(document))
    inside = {title for title, _ in found if title.startswith(("src/", "entry of"))}  # files of the package itself
    added = {title.removeprefix("src/").removesuffix(".py").replace("/", ".") for title in inside}
    for title, code in found:
        for node in ast.walk(ast.parse(code)) if title not in inside else ():
            if isinstance(node, ast.Import):
                assert not [each.name for each in node.names if each.name.startswith("efface.")], title
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "efface":
                names = {each.name for each in node.names}
                if node.module == "efface":
                    assert names <= set(efface.__all__), title
                elif node.module not in added:
                    assert node.module in public_modules(), f"{title}: {node.module} is not in docs/api.md"
                    assert not names & set(efface.__all__), f"{title}: {names} are in efface itself"


def test_the_page_of_the_api_names_everything() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    of_methods = {kind.__name__ for name in METHODS for kind in (load_method(name), load_method(name).config_class)}
    named = set(re.findall(r"`(\w+)`", text))
    assert not set(efface.__all__) - named - of_methods
    assert all(find_spec(module) for module in public_modules())


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
