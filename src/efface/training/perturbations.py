"""What else may befall the weights than who fine-tunes them? Rounding, merging, noise, and the top of the loss nearby.

round      P(w) = round(w) on a grid, the linear maps of the blocks; the gradient goes straight through
merge      P(w) = w + a (w_0 - w),          a drawn evenly from [0, ALPHA], w_0 the trained weights before training
noise      P(w) = w + SCALE rms(w) n,       n standard normal, the root mean square of each tensor
sharpness  P(w) = w + RHO g / ||g||,        g the gradient of the method's own loss at w, of each micro-batch alone
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from efface.checks import not_negative, one_of
from efface.errors import UserError
from efface.model.projections import linear_maps, refuse_experts
from efface.model.rounding import SCHEMES, rounded
from efface.training.perturbed import Maps, Place

ADAPTERS = "lora_"
"""How PEFT's modules of an adapter begin, inside of the maps that it adapts."""


@dataclass
class Rounded:
    """`round:BITS[/SCHEME/GROUP]`. A map with a LoRA adapter is rounded as it would be merged."""

    bits: int
    scheme: str = "asymmetric"
    group: int = 32
    """Neighbours in an output row that share a scale; 0: the whole row."""
    kept: dict[str, Tensor] = field(default_factory=dict, init=False)

    keeps: ClassVar[bool] = False
    wants_start: ClassVar[bool] = False
    each_micro_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        one_of("SCHEME", self.scheme, SCHEMES)
        if not 2 <= self.bits <= 8 or (self.scheme == "nf4" and self.bits != 4):
            raise UserError(f"BITS={self.bits}: whole numbers from 2 to 8 are needed, and 4 for nf4.")
        not_negative("GROUP", self.group)

    @torch.no_grad()
    def move_(self, place: Place) -> None:
        refuse_experts(place.model, "--withstand round")
        for name, module in block_maps(place.model):
            weight = place.parameters[name].data
            adapter = _adapter_of(place.model, name)
            merged = weight if adapter is None else weight + adapter
            near = rounded(_by_rows(module, merged), self.bits, self.group, self.scheme)
            near = _by_rows(module, near)  # GPT-2's are turned, and back
            if adapter is not None:
                near = near - adapter
            place.put(name).copy_(near)

    def nbytes(self, trained: Sequence[Tensor], maps: Maps) -> tuple[int, int]:
        return sum(each.nbytes for each in maps()), 0


@dataclass
class Merged:
    """`merge:ALPHA`."""

    alpha: float
    kept: dict[str, Tensor] = field(default_factory=dict, init=False)

    keeps: ClassVar[bool] = False
    wants_start: ClassVar[bool] = True
    each_micro_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"ALPHA={self.alpha}: it must be between 0 (no way) and 1 (all of it).")

    @torch.no_grad()
    def move_(self, place: Place) -> None:
        alpha = self.alpha * float(torch.rand((), generator=place.generator, dtype=torch.float64))
        for name, parameter in place.trained.items():
            torch.lerp(parameter.data, place.start[name], alpha, out=place.put(name))

    def nbytes(self, trained: Sequence[Tensor], maps: Maps) -> tuple[int, int]:
        size = sum(each.nbytes for each in trained)
        return size, size


@dataclass
class Noisy:
    """`noise:SCALE`."""

    scale: float
    kept: dict[str, Tensor] = field(default_factory=dict, init=False)

    keeps: ClassVar[bool] = False
    wants_start: ClassVar[bool] = False
    each_micro_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        not_negative("SCALE", self.scale)

    @torch.no_grad()
    def move_(self, place: Place) -> None:
        seed = int(torch.randint(2**31, (), generator=place.generator))
        generators: dict[torch.device, torch.Generator] = {}
        for name, parameter in place.trained.items():
            weight, there = parameter.data, place.put(name)
            if weight.device not in generators:
                generators[weight.device] = torch.Generator(weight.device).manual_seed(seed)
            rms = float(
                torch.linalg.vector_norm(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            ) / math.sqrt(weight.numel())
            there.normal_(generator=generators[weight.device]).mul_(self.scale * rms).add_(weight)

    def nbytes(self, trained: Sequence[Tensor], maps: Maps) -> tuple[int, int]:
        return sum(each.nbytes for each in trained), 0


@dataclass
class Sharpness:
    """`sharpness:RHO`. Each micro-batch climbs by itself, around DDP (m-sharpness, Foret et al. 2021)."""

    rho: float
    kept: dict[str, Tensor] = field(default_factory=dict, init=False)

    keeps: ClassVar[bool] = False
    wants_start: ClassVar[bool] = False
    each_micro_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        not_negative("RHO", self.rho)

    def move_(self, place: Place) -> None:
        gradients = place.gradients(loss() for loss in (place.loss,))
        length = torch.stack([gradient.float().norm() for gradient in gradients.values()]).norm()
        if length > 0:
            with torch.no_grad():
                for name, gradient in gradients.items():
                    torch.add(place.trained[name].data, gradient * (self.rho / length), out=place.put(name))

    def nbytes(self, trained: Sequence[Tensor], maps: Maps) -> tuple[int, int]:
        size = sum(each.nbytes for each in trained)
        return size, size


def block_maps(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameter and module of every linear map of the blocks, without those of an adapter; each weight once.

    Raises:
        UserError: if a weight is packed (quantised).
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for path, module in linear_maps(model).items():
        name = names.pop(id(module.weight), None)
        if name is None or any(part.startswith(ADAPTERS) for part in path.split(".")):
            continue
        if not module.weight.is_floating_point():
            raise UserError("the blocks' weights are quantised, and cannot be perturbed. Load them whole.")
        yield name, module


def _by_rows(module: Any, weight: Tensor) -> Tensor:
    """(out, in) of a map's weight as it is stored, or the other way round."""
    return weight if isinstance(module, nn.Linear) else weight.t()


def _adapter_of(model: nn.Module, name: str) -> Tensor | None:
    """What the active LoRA adapters add to a weight, as it is stored; None if there is none on it."""
    path, found, _ = name.rpartition(".base_layer.")
    if not found:
        return None
    layer: Any = model.get_submodule(path)
    added = [layer.get_delta_weight(one) for one in layer.active_adapters if one in getattr(layer, "lora_A", {})]
    return sum(added[1:], added[0]) if added else None
