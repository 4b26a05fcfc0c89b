"""Is what is installed whole: the version, `python -m efface`, the wheel and the source distribution?

Of: __main__.py
"""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
import yaml

import efface
from efface.cli import main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_version_is_one() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    assert efface.__version__ == PROJECT["version"] == cited


def test_the_command_line_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"efface {efface.__version__}\n"


def test_it_runs_as_a_module() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "efface", *arguments], capture_output=True, text=True)

    assert run("--version").stdout == f"efface {efface.__version__}\n"
    assert run("methods").stdout.startswith("repo")
    wrong = run("nosuch")
    assert wrong.returncode == 2 and wrong.stderr.startswith("efface: ") and wrong.stderr.count("\n") == 1


def test_no_home_is_invented() -> None:
    """Of what is linked from the metadata, README or CITATION.cff say the same."""
    known = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CITATION.cff"))
    assert all(url in known for url in PROJECT["urls"].values())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel and the source distribution, the former built from the latter."""
    pytest.importorskip("build", reason="it is in the extra `dev`")
    pytest.importorskip("hatchling", reason="no isolated build is made here: it would download")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def sources() -> set[str]:
    """All files of the package, as a wheel has them."""
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode or not tracked.stdout:
        pytest.skip("what belongs to the package is told by git, and this is no checkout")
    return {name.removeprefix("src/") for name in tracked.stdout.splitlines()}


@pytest.mark.full
def test_the_wheel_has_every_file_of_the_package_and_nothing_else(built: Path) -> None:
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))
        (entries,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert names == sources()
    assert {
        "efface/py.typed",
        "efface/report/template.html.j2",
        "efface/report/page.js",
        "efface/data/shipped/train.jsonl",
    } <= names
    assert "efface = efface.cli:entry" in entries
    told = HeaderParser().parsestr(metadata)
    assert told["Version"] == efface.__version__ and told["License-Expression"] == "Apache-2.0"
    assert {"eval", "track", "gpu", "all", "vllm", "docs", "inspect", "browser"} <= set(told.get_all("Provides-Extra"))


@pytest.mark.full
def test_the_source_distribution_has_what_a_contributor_needs(built: Path) -> None:
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = [
        "README.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "LICENSE",
        "Makefile",
        "constraints.txt",
        "scripts/make_docs.py",
        "docs/api.md",
    ]
    wanted += [file.relative_to(ROOT).as_posix() for file in (ROOT / "examples").iterdir() if file.is_file()]
    assert {f"src/{name}" for name in sources()} | {*wanted, "tests/test_package.py"} <= names
    assert not [name for name in names if re.search(r"^(runs|\.venv|\.efface|site|__pycache__)(/|$)", name)]


@pytest.mark.full
def test_the_wheel_runs_where_it_is_unpacked(built: Path, tmp_path: Path) -> None:
    """As installed, but that the dependencies are those of this environment."""
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        wheel.extractall(tmp_path)
    program = "import efface; print(efface.__file__); print(len(efface.load_pairs('shipped:train')))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[:1] == [str(tmp_path / "efface" / "__init__.py")], done.stderr
    assert int(done.stdout.splitlines()[1]) > 100
