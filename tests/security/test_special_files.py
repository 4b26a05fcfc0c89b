"""Is what is no file of a checkpoint's own neither read nor replaced? Pipes, devices, folders, other folders' files.

Of: model/checkpoint_files.py
"""

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from checkpoints import edit, saved
from safetensors.torch import load_file

from efface.errors import UserError
from efface.files.manifest import check_manifest, write_manifest
from efface.model.load import load_model

NAMES = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "adapter_config.json",
    "interventions.safetensors",
    "chat_template.jinja",
]


def refused(path: Path) -> str:
    """What is said of a model; a failure, instead of waiting for ever, if its reader waits for a pipe."""
    said: list[str] = []

    def load() -> None:
        try:
            load_model(path)
        except UserError as error:
            said.append(str(error))

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive() and said, path
    return said[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "copy"
    path.mkdir()
    for file in model.iterdir():
        os.link(file, path / file.name)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_in_a_checkpoint_is_not_waited_for(name: str, copy: Path) -> None:
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    assert f"holds '{name}', which is no file but a pipe or a device" in refused(copy)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "adapter_config.json"])
def test_a_link_to_a_device_is_not_read(name: str, copy: Path) -> None:
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to("/dev/zero")
    assert f"holds '{name}', which is no file" in refused(copy)


def test_a_link_to_a_file_is_read(copy: Path, model: Path) -> None:
    """The cache of the hub holds nothing else."""
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to(model / "model.safetensors")
    load_model(copy)


@pytest.mark.parametrize("place", ["../model/model.safetensors", "/etc/passwd", "", ".", "..", "a\0b", 5, None])
def test_a_shard_index_names_files_beside_it_alone(place: Any, copy: Path) -> None:
    names = dict.fromkeys(load_file(copy / "model.safetensors"), place)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert "has weights elsewhere" in refused(copy)


def test_adapters_that_name_themselves_or_nothing_that_is_a_model(tmp_path: Path) -> None:
    adapter = tmp_path / "a"
    adapter.mkdir()
    for base, message in (
        (str(adapter), "is its own base model"),
        ("/etc", "has no config.json"),
        ("../../../etc/passwd", "is not a checkpoint directory"),
        ("", "names no base model"),
        ({"a": 1}, "names no base model"),
    ):
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        assert message in refused(adapter)


@pytest.mark.parametrize("name", ["../other", "/etc/passwd", "a/../../b"])
def test_a_manifest_names_nothing_outside(name: str, copy: Path) -> None:
    write_manifest(copy)
    listed = json.loads((copy / "manifest.json").read_text())
    edit(copy / "manifest.json", files=listed["files"] | {name: {"sha256": "0", "bytes": 0}})
    with pytest.raises(UserError, match="names a file outside of the directory"):
        check_manifest(copy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_labels": 2**33}, "has 8589934592 labels"),
        ({"id2label": {str(i): "x" for i in range(100_001)}}, "has 100001 labels"),
        ({"vocab_size": 2**70}, "'vocab_size' is too large to be meant"),
        ({"num_hidden_layers": 2**31}, "layers by its config.json"),
    ],
)
def test_a_configuration_that_asks_for_the_impossible(fields: dict[str, Any], message: str, copy: Path) -> None:
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(content | fields))
    assert message in refused(copy)


@pytest.mark.parametrize("command", ["evaluate", "attack merge", "pairs"])
def test_an_output_that_is_no_file_stays_what_it_is(
    command: str, fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for place, kind in (("/dev/null", "a device"), (tmp_path / "pipe", "a pipe"), (tmp_path / "link", "a pipe")):
        assert f"cannot be a file: {kind} has its name" in fails(2, *command.split(), "model", "-o", place)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_pipes_as_inputs_of_commands_are_not_waited_for(fails: Any, copy: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    out = ["-o", tmp_path / "out"]
    for argv in (
        ["train", "sft", copy, pipe, *out],
        ["train", "sft", copy, "shipped:train", "--config", pipe, *out],
        ["evaluate", copy, "--prompts", pipe, *out],
        ["evaluate", copy, "--baseline", pipe, "--scorer", f"words:{pipe}", *out],
        ["sweep", pipe, *out],
        ["report", pipe, *out],
        ["export", pipe, "--format", "eee", *out],
    ):
        assert fails(2, *argv)
