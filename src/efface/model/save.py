"""How is a model written, so that transformers 4, 5 and peft read it? An ordinary checkpoint, whole or not there."""

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import RunError, UserError, reason_of
from efface.files.modes import keep_mode_, share_
from efface.files.results import write_json
from efface.files.scratch import sweep_folders
from efface.model import interventions
from efface.model.checkpoint_files import ADAPTER, CONFIG
from efface.model.families import rope_of_transformers_4
from efface.model.loading import origin_of

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

BASE = "base_model.json"
"""Beside an adapter whose base lies in a folder of a repository: which. PEFT's own file has no place for it."""

GENERATION_CONFIG = "generation_config.json"

# What gives other settings a meaning, and so is taken over before them.
SWITCHES = ("do_sample", "num_beams", "use_cache", "return_dict_in_generate")


def save_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None",
    directory: str | os.PathLike[str],
    within_run: bool = False,
    **kwargs: Any,
) -> None:
    """Write an ordinary checkpoint that transformers 4 and 5 (and peft, for an adapter) load with `from_pretrained`.

    The files are written to a folder beside their destination and moved when all are whole. A model with
    interventions on hidden states is no ordinary checkpoint: they go into a file of their own, and what those loaders
    would take for the model into a folder below (`efface.model.interventions`), but for a checkpoint `within_run`,
    which the trainer itself has to read.

    An adapter names the commit and the folder of its base, if that is of the hub: on another it is another model.

    A generation_config that transformers would refuse to save is saved as `repair_generation_config_` would leave it.

    Args:
        tokenizer: written beside the model; None leaves it out.
        within_run: it is a checkpoint in a run's directory.
        kwargs: as `save_pretrained` takes them.

    Raises:
        RunError: if the disk is full or not writable, or the model cannot be saved; nothing half-written remains.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        below = interventions.BELOW if interventions.attached(model) and not within_run else ""
        sweep_folders(directory, ".saving-*")
        with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as scratch:
            ordinary = Path(scratch) / below
            ordinary.mkdir(exist_ok=True)
            with _savable_generation_config(model):
                model.save_pretrained(ordinary, **kwargs)
            if tokenizer is not None:
                tokenizer.save_pretrained(ordinary)
            _make_readable_by_transformers_4(ordinary)
            _name_base(model, ordinary)
            interventions.save_interventions(model, Path(scratch))
            share_(Path(scratch))
            _replace(directory, Path(scratch), ordinary)
    except (UserError, RunError):
        raise
    except Exception as error:  # tokenizers raises a bare one when the disk is full
        raise RunError(
            f"the model was not saved to {str(directory)!r}: {reason_of(error)}. Free some space or choose another "
            "directory."
        ) from error


def _replace(directory: Path, scratch: Path, ordinary: Path) -> None:
    """Move what was written to its place; no weights, adapter or interventions of a model that was there stay."""
    written = {entry.name for entry in scratch.iterdir()}
    stale = {interventions.FILE, BASE, ADAPTER, *(file.name for file in directory.glob("*model*.safetensors*"))}
    if ADAPTER in written:
        stale |= {CONFIG, GENERATION_CONFIG}  # with them it would look like a whole model that has an adapter too
    if ordinary != scratch:
        stale |= {file.name for file in ordinary.iterdir()}
    for name in stale - written:
        (directory / name).unlink(missing_ok=True)
    shutil.rmtree(directory / interventions.BELOW, ignore_errors=True)
    for entry in sorted(scratch.iterdir(), key=lambda entry: entry.name == interventions.FILE):
        keep_mode_(entry, directory / entry.name)
        os.replace(entry, directory / entry.name)


def repair_generation_config_(model: Any) -> list[str]:
    """Leave out of `model.generation_config` what keeps transformers from saving it; the names of what was left out.

    Such as a `temperature` without `do_sample`, which many published models have: they load, and their save fails
    after the training. What is left out had no effect (greedy decoding stays greedy) or was no setting at all.
    """
    owner = _owner(model)
    config = getattr(owner, "generation_config", None)
    if config is None or _is_savable(config):
        return []
    owner.generation_config, dropped = _repaired(config)
    logger.warning(
        "generation_config: %s left out: without effect or meaning there, and what transformers refuses to save",
        ", ".join(f"{name}={getattr(config, name)!r}" for name in dropped),
    )
    return dropped


def _repaired(config: "GenerationConfig") -> "tuple[GenerationConfig, list[str]]":
    """A configuration of every setting that is valid beside those before it, and the names of the others."""
    kept, dropped = type(config)(), []
    settings = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    for name in sorted(settings, key=lambda name: name not in SWITCHES):
        before = getattr(kept, name, None)
        setattr(kept, name, settings[name])
        if not _is_savable(kept):
            setattr(kept, name, before)
            dropped.append(name)
    return kept, dropped


def _is_savable(config: "GenerationConfig") -> bool:
    try:
        config.validate(strict=True)
        config.to_json_string()
    except Exception:  # also of values of a wrong type, which it compares with numbers
        return False
    return True


@contextlib.contextmanager
def _savable_generation_config(model: Any) -> Iterator[None]:
    """Inside, `model` has a generation_config that can be saved; afterwards its own again."""
    owner = _owner(model)
    own = getattr(owner, "generation_config", None)
    try:
        repair_generation_config_(model)
        yield
    finally:
        if own is not None:
            owner.generation_config = own


def _owner(model: Any) -> Any:
    """Which of a PEFT model and the model inside it the generation_config belongs to."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _make_readable_by_transformers_4(directory: Path) -> None:
    """Add the names that transformers 4 reads: without `rope_theta` it assumes base 10,000 and yields garbage."""
    config_file, tokenizer_file = directory / "config.json", directory / "tokenizer_config.json"
    if config_file.exists():
        config = json.loads(config_file.read_text(encoding="utf-8"))
        _name_rope_(config)
        config.setdefault("torch_dtype", config.get("dtype"))
        write_json(config_file, config)
    if tokenizer_file.exists():
        tokenizer = json.loads(tokenizer_file.read_text(encoding="utf-8"))
        if tokenizer.get("tokenizer_class") == "TokenizersBackend":
            tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(tokenizer.get("extra_special_tokens"), list):  # a dict in version 4; 5 reads both names
            tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
        write_json(tokenizer_file, tokenizer)


def _name_rope_(config: dict[str, Any]) -> None:
    """Add the names to a configuration and to those in it: a model of texts and images has one of its decoder."""
    config.update(rope_of_transformers_4(config))
    for part in config.values():
        if isinstance(part, dict):
            _name_rope_(part)


def _name_base(model: Any, directory: Path) -> None:
    """Write beside an adapter which commit its base is, and in which folder of the repository that lies.

    A revision that the adapter's configuration has already is its maker's, and stays.
    """
    file, origin = directory / ADAPTER, origin_of(model)
    if not file.exists():
        return
    config = json.loads(file.read_text(encoding="utf-8"))
    if origin.revision is not None and config.get("revision") is None:
        write_json(file, config | {"revision": origin.revision})
    if origin.subfolder is not None:
        write_json(directory / BASE, {"schema": 1, "subfolder": origin.subfolder})
