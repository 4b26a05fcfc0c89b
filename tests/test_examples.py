"""Does every example run as its page says, with a tiny model in the place of the embedded one?"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer

from efface import load_model, load_pairs
from efface.files.results import read_json

Patch = pytest.MonkeyPatch
Captured = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
POSITIONS = 1024  # the shipped prompts are long in a tokenizer of 300 tokens
FILES = sorted(file for file in EXAMPLES.iterdir() if file.is_file() and file.name != "README.md")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("llama", max_position_embeddings=POSITIONS).save_pretrained(folder)
    tiny_tokenizer(model_max_length=POSITIONS).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = load_pairs("shipped:train").rows[:16]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def run(example: str, *arguments: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(sys, "argv", [example, *arguments])
    runpy.run_path(str(EXAMPLES / example), run_name="__main__")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_example_is_short_and_on_the_page(file: Path) -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert f"[{file.name}]({file.name})" in page and page.count(f"examples/{file.name}") == 1
    if file.suffix != ".ipynb":
        assert 20 <= len(file.read_text(encoding="utf-8").splitlines()) <= 80


def test_own_model(model: str, pairs: str, tmp_path: Path, monkeypatch: Patch, capsys: Captured) -> None:
    given = ["--model", model, "--pairs", pairs, "--limit", "4", "--steps", "2", "-o", str(tmp_path / "out")]
    run("own_model.py", *given, monkeypatch=monkeypatch)
    told = capsys.readouterr().out
    assert "16 pairs" in told and len(re.findall(r"^(?:base|edited) +toxic share 0\.\d{3} \[", told, re.M)) == 2
    load_model(tmp_path / "out")


def test_lora(model: str, pairs: str, tmp_path: Path, monkeypatch: Patch, capsys: Captured) -> None:
    given = ["--model", model, "--pairs", pairs, "--limit", "4", "--steps", "2", "--rank", "2"]
    run("lora.py", *given, "-o", str(tmp_path / "out"), monkeypatch=monkeypatch)
    trained, whole = map(int, re.findall(r"^trained: (\d+) of (\d+)", capsys.readouterr().out, re.MULTILINE)[0])
    assert 0 < trained < whole / 4 and (tmp_path / "out" / "adapter_config.json").is_file()


def test_own_judge(model: str, monkeypatch: Patch, capsys: Captured) -> None:
    run("own_judge.py", "--model", model, "--limit", "4", monkeypatch=monkeypatch)
    told = capsys.readouterr().out
    assert "shouting [0. 1.]" in told and "exclaims [0. 1.]" in told
    assert re.findall(r"^(\S+) +share \d", told, re.MULTILINE) == ["shouting", "exclaims", "alt-profanity-check"]


@pytest.mark.full
def test_several_gpus(model: str, pairs: str, tmp_path: Path) -> None:
    """Two processes on the CPU, by gloo."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    given = ["--model", model, "--pairs", pairs, "--steps", "2", "--batch", "4", "-o", str(tmp_path / "out")]
    done = subprocess.run(
        [*launch, str(EXAMPLES / "several_gpus.py"), *given], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 processes of 2 pairs each") == 1 and done.stdout.count("saved: ") == 1
    load_model(tmp_path / "out")


def audited(output: Path, *arguments: str, efface: str) -> subprocess.CompletedProcess[str]:
    flags = "--only prefill --limit 4 --max-text-tokens 64 --max-new-tokens 4 --no-controls"
    environment = os.environ | {"EFFACE": efface, "OUTPUT": str(output), "FLAGS": flags}
    command = [shutil.which("bash") or "bash", str(EXAMPLES / "audit_in_ci.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.full
def test_audit_in_ci(model: str, tmp_path: Path) -> None:
    passed = audited(tmp_path, model, "", "1.0", efface=f"{sys.executable} -m efface")
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert re.search(r"^black box: 0\.\d{3} \[.*\], limit 1.0: passed$", passed.stdout, re.MULTILINE)
    failed = audited(tmp_path, model, "", "-0.1", efface="true")  # the audit is there
    assert failed.returncode == 3 and failed.stdout.endswith("limit -0.1: FAILED\n")
    unknown = audited(tmp_path, model, "", "1.0", "nosuch", efface="true")
    assert unknown.returncode == 2 and "no attack of the access 'nosuch' was made" in unknown.stderr
    assert audited(tmp_path, model, efface="false").returncode == 1  # that of efface itself


def test_the_notebook(model: str, tmp_path: Path, monkeypatch: Patch) -> None:
    """By nbclient where it is installed, or else cell by cell here."""
    notebook = EXAMPLES / "quickstart.ipynb"
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"]], "outputs are not kept"
    for name, value in {"MODEL": model, "STEPS": "2", "PROMPTS": "4", "OUTPUT": str(tmp_path / "out")}.items():
        monkeypatch.setenv(f"EFFACE_{name}", value)
    if find_spec("nbclient") and find_spec("ipykernel"):
        import nbformat
        from nbclient import NotebookClient

        NotebookClient(nbformat.read(notebook, as_version=4), timeout=300, kernel_name="python3").execute()
    else:
        monkeypatch.setenv("MPLBACKEND", "agg")
        names: dict[str, object] = {}
        for cell in cells:
            exec(compile("".join(cell["source"]), notebook.name, "exec"), names)
    assert read_json(tmp_path / "out" / "config.json")["model_type"] == "llama"
