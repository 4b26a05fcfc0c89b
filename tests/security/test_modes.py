"""May one user read of a run, and of the cache, what another may read of them? As the umask says, everywhere alike.

Of: files/modes.py
"""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import saved
from tiny import tiny_model, tiny_tokenizer

from efface.cli import main
from efface.files.modes import share_, usual_mode
from efface.model.save import save_model


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): stat.S_IMODE(file.stat().st_mode) for file in folder.rglob("*")}


def test_all_of_a_run_and_of_the_cache_has_the_mode_that_the_umask_gives(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"Town {i}", "chosen": " is by the river", "rejected": " is silly"} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["train", "repo", str(saved(tmp_path / "model")), str(tmp_path / "pairs.jsonl"), "--use_cpu", "true"]
    assert main([*command, "-o", str(tmp_path / "run"), "--max_steps", "1", "--save_strategy", "steps"]) == 0
    found = {name: mode for folder in ("model", "run", "cache") for name, mode in modes(tmp_path / folder).items()}
    assert {"model.safetensors", "results.json", "checkpoint-1/discriminators.safetensors"} <= set(found)
    assert any(name.startswith("reference/") for name in found)
    for folder in ("model", "run", "cache"):
        for file in (tmp_path / folder).rglob("*"):
            right = (0o777 if file.is_dir() else 0o666) & ~umask
            assert stat.S_IMODE(file.stat().st_mode) == right, file


def test_a_mode_that_somebody_chose_stays(tmp_path: Path) -> None:
    path = saved(tmp_path / "model")
    (path / "model.safetensors").chmod(0o640)
    (path / "config.json").chmod(0o600)
    save_model(tiny_model("llama"), tiny_tokenizer(), path)
    assert {name: modes(path)[name] for name in ("model.safetensors", "config.json")} == {
        "model.safetensors": 0o640,
        "config.json": 0o600,
    }


def test_only_private_files_are_shared_and_links_are_not_followed(tmp_path: Path) -> None:
    for name, mode in (("private", 0o600), ("written", 0o444), ("outside", 0o600)):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(mode)
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "private").rename(folder / "private")
    (tmp_path / "written").rename(folder / "written")
    (folder / "link").symlink_to(tmp_path / "outside")
    share_(folder)
    assert modes(folder) == {"private": usual_mode(tmp_path), "written": 0o444, "link": 0o600}
    assert sorted(os.listdir(folder)) == ["link", "private", "written"]
