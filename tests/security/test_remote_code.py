"""Does anything run that came with a checkpoint, lies in the working directory or is named in a file of results?

Of: model/checkpoint_files.py
"""

import ast
import io
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from checkpoints import edit, saved
from told import write_edit

from efface.errors import UserError
from efface.model import sources
from efface.model.load import load_model
from efface.report.dossier import write_report
from efface.scoring import load_known_scorer, load_scorer

SOURCE = Path(__file__).resolve().parents[2] / "src" / "efface"
LOADS = ("from_pretrained", "from_config")


@cache
def all_calls() -> list[tuple[str, ast.Call]]:
    """Every call in the package, and where it stands."""
    return [
        (f"{file.name}:{node.lineno}", node)
        for file in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Those of a function or method of that name."""
    named = ("attr", "id")
    return [(where, call) for where, call in all_calls() if name in [getattr(call.func, one, "") for one in named]]


def test_every_call_that_could_run_code_of_a_repository_forbids_it() -> None:
    found = [(where, call) for name in LOADS for where, call in calls(name)]
    assert len(found) >= 8
    for where, call in found:
        if ast.unparse(call.func) == "PeftModel.from_pretrained":  # takes a model that is loaded, and runs no code
            continue
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert given.get("trust_remote_code") == "False", where


def test_nothing_unpickles_or_evaluates() -> None:
    names = ("eval", "exec", "__import__", "unpickle", "Unpickler", "read_pickle", "full_load", "unsafe_load")
    assert not [where for name in names for where, call in calls(name) if call.args and not is_method(call)]
    for module in ("pickle", "joblib", "torch", "np", "dill", "yaml"):
        for where, call in calls("load") + calls("loads"):
            if ast.unparse(call.func).startswith(f"{module}."):
                assert ast.unparse(call.func) == "yaml.load" and "_Loader" in ast.unparse(call), where


def is_method(call: ast.Call) -> bool:
    """`model.eval()`, say."""
    return isinstance(call.func, ast.Attribute)


def test_pip_is_not_taken_from_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: none")

    monkeypatch.setattr(sources.subprocess, "run", run)
    with pytest.raises(UserError, match="could not be downloaded"):
        sources._download_wheel("package", "1", "0", tmp_path)
    assert asked[0][:4] == [sys.executable, "-P", "-m", "pip"] and "--no-input" in asked[0]
    for file in SOURCE.rglob("*.py"):
        assert '"-m", "pip"' not in file.read_text(encoding="utf-8").replace('"-P", "-m", "pip"', ""), file


@pytest.mark.parametrize("load", [load_model, lambda where: load_scorer(f"hf:{where}")], ids=["model", "scorer"])
@pytest.mark.parametrize("of_tokenizer", [False, True], ids=["model's", "tokenizer's"])
def test_code_of_a_checkpoint_does_not_run_even_if_somebody_says_yes(
    load: Any, of_tokenizer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "model")
    (path / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Own: pass\n")
    if of_tokenizer:
        edit(path / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]}, tokenizer_class="Own")
        edit(path / "config.json", architectures=["LlamaForSequenceClassification"])
    else:
        kinds = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
        edit(path / "config.json", model_type="own", auto_map=dict.fromkeys(kinds, "own.Own"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 99))
    with pytest.raises(UserError, match=r"it needs code of its own.*never run|lacks 1 of \d+ weights"):
        load(str(path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_compiled_code_that_a_configuration_names_is_not_fetched(key: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "model")
    edit(path / "config.json", **{key: "somebody/kernel"})
    with pytest.raises(UserError, match=f"'{key}' asks for compiled code from 'somebody/kernel', which is never"):
        load_model(path)


NAMES = [
    "own_scorer:run",
    "subprocess:call",
    "mean:alt-profanity-check,os:system",
    "llm:",
    "mean:",
    "alt-profanity-check:os",
    "x/y",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_scorer_that_a_file_names_is_one_of_ours(name: str) -> None:
    with pytest.raises(UserError, match="is none of efface's own, and is not loaded because a file names it"):
        load_known_scorer(name)


def test_a_scorer_of_the_hub_that_a_file_names_is_not_fetched(open_hub: None) -> None:
    with pytest.raises(UserError, match="the cache has nothing of it"):
        load_known_scorer("hf:somebody/classifier")


def test_a_report_imports_nothing_that_results_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_scorer.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nrun = len\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = write_edit(tmp_path / "edit")
    result = json.loads((folder / "results.json").read_text())
    for side in ("base", "edited"):
        result[side]["toxicity"]["scorer"] = "own_scorer:run"
    (folder / "results.json").write_text(json.dumps(result))
    write_report([folder], tmp_path / "report.html")
    assert (tmp_path / "report.html").exists() and not (tmp_path / "ran").exists()
