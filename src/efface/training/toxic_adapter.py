"""What if who relearns does so by an adapter? A throw-away toxic one is switched on while the gradient is taken.

    P(W) = W + 2 B A   for every linear map W of the blocks,   A (RANK, in) at random, B (out, RANK) from 0

A and B are trained by STEPS steps of Adam on the mean NLL of the tokens of y- on the step's own rejected rows, with
everything else standing still, and serve KEEP training steps. The model's own adapter, if it has one, stays on.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from efface.checks import at_least, at_least_one, positive
from efface.model.copies import frozen
from efface.training.anticipated import attackers_losses
from efface.training.perturbations import block_maps
from efface.training.perturbed import Maps, Place

SCALE = 2.0
"""As LoRA's alpha of twice the rank, which the attack `relearn` has."""


@dataclass
class ToxicAdapter:
    """`lora:RANK[/STEPS/KEEP/RATE]`."""

    rank: int
    steps: int = 4
    """Of Adam, with which the adapter is trained; 0 leaves it without effect."""
    keep: int = 4
    """Training steps for which an adapter serves."""
    rate: float = 1e-3
    """Of Adam."""
    kept: dict[str, Tensor] = field(default_factory=dict, init=False)
    """"uses": of the adapter, so far; "A/" + parameter and "B/" + parameter: its factors."""

    keeps: ClassVar[bool] = True
    wants_start: ClassVar[bool] = False
    each_micro_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least_one(self, "rank", "keep")
        at_least(self, 0, "steps")
        positive("RATE", self.rate)

    def move_(self, place: Place) -> None:
        maps = dict(block_maps(place.model))
        uses = int(self.kept.get("uses", 0))
        if uses % self.keep == 0:
            self.kept, uses = self._train(place, maps), 0
        self.kept["uses"] = torch.tensor(uses + 1)
        with torch.no_grad():
            for name, module in maps.items():
                added = SCALE * self.kept[f"B/{name}"] @ self.kept[f"A/{name}"]  # (out, in)
                weight = place.parameters[name].data
                added = added if isinstance(module, nn.Linear) else added.t()
                torch.add(weight, added.to(weight.dtype), out=place.put(name))

    def _train(self, place: Place, maps: dict[str, Any]) -> dict[str, Tensor]:
        """The factors of an adapter that was trained from w on."""
        factors: dict[str, Tensor] = {}
        for name, module in maps.items():
            weight = module.weight if isinstance(module, nn.Linear) else module.weight.t()  # (out, in)
            bound = 1 / math.sqrt(weight.shape[1])  # as PEFT draws it
            drawn = torch.empty(self.rank, weight.shape[1]).uniform_(-bound, bound, generator=place.generator)
            factors[f"A/{name}"] = drawn.to(weight.device)
            factors[f"B/{name}"] = torch.zeros(len(weight), self.rank, device=weight.device)
        for factor in factors.values():
            factor.requires_grad_()
        optimizer = torch.optim.Adam(factors.values(), lr=self.rate)
        with frozen(place.model), _switched_on(maps, factors):
            for _ in range(self.steps):
                for loss in attackers_losses(place):
                    loss.backward()
                found = {name: factor.grad for name, factor in factors.items() if factor.grad is not None}
                for name, gradient in place.summed(found, factors).items():
                    factors[name].grad = gradient
                optimizer.step()
                optimizer.zero_grad()
        return {name: factor.detach() for name, factor in factors.items()}

    def nbytes(self, trained: Sequence[Tensor], maps: Maps) -> tuple[int, int]:
        factors = sum(4 * self.rank * sum(each.shape) for each in maps())
        return sum(each.nbytes for each in maps()), 4 * factors  # gradients and Adam's two, while it is trained


@contextmanager
def _switched_on(maps: dict[str, Any], factors: dict[str, Tensor]) -> Iterator[None]:
    """Within, every map adds 2 B A x to what it gives."""

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            inner = nn.functional.linear(args[0].to(factors[f"A/{name}"].dtype), factors[f"A/{name}"])
            return output + SCALE * nn.functional.linear(inner, factors[f"B/{name}"]).to(output.dtype)

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in maps.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
