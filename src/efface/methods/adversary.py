"""How do discriminators and the model play against each other? (Design section 2; Ganin et al. 2016.)

Each layer has a discriminator (`discriminators.py`), or an ensemble of them. In `Adversaries.loss` the model receives
-strength times the gradient of their mean loss (gradient reversal), where the strength of a token is

    lambda  *  [erase_side is `both`, or the token is toxic]  *  [the bound allows it, for each discriminator apart].

The plain objective is unbounded: the model can drive the loss far past what chance gives (a cross-entropy of ln 2, a
distance of 0) and swap the classes instead of confusing them. The bound stops the push where there is nothing left to
confuse.
"""

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from efface.errors import UserError
from efface.methods.discriminators import OBJECTIVES, Discriminator, Domains, gradient_penalty
from efface.methods.functional import confusion_loss, gradient_reversal
from efface.model.devices import keep_random_state

if TYPE_CHECKING:
    from accelerate import Accelerator

ERASE_SIDES = ("toxic", "both")


class Adversaries:
    """The discriminators of all chosen layers with their own optimizer, gradient clipping and checkpoint.

    Within an optimizer step the discriminators stand still, so that accumulated micro-batches equal one large batch.
    `update` ends the step with `steps` updates on the states of all its micro-batches. With one it is plain DANN: the
    gradient is the one the model's own backward leaves, but free of `w_erase`.

    Args:
        layers: whose states are told apart.
        hidden_size: d.
        adversary: what the discriminators minimise, of `OBJECTIVES`.
        penalty: weight of `gradient_penalty` in a critic's own loss.
        ensemble: discriminators for each layer, alike but for their start.
        reinit: draw them and Adam's state anew in every so many steps; 0: never.
        bound: `layer`, `token`, `confusion` or `none`; which of them an objective knows is said there.
    """

    def __init__(
        self,
        layers: list[int],
        hidden_size: int,
        *,
        kind: str = "mlp",
        width: int = 256,
        adversary: str = "bce",
        penalty: float = 10.0,
        ensemble: int = 1,
        reinit: int = 0,
        lr: float = 1e-3,
        steps: int = 2,
        bound: str = "layer",
        erase_side: str = "toxic",
        seed: int = 0,
        max_grad_norm: float = 1.0,
        device: torch.device | str = "cpu",
    ):
        self.layers, self.steps, self.bound, self.erase_side = layers, steps, bound, erase_side
        self.adversary, self.objective, self.penalty = adversary, OBJECTIVES[adversary], penalty
        self.reinit, self.lr, self.seed, self.max_grad_norm, self.device = reinit, lr, seed, max_grad_norm, device
        self.members = {layer: [str(layer), *(f"{layer}/{k}" for k in range(1, ensemble))] for layer in layers}
        self._new = partial(Discriminator, hidden_size, kind, width)
        self._draw(seed)
        self._bce_sum: dict[str, float] = defaultdict(float)
        self._seen: dict[int, list[Domains]] = defaultdict(list)

    def _draw(self, seed: int) -> None:
        """Discriminators and an optimizer without a past; those of an ensemble follow the first of every layer."""
        names = [name for rank in zip(*self.members.values(), strict=True) for name in rank]
        with keep_random_state():  # the same start on every process, without touching the caller's random state
            torch.manual_seed(seed)
            self.discriminators = nn.ModuleDict({name: self._new() for name in names})
        self.discriminators.to(self.device)
        self.optimizer = torch.optim.Adam(self.discriminators.parameters(), lr=self.lr)
        # Of each in the last finished step, on states it had not been trained on (of a critic: minus its distance).
        self.last_bce = dict.fromkeys(names, self.objective.chance)

    def loss(
        self, domains: dict[int, Domains], strength: float, *, train: bool = True
    ) -> tuple[Tensor, dict[str, float]]:
        """Mean over layers of the discriminators' mean loss, with the gradient to the model reversed and bounded.

        Args:
            domains: per layer the states of this micro-batch.
            strength: lambda of the reversal.
            train: keep the states for `update`.

        Returns:
            The loss (its value is the discriminators' own, without penalty) and per layer the figures to log; over the
            micro-batches of a step both add up to the means of the step.
        """
        total = torch.zeros((), device=next(self.discriminators.parameters()).device)
        metrics: dict[str, float] = defaultdict(float)
        for layer, domain in domains.items():
            size = len(self.members[layer])
            for name in self.members[layer]:
                loss, scores = self._loss_of(name, domain, strength)
                total = total + loss / (len(domains) * size)
                if self.adversary == "bce":
                    correct = ((scores > 0) == (domain.labels > 0.5)).float()
                    metrics[f"adversary/bce/{layer}"] += loss.item() / size
                    metrics[f"adversary/balanced_accuracy/{layer}"] += (domain.weights * correct).sum().item() / size
                else:
                    metrics[f"adversary/distance/{layer}"] -= loss.item() / size
                if train:
                    self._bce_sum[name] += loss.item()
            if train:
                self._seen[layer].append(domain.detached())
        return total, dict(metrics)

    def _loss_of(self, name: str, domain: Domains, strength: float) -> tuple[Tensor, Tensor]:
        """Of one discriminator: its loss and scores (N0 + N1,)."""
        discriminate, states, labels = self.discriminators[name], domain.states, domain.labels
        push = torch.full_like(labels, strength)  # (N0 + N1,)
        if self.erase_side == "toxic":
            push = push * labels
        if self.bound == "layer":
            push = push * float(self.last_bce[name] <= self.objective.chance)
        elif self.bound == "token":
            with torch.no_grad():
                push = push * (self.objective.per_state(discriminate(states), labels) <= self.objective.chance)
        if self.bound == "confusion":
            scores = discriminate(states.detach())
            pull = self._confusion(discriminate, states, push * domain.weights)
            return self.objective(scores, domain) + pull, scores
        scores = discriminate(gradient_reversal(states, push.unsqueeze(1)))
        return self.objective(scores, domain), scores

    def _confusion(self, discriminate: nn.Module, states: Tensor, weights: Tensor) -> Tensor:
        """A term of value 0 whose gradient pulls D's output on `states` to one half, and leaves D alone."""
        frozen = {name: parameter.detach() for name, parameter in discriminate.named_parameters()}
        confusion = (weights * confusion_loss(torch.func.functional_call(discriminate, frozen, states))).sum()
        return confusion - confusion.detach()

    def update(self, accelerator: "Accelerator | None" = None, step: int = 1) -> None:
        """End an optimizer step: train the discriminators on the states of all its micro-batches.

        Args:
            step: its number, from 1; with the seed it decides whatever is drawn.
        """
        self.last_bce = self._step_bce(accelerator)
        # One number of 32 bits, which is what torch's generator on the CPU reads of a seed.
        drawn = int(np.random.SeedSequence((self.seed, step)).generate_state(1)[0])
        if self.reinit and step % self.reinit == 0:
            self._draw(drawn)  # before the updates: the model never meets a discriminator that has learnt nothing
        generator = torch.Generator().manual_seed(drawn)
        for _ in range(self.steps):
            self.optimizer.zero_grad()  # of the last update, and of what the model's backward left here
            losses = [
                loss / (len(self._seen) * len(self.members[layer]))
                for layer, seen in self._seen.items()
                for name in self.members[layer]
                for loss in self._own_losses(name, seen, generator)
            ]
            torch.stack(losses).sum().backward()
            self._reduce_gradients(accelerator)
            if self.max_grad_norm:  # 0 turns clipping off, as in the Trainer
                nn.utils.clip_grad_norm_(self.discriminators.parameters(), self.max_grad_norm)
            self.optimizer.step()
        self.optimizer.zero_grad()
        self._bce_sum.clear()
        self._seen.clear()

    def _own_losses(self, name: str, seen: list[Domains], generator: torch.Generator) -> list[Tensor]:
        """What one discriminator learns from: its loss on each micro-batch, and a critic's penalty."""
        discriminate = self.discriminators[name]
        losses = [self.objective(discriminate(domain.states), domain) for domain in seen]
        if self.adversary == "wasserstein":
            assert isinstance(discriminate, Discriminator)
            losses.append(self.penalty * gradient_penalty(discriminate, seen, generator))
        return losses

    def _step_bce(self, accelerator: "Accelerator | None") -> dict[str, float]:
        """Loss of each in the finished step; each process has counted its own share of the states."""
        device = next(self.discriminators.parameters()).device
        bce = torch.tensor([self._bce_sum[name] for name in self.discriminators], device=device)
        if accelerator is not None and accelerator.num_processes > 1:
            bce = accelerator.reduce(bce, "sum")
        return dict(zip(self.discriminators, bce.tolist(), strict=True))

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
        tensors["last_bce"] = torch.tensor(list(self.last_bce.values()), dtype=torch.float64)
        # save_file would make it readable for its owner alone.
        path.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def load(self, path: Path) -> None:
        """Go on from a file that `save` wrote.

        Raises:
            UserError: if its discriminators are others than these.
        """
        tensors = load_file(path)
        weights = {
            name.removeprefix("weights/"): tensor for name, tensor in tensors.items() if name.startswith("weights/")
        }
        shapes = [
            {name: tensor.shape for name, tensor in each.items()}
            for each in (weights, self.discriminators.state_dict())
        ]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{path} holds other discriminators than these settings make (layers, kind, width or ensemble "
                "differ). Resume with the settings of the run, or train into a new directory."
            )
        self.discriminators.load_state_dict(weights)
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            if name.startswith("adam/"):
                _, index, key = name.split("/")
                state[int(index)][key] = tensor
        self.optimizer.load_state_dict(
            {"state": dict(state), "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        self.last_bce = dict(zip(self.discriminators, tensors["last_bce"].tolist(), strict=True))
