"""What does an adversary look at, and what does it minimise? Networks, states of two domains, losses.

A discriminator D tells the hidden states of toxic tokens (domain 1) from those of benign ones (domain 0); per state

    bce          its cross-entropy                                                                    chance: ln 2
    wasserstein  -2 c(h-) for a toxic state, 2 c(h+) for a benign one, by a critic c held to slope 1   chance: 0

weighted so that each domain carries one half: the second is E c(h+) - E c(h-), minus a Wasserstein distance
(Gulrajani et al. 2017, arXiv 1704.00028, eq. 3).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.methods.functional import LN2

KINDS = ("mlp", "linear")


class Discriminator(nn.Module):
    """Hidden state -> one score, higher for toxic. The input is layer-normalised: scale alone must not tell."""

    def __init__(self, hidden_size: int, kind: str, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False)
        if kind == "linear":
            self.head: nn.Module = nn.Linear(hidden_size, 1)
        else:
            self.head = nn.Sequential(nn.Linear(hidden_size, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, d) -> (N,)."""
        return self.head(self.norm(hidden.float())).squeeze(-1)


@dataclass
class Domains:
    """The states of one layer in one micro-batch, and what the means of the whole step divide by."""

    benign: Tensor
    """(N0, d) at tokens of y+ (or (B, d), mean-pooled)."""
    toxic: Tensor
    """(N1, d) at tokens of y-."""
    n_benign: Tensor
    """Scalar: benign states in the whole optimizer step."""
    n_toxic: Tensor

    @property
    def states(self) -> Tensor:
        return torch.cat([self.benign, self.toxic])  # (N0 + N1, d)

    @property
    def labels(self) -> Tensor:
        return torch.cat([self.benign.new_zeros(len(self.benign)), self.toxic.new_ones(len(self.toxic))]).float()

    @property
    def weights(self) -> Tensor:
        """(N0 + N1,) such that each domain carries half of the weight, whatever its number of tokens."""
        benign = (0.5 / self.n_benign.float()).expand(len(self.benign))
        return torch.cat([benign, (0.5 / self.n_toxic.float()).expand(len(self.toxic))])

    def detached(self) -> "Domains":
        return Domains(self.benign.detach(), self.toxic.detach(), self.n_benign, self.n_toxic)


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """(N,) BCE of scores (N,), taken as logits, and labels (N,) in {0, 1}."""
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="none")


def critic_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """(N,) 2 * score of a benign state, -2 * score of a toxic one."""
    return (2.0 - 4.0 * labels) * scores


@dataclass(frozen=True)
class Objective:
    """What the adversary minimises."""

    per_state: Callable[[Tensor, Tensor], Tensor]
    """Scores (N,), labels (N,) -> (N,)."""
    chance: float
    """Its value where the domains cannot be told apart."""
    bounds: tuple[str, ...]
    """How the model's side can be bounded, the default first. A critic's score has no zero and no one half, so a
    single token cannot tell that it fools it."""

    def __call__(self, scores: Tensor, domain: Domains) -> Tensor:
        return (domain.weights * self.per_state(scores, domain.labels)).sum()


OBJECTIVES = {
    "bce": Objective(cross_entropy, LN2, ("confusion", "layer", "token", "none")),
    "wasserstein": Objective(critic_loss, 0.0, ("layer", "none")),
}


def slope_penalty(critic: nn.Module, benign: Tensor, toxic: Tensor, generator: torch.Generator) -> Tensor:
    """(N1,) of (||gradient of the critic|| - 1)^2, at a random point between each toxic state and a random benign one.

    Args:
        critic: (N, d) -> (N, 1).
        benign: (N0, d) what the critic sees of benign states.
        toxic: (N1, d).
        generator: on the CPU, of the points; so they are the same on every device.
    """
    partner = torch.randint(len(benign), (len(toxic),), generator=generator).to(benign.device)
    share = torch.rand(len(toxic), 1, generator=generator).to(benign.device)
    between = (share * toxic + (1 - share) * benign[partner]).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.norm(dim=-1) - 1) ** 2


def gradient_penalty(critic: Discriminator, micro_batches: Sequence[Domains], generator: torch.Generator) -> Tensor:
    """Mean `slope_penalty` over an optimizer step, in the space of the normalised states: one that knows no scale.

    Pairs are drawn from all micro-batches together, so that it does not matter how a step was cut into them.
    """
    benign = critic.norm(torch.cat([domain.benign for domain in micro_batches]).float())
    toxic = critic.norm(torch.cat([domain.toxic for domain in micro_batches]).float())
    return slope_penalty(critic.head, benign, toxic, generator).sum() / micro_batches[0].n_toxic
