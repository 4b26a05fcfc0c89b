"""What changes the hidden states at inference, and how is it stored beside a checkpoint?

An `Intervention` maps the residual stream h after one block, at every position, to

    h + left (right h) + bias          LEACE's map (low rank), or a steering vector (rank 0)

Most architectures have no weights that could hold this: blocks end without a bias, and the next thing is a norm. So it
is a forward hook, and `save_model` writes `interventions.safetensors` into the checkpoint, from which `load_model`
attaches it again. What the plain transformers loader would take, the model *without* its interventions, lies in a
folder below (`BELOW`), so that nobody gets it who asks for the directory: that loader finds no config.json there.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.numpy
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from efface.errors import UserError
from efface.files.io import is_regular_file
from efface.files.results import parse_json
from efface.files.shapes import check_shape
from efface.model.blocks import decoder_blocks
from efface.model.checkpoint_files import ADAPTER, CONFIG
from efface.model.hub import file_on_hub

FILE = "interventions.safetensors"
BELOW = "without-interventions"
"""The folder of the ordinary checkpoint, under the directory with the interventions."""
NOTE = f"{FILE} is part of the model: efface's load_model applies it, the plain transformers loader finds no model"
TENSORS = ("left", "right", "bias")


@dataclass(frozen=True, eq=False)
class Intervention:
    """h -> h + left (right h) + bias after block `layer`, at every position.

    Raises:
        UserError: if the shapes do not fit together, or `layer` is negative.
    """

    layer: int
    """0 for the first block."""
    left: Tensor
    """(d, r); r may be 0."""
    right: Tensor
    """(r, d)"""
    bias: Tensor
    """(d,)"""

    def __post_init__(self) -> None:
        shapes = tuple(self.left.shape), tuple(self.right.shape), tuple(self.bias.shape)
        if len(shapes[0]) != 2 or shapes[1:] != (shapes[0][::-1], shapes[0][:1]):
            raise UserError(
                "the parts of an intervention have shapes {}, {} and {}: (d, r), (r, d) and (d,) are needed.".format(
                    *shapes
                )
            )
        if self.layer < 0:
            raise UserError(f"layer {self.layer} of an intervention: count blocks from 0, the first.")

    def __call__(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., d) of the same dtype; computed in float32 or better, under autocast too."""
        dtype, device = torch.promote_types(hidden.dtype, torch.float32), hidden.device.type
        autocasts = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if autocasts else contextlib.nullcontext():
            left, right, bias = (getattr(self, name).to(hidden.device, dtype) for name in TENSORS)
            states = hidden.to(dtype)
            return (states + states @ right.T @ left.T + bias).to(hidden.dtype)


