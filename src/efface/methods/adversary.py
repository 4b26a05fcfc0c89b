"""How do discriminators and the model play against each other? (Design section 2; Ganin et al. 2016.)

One discriminator D_l per layer tells the hidden states of toxic tokens (domain 1) from those of benign ones (domain
0). In `Adversaries.loss` the model receives -strength times the gradient of D's cross-entropy (gradient reversal),
where the strength of a token is

    lambda  *  [erase_side is `both`, or the token is toxic]  *  [the bound allows it].

The plain objective is unbounded: the model can drive the cross-entropy far past ln 2 and swap the classes instead of
confusing them. The bound stops the push where there is nothing left to confuse.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from efface.functional import LN2, confusion_loss, gradient_reversal

if TYPE_CHECKING:
    from accelerate import Accelerator

BOUNDS = ("layer", "token", "confusion", "none")
SIDES = ("toxic", "both")
KINDS = ("mlp", "linear")


class Discriminator(nn.Module):
    """Hidden state -> one logit, positive for toxic. The input is layer-normalised: scale alone must not tell."""

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


class Adversaries:
    """The discriminators of all chosen layers with their own optimizer, gradient clipping and checkpoint.

    Within an optimizer step the discriminators stand still, so that accumulated micro-batches equal one large batch.
    `update` ends the step with `steps` updates on the states of all its micro-batches. With one it is plain DANN: the
    gradient is the one the model's own backward leaves, but free of `w_erase`.
    """

    def __init__(
        self,
        layers: list[int],
        hidden_size: int,
        *,
        kind: str = "mlp",
        width: int = 256,
        lr: float = 1e-3,
        steps: int = 2,
        bound: str = "layer",
        erase_side: str = "toxic",
        seed: int = 0,
        max_grad_norm: float = 1.0,
        device: torch.device | str = "cpu",
    ):
        self.layers, self.steps, self.bound, self.erase_side = layers, steps, bound, erase_side
        self.max_grad_norm = max_grad_norm
        with torch.random.fork_rng():  # the same start on every process, without touching the caller's random state
            torch.manual_seed(seed)
            self.discriminators = nn.ModuleDict(
                {str(layer): Discriminator(hidden_size, kind, width) for layer in layers}
            )
        self.discriminators.to(device)
        self.optimizer = torch.optim.Adam(self.discriminators.parameters(), lr=lr)
        self.last_bce = dict.fromkeys(layers, LN2)  # of the last finished step, on states D had not been trained on
        self._bce_sum: dict[int, float] = defaultdict(float)
        self._seen: dict[int, list[Domains]] = defaultdict(list)

    def loss(
        self, domains: dict[int, Domains], strength: float, *, train: bool = True
    ) -> tuple[Tensor, dict[str, float]]:
        """Mean over layers of the discriminators' cross-entropy, with the gradient to the model reversed and bounded.

        Args:
            domains: per layer the states of this micro-batch.
            strength: lambda of the reversal.
            train: keep the states for `update`.

        Returns:
            The loss (its value is D's cross-entropy) and per layer the figures to log; over the micro-batches of a
            step both add up to the means of the step.
        """
        total = torch.zeros((), device=next(self.discriminators.parameters()).device)
        metrics: dict[str, float] = {}
        for layer, domain in domains.items():
            bce, logits = self._layer_loss(layer, domain, strength)
            total = total + bce / len(domains)
            correct = ((logits > 0) == (domain.labels > 0.5)).float()
            metrics[f"adversary/bce/{layer}"] = bce.item()
            metrics[f"adversary/balanced_accuracy/{layer}"] = (domain.weights * correct).sum().item()
            if train:
                self._bce_sum[layer] += bce.item()
                self._seen[layer].append(domain.detached())
        return total, metrics

    def _layer_loss(self, layer: int, domain: Domains, strength: float) -> tuple[Tensor, Tensor]:
        discriminate, states, labels = self.discriminators[str(layer)], domain.states, domain.labels
        push = torch.full_like(labels, strength)  # (N0 + N1,)
        if self.erase_side == "toxic":
            push = push * labels
        if self.bound == "layer":
            push = push * float(self.last_bce[layer] <= LN2)
        elif self.bound == "token":
            with torch.no_grad():
                push = push * (
                    F.binary_cross_entropy_with_logits(discriminate(states), labels, reduction="none") <= LN2
                )
        if self.bound == "confusion":
            logits = discriminate(states.detach())
            return _weighted_bce(logits, domain) + self._confusion(discriminate, states, push * domain.weights), logits
        logits = discriminate(gradient_reversal(states, push.unsqueeze(1)))
        return _weighted_bce(logits, domain), logits

    def _confusion(self, discriminate: nn.Module, states: Tensor, weights: Tensor) -> Tensor:
        """A term of value 0 whose gradient pulls D's output on `states` to one half, and leaves D alone."""
        frozen = {name: parameter.detach() for name, parameter in discriminate.named_parameters()}
        confusion = (weights * confusion_loss(torch.func.functional_call(discriminate, frozen, states))).sum()
        return confusion - confusion.detach()

    def update(self, accelerator: "Accelerator | None" = None) -> None:
        """End an optimizer step: train the discriminators on the states of all its micro-batches."""
        for _ in range(self.steps):
            self.optimizer.zero_grad()  # of the last update, and of what the model's backward left here
            losses = [
                _weighted_bce(self.discriminators[str(layer)](domain.states), domain) / len(self._seen)
                for layer, seen in self._seen.items()
                for domain in seen
            ]
            torch.stack(losses).sum().backward()
            self._reduce_gradients(accelerator)
            if self.max_grad_norm:  # 0 turns clipping off, as in the Trainer
                nn.utils.clip_grad_norm_(self.discriminators.parameters(), self.max_grad_norm)
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.last_bce = self._step_bce(accelerator)
        self._bce_sum.clear()
        self._seen.clear()

    def _step_bce(self, accelerator: "Accelerator | None") -> dict[int, float]:
        """Cross-entropy of the finished step per layer; each process has counted its own share of the states."""
        device = next(self.discriminators.parameters()).device
        bce = torch.tensor([self._bce_sum[layer] for layer in self.layers], device=device)
        if accelerator is not None and accelerator.num_processes > 1:
            bce = accelerator.reduce(bce, "sum")
        return dict(zip(self.layers, bce.tolist(), strict=True))

    def _reduce_gradients(self, accelerator: "Accelerator | None") -> None:
        """Sum the gradients of all processes: each divided its own by the counts of all."""
        if accelerator is None or accelerator.num_processes == 1:
            return
        for parameter in self.discriminators.parameters():
            parameter.grad = accelerator.reduce(parameter.grad, "sum")

    def save(self, path: Path) -> None:
        """Weights, Adam's state and the state of the bound, as safetensors."""
        tensors = {f"weights/{name}": tensor for name, tensor in self.discriminators.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
        tensors["last_bce"] = torch.tensor([self.last_bce[layer] for layer in self.layers], dtype=torch.float64)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)

    def load(self, path: Path) -> None:
        tensors = load_file(path)
        self.discriminators.load_state_dict(
            {name.removeprefix("weights/"): tensor for name, tensor in tensors.items() if name.startswith("weights/")}
        )
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            if name.startswith("adam/"):
                _, index, key = name.split("/")
                state[int(index)][key] = tensor
        self.optimizer.load_state_dict(
            {"state": dict(state), "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        self.last_bce = dict(zip(self.layers, tensors["last_bce"].tolist(), strict=True))


def _weighted_bce(logits: Tensor, domain: Domains) -> Tensor:
    bce = F.binary_cross_entropy_with_logits(logits, domain.labels, reduction="none")  # (N0 + N1,)
    return (domain.weights * bce).sum()
