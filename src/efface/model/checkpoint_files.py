"""May the files of a checkpoint directory be handed to a loader? Asked before anything of it is loaded.

Whoever made a checkpoint is not trusted: its weights are safetensors alone (pickles, which run code, are not read),
its index names files beside it, nothing in it is a pipe that its reader would wait for, and its configuration asks for
no more than a model can have and for no code from elsewhere.
"""

import os
from pathlib import Path
from typing import Any

from efface.errors import UserError
from efface.files.io import is_regular_file
from efface.files.results import read_json
from efface.model.names import short

CONFIG, ADAPTER = "config.json", "adapter_config.json"
WEIGHTS = "*.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib")
"""What holds pickled weights under the names that loaders look for."""
FILES = ("*.json", WEIGHTS, "*.model", "*.txt", "*.jinja")
"""What makes up a checkpoint: of a repository of the hub no more is fetched."""
MOST_LABELS = 100_000
"""Of a classifier: transformers makes a list of them."""
HINT = "Put the config.json there that belongs to it."
LARGEST = 2**48
"""Numbers of a configuration: beyond this nothing is a size or an id."""
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation")
"""Keys that may name a repository of compiled code on the hub."""


def check_files(directory: Path, what: str) -> None:
    """Nothing, if all entries of `directory` are files and folders, and those that say what it is can be read.

    Args:
        what: it is, for errors: "model directory 'x'".

    Raises:
        UserError: naming the file.
    """
    for entry in sorted(directory.iterdir()):
        # A link that leads nowhere is passed over, like a file that is not there.
        if entry.exists() and not entry.is_dir() and not is_regular_file(entry):
            raise UserError(f"{what} holds {entry.name!r}, which is no file but a pipe or a device. Remove it.")
    for index in sorted(directory.glob("*.index.json")):
        _check_index(index, what)
    config = directory / CONFIG
    if config.exists():
        _check_config(read(config, what), f"{what}: {CONFIG}")


def read(file: Path, what: str, shape: Any = None) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises UserError saying of which."""
    try:
        return read_json(file, shape)
    except UserError as error:
        reason = str(error).rstrip(".")
        raise UserError(f"{what} cannot be loaded ({reason}). Save the model again, or pass another.") from error


def has_weights(directory: Path, what: str) -> bool:
    """Whether there are weights in safetensors.

    Raises:
        UserError: if there are weights, but all of them pickled.
    """
    if any(directory.glob(WEIGHTS)):
        return True
    for pattern in PICKLES:
        for file in sorted(directory.glob(pattern)):
            raise UserError(
                f"{what} has its weights in {file.name}, a pickle, which is not read: only safetensors are. Load it "
                "with transformers or peft where you trust it, and save it again with save_pretrained."
            )
    return False


def _check_index(index: Path, what: str) -> None:
    """Refuse an index that names files of other folders: a checkpoint has no business with them."""
    placed = read(index, what, {"weight_map": dict})["weight_map"]
    names = {name if isinstance(name, str) else "" for name in placed.values()}
    for name in sorted(names):
        if Path(name).name != name or name in ("", "..") or not name.isprintable():
            raise UserError(f"{what} has weights elsewhere ({short(name)!r} in {index.name}). Put them there.")
        if not name.endswith(".safetensors"):
            raise UserError(f"{what} has weights in {short(name)!r} ({index.name}), and only safetensors are read.")


def _check_config(config: dict[str, Any], where: str) -> None:
    for key, value in config.items():
        if isinstance(value, int) and abs(value) > LARGEST:
            raise UserError(f"{where}: {key!r} is too large to be meant. {HINT}")
    labels = config.get("num_labels")
    named = config.get("id2label")
    count = max(labels if isinstance(labels, int) else 0, len(named) if isinstance(named, dict) else 0)
    if count > MOST_LABELS:
        raise UserError(f"{where} has {count} labels. {HINT}")
    for key in KERNELS:
        given = config.get(key)
        for name in given.values() if isinstance(given, dict) else (given,):
            if isinstance(name, str) and ("/" in name or os.sep in name):
                raise UserError(
                    f"{where}: {key!r} asks for compiled code from {short(name)!r}, which is never fetched. Take that "
                    "line out; --attn-implementation chooses among those that are installed."
                )