class _Hook:
    """A forward hook of a block. An object and not a closure, so that a deep copy of the model has its own."""

    def __init__(self, intervention: Intervention):
        self.intervention = intervention
        self.handle: RemovableHandle | None = None

    def __call__(self, block: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if self.intervention.bias.device != hidden.device:  # the model was moved
            moved = {name: getattr(self.intervention, name).to(hidden.device) for name in TENSORS}
            self.intervention = replace(self.intervention, **moved)
        changed = self.intervention(hidden)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed


def attach_(model: nn.Module, interventions: Sequence[Intervention]) -> None:
    """Change what the blocks of `model` give, from now on, in its deep copies and saved checkpoints too.

    Several on one layer apply in the order in which they are attached. Whatever looks at the residual stream later
    (`capture_residuals`, `forward`) sees it changed.

    Raises:
        UserError: if the model has no such layer, or another width, or a number is not finite; nothing is attached
            then.
    """
    blocks = decoder_blocks(model)
    width = model.config.get_text_config(decoder=True).hidden_size  # type: ignore[union-attr,operator]
    check_interventions(interventions, len(blocks), width)
    for intervention in interventions:
        hook = _Hook(intervention)
        hook.handle = blocks[intervention.layer].register_forward_hook(hook)


def check_interventions(interventions: Sequence[Intervention], layers: int, width: int) -> None:
    """Nothing, if they fit a model of so many layers and that width, and are finite.

    Raises:
        UserError: if not.
    """
    for intervention in interventions:
        if intervention.layer >= layers:
            raise UserError(
                f"an intervention after layer {intervention.layer} does not fit a model of {layers} layers, 0 to "
                f"{layers - 1}. It was made for another model."
            )
        if len(intervention.bias) != width:
            raise UserError(
                f"an intervention of width {len(intervention.bias)} does not fit a model whose hidden states have "
                f"{width}. It was made for another model."
            )
        if not all(torch.isfinite(getattr(intervention, name)).all() for name in TENSORS):
            raise UserError(
                f"the intervention after layer {intervention.layer} has numbers that are not finite. Make it again, "
                "in float32."
            )


def attached(model: nn.Module) -> list[Intervention]:
    """The interventions of `model` by layer, and within a layer in their order."""
    return [hook.intervention for hook in _hooks(model)]


def detach_(model: nn.Module) -> None:
    """Take all interventions off `model`."""
    for hook in _hooks(model):
        assert hook.handle is not None
        hook.handle.remove()


def _hooks(model: nn.Module) -> list[_Hook]:
    return [hook for module in model.modules() for hook in module._forward_hooks.values() if isinstance(hook, _Hook)]


def save_interventions(model: nn.Module, directory: Path) -> bool:
    """Write the interventions of `model` to `directory`, in float32; False, and no file, if it has none."""
    found = attached(model)
    if found:
        tensors = {
            f"{i}.{name}": getattr(intervention, name).detach().float().cpu().contiguous().numpy()
            for i, intervention in enumerate(found)
            for name in TENSORS
        }
        layers = [intervention.layer for intervention in found]
        safetensors.numpy.save_file(tensors, directory / FILE, metadata={"layers": json.dumps(layers)})
    return bool(found)


def attach_saved_(model: nn.Module, file: Path) -> None:
    """Give `model` the interventions that `file`, if there is one, holds.

    They take the place of those it has: the ones of an adapter's base are among those saved with the adapter.

    Raises:
        UserError: if the file is damaged, or was made for another model.
    """
    if not os.path.lexists(file):
        return
    interventions = read_interventions(file)
    detach_(model)
    try:
        attach_(model, interventions)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def places_on_hub(top: str) -> list[tuple[str, str]]:
    """The folders of a repository in which an ordinary checkpoint may lie, each with a file that says what it is.

    Args:
        top: the folder that is asked for, "" for the repository's own.
    """
    return [("/".join(filter(None, (top, below))), file) for below in (BELOW, "") for file in (ADAPTER, CONFIG)]


def place_on_hub(name: str, revision: str | None, top: str) -> tuple[str, str]:
    """Which of `places_on_hub` there is; the last if none, as its loader says what is missing. Raises OSError if the
    hub fails."""
    *others, last = places_on_hub(top)
    there = (place for place in others if file_on_hub(name, "/".join(filter(None, place)), revision))
    return next(there, last)


def attach_from_hub_(model: nn.Module, name: str, revision: str | None, top: str, folder: str) -> None:
    """`attach_saved_` for a model of the Hugging Face hub whose ordinary checkpoint lies in `folder` (`place_on_hub`).

    Raises:
        OSError: if the hub fails.
        UserError: if there must be interventions, and are none.
    """
    file = file_on_hub(name, "/".join(filter(None, (top, FILE))), revision)
    if file is not None:
        attach_saved_(model, file)
    elif folder != top:
        raise UserError(
            f"model {name!r} lacks {FILE}, without which it is the untouched model ({folder}). Upload the whole "
            "directory; from the cache alone: load it once where the hub can be reached."
        )


def read_interventions(path: Path) -> list[Intervention]:
    """What the file beside a checkpoint holds, in the order in which it applies.

    Raises:
        UserError: if it is damaged.
    """
    try:
        if not is_regular_file(path):
            raise TypeError("it is no regular file")
        with safetensors.safe_open(path, framework="pt") as file:
            layers = parse_json(file.metadata()["layers"], "its header")
            check_shape(layers, [int], "the layers in its header")
            if not layers:
                raise ValueError("its header names no layer")
            return [
                Intervention(layer, *(file.get_tensor(f"{i}.{name}") for name in TENSORS))
                for i, layer in enumerate(layers)
            ]
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} holds no interventions ({error}). Save the model again; without that file it would load as it "
            "was before them."
        ) from error
