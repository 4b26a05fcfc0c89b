"""What do the tests of the two-player game play with?"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from efface.methods.adversary import Adversaries
from efface.methods.discriminators import Domains

D = 8


def states(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def domains(benign: Tensor, toxic: Tensor) -> Domains:
    return Domains(benign, toxic, torch.tensor(len(benign)), torch.tensor(len(toxic)))


def adversaries(layers: tuple[int, ...] = (0,), **settings: Any) -> Adversaries:
    return Adversaries(list(layers), D, width=16, **settings)


def reference_bce(game: Adversaries, domain: Domains, layer: int = 0) -> Tensor:
    """0.5 * mean over benign + 0.5 * mean over toxic, written the plain way."""
    logits = [game.discriminators[str(layer)](side) for side in (domain.benign, domain.toxic)]
    benign = F.binary_cross_entropy_with_logits(logits[0], torch.zeros_like(logits[0]))
    return 0.5 * benign + 0.5 * F.binary_cross_entropy_with_logits(logits[1], torch.ones_like(logits[1]))


def gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]


def train(game: Adversaries, steps: int, seed: int = 0) -> float:
    bce = math.nan
    for step in range(steps):
        domain = domains(states(16, seed=seed + step), states(16, seed=seed + 500 + step) + torch.linspace(-2, 2, D))
        bce = game.loss({0: domain}, 1.0)[1]["adversary/bce/0"]
        game.update()
    return bce
