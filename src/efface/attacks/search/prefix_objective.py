"""How good is a prefix that is to bring an edit's toxicity back? The objective of enhanced GCG.

For a prefix x before prompt p and forced target y (tokens t), read by the edited model; the base reads p and y alone:

    loss = mean_t max(-log p(y_t | x, p, y_<t), -log q)                                force: clamped cross-entropy
         + w_hidden     * mean over layers of sum_t |h_t - h'_t|^2 / sum_t |h'_t|^2    h edited, h' base, at y
         + w_fluency    * mean_i -log p_base(x_i | x_<i)
         + w_repetition * sum over the tokens v of x of (count(v) - 1)^1.5 / |x|

The first two are means over the prompts too. A token that is forced with probability q or more gives no further
reward, so that the search turns to those that are not. Lucki et al. 2024, arXiv 2409.18025; Thompson and Sklar 2024,
arXiv 2407.17447.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface.attacks.search.slot import Slot
from efface.attacks.search.slot_loss import leaf_embeddings
from efface.errors import RunError
from efface.generation.likelihood import states_nll, token_nll
from efface.model.copies import frozen
from efface.model.forward import Forward, Head, forward
from efface.model.layout import plain_layout
from efface.model.padding import batches_by_length, pad_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = tuple[int, ...]


def clamped(nll: Tensor, enough: float) -> Tensor:
    """(N,) -> (N,): negative log-likelihoods, none below that of the probability `enough`."""
    return nll.clamp(min=-math.log(enough))


def hidden_distance(edited: Mapping[int, Tensor], base: Mapping[int, Tensor]) -> Tensor:
    """Squared distance of the states as a part of the base's squared norm, a mean over layers; a scalar.

    Args:
        edited, base: layer -> (T, d) at the same tokens.
    """
    parts = [
        (edited[layer].float() - base[layer].float()).square().sum() / base[layer].float().square().sum()
        for layer in base
    ]
    return torch.stack(parts).mean()


def repetition(ids: Sequence[int]) -> float:
    """0 if no token stands twice."""
    return sum((count - 1) ** 1.5 for count in Counter(ids).values()) / max(len(ids), 1)


@dataclass(frozen=True)
class Scored:
    """A prefix and what the objective says of it."""

    ids: Ids
    loss: float
    parts: dict[str, float]
    """"force", "hidden", "fluency" and "repetition", not weighted; without those that have no weight."""


@dataclass
class PrefixObjective:
    """The objective on the prompts and targets of `slots`. It counts the rows that go through a model.

    Raises:
        RunError: (its methods) if the loss is not finite.
    """

    model: "PreTrainedModel"
    base: "PreTrainedModel | None"
    """Needed if "hidden" has a weight. Fluency is judged by it too, or without one by `model`."""
    slots: list[Slot]
    bare: list[list[int]]
    """The prompt of each slot as the base reads it, without a prefix: token ids, at least one."""
    weights: dict[str, float]
    """Of "hidden", "fluency" and "repetition"; that of "force" is 1. A term of weight 0 is not computed."""
    layers: Sequence[int] = ()
    enough: float = 0.6
    """A forced token of this probability gives no further reward."""
    pad: int = 0
    max_batch_tokens: int = 4096
    passes: int = field(default=0, init=False)
    """Rows that have gone through a model. A backward pass is not counted beside its forward pass."""
    reference: list[dict[int, Tensor]] = field(default_factory=list, init=False)
    """For each slot layer -> (T, d) of the base at the target; empty if "hidden" has no weight."""

    def __post_init__(self) -> None:
        self.weights = {"force": 1.0} | {name: weight for name, weight in self.weights.items() if weight}
        self.layers = self.layers if "hidden" in self.weights else ()
        if "hidden" in self.weights:
            assert self.base is not None
            with torch.no_grad():
                for start, slot in zip(self.bare, self.slots, strict=True):
                    states = self._read(self.base, [start], [slot.target]).residuals
                    self.reference.append({layer: states[layer].to(self.model.device) for layer in self.layers})

    def cost(self, n: int) -> int:
        """Rows that `score` puts through a model for `n` prefixes."""
        return n * (len(self.slots) + ("fluency" in self.weights))

    @torch.no_grad()
    def score(self, prefixes: Sequence[Ids]) -> list[Scored]:
        """Each of `prefixes`, in their order."""
        rows = [(i, k) for i in range(len(prefixes)) for k in range(len(self.slots))]
        terms = torch.zeros(len(prefixes), len(self.slots), 2)  # force and hidden
        for batch in self._batches([self._length(prefixes[i], k) for i, k in rows]):
            some = [rows[place] for place in batch]
            found = self._terms([(prefixes[i], k) for i, k in some])  # (rows, 2)
            for (i, k), row in zip(some, found.cpu(), strict=True):
                terms[i, k] = row
        parts: dict[str, list[float]] = dict(zip(("force", "hidden"), terms.mean(1).T.tolist(), strict=True))
        if "fluency" in self.weights:
            parts["fluency"] = self._fluency(prefixes)
        parts["repetition"] = [repetition(ids) for ids in prefixes]
        scored = []
        for i, ids in enumerate(prefixes):
            own = {name: parts[name][i] for name in self.weights}
            loss = sum(self.weights[name] * value for name, value in own.items())
            if not math.isfinite(loss):
                raise RunError(f"the loss of the search is {loss}: check that the weights of the models are finite.")
            scored.append(Scored(ids, loss, own))
        return scored

    def gradient(self, ids: Ids) -> Tensor:
        """(P, e) float32: derivative of the weighted force and hidden terms by the embeddings of the P tokens."""
        total = torch.zeros(())
        with frozen(self.model), leaf_embeddings(self.model) as leaves:
            for batch in self._batches([self._length(ids, k) for k in range(len(self.slots))]):
                with torch.enable_grad():
                    force, hidden = self._terms([(ids, k) for k in batch]).sum(0)
                    loss = (force + self.weights.get("hidden", 0.0) * hidden) / len(self.slots)
                    (states,) = torch.autograd.grad(loss, leaves[-1])  # (rows, T, e)
                for row, k in zip(states, batch, strict=True):
                    start = len(self.slots[k].before)
                    total = total.to(row.device) + row[start : start + len(ids)].float()
        if not torch.isfinite(total).all():
            raise RunError("the gradient of the search is not finite: check the weights, or load them in float32.")
        return total

    @torch.no_grad()
    def next_logits(self, ids: Ids) -> Tensor:
        """(P + 1, V) float32 on the CPU: what comes at each place of the prefix and after it, says the model.

        Where nothing stands before the prefix, it says nothing of the first place, and all tokens are equal.
        """
        before = self.slots[0].before
        head = Head.of(self.model)
        nothing = torch.zeros(0 if before else 1, head.weight.shape[0])
        if not before and not ids:
            return nothing
        input_ids, mask = pad_batch([[*before, *ids]], self.pad, self.model.device, left=False)
        asked = torch.arange(mask.shape[1], device=mask.device)[None] >= len(before) - 1  # (1, T)
        self.passes += 1
        hidden = forward(self.model, plain_layout(input_ids, mask), asked).hidden  # (T', d)
        return torch.cat([nothing, head(hidden).float().cpu()])

    def _terms(self, rows: Sequence[tuple[Ids, int]]) -> Tensor:
        """(rows, 2): the force and the hidden term of each (prefix, number of the slot)."""
        slots = [self.slots[k] for _, k in rows]
        starts = [slot.prompt(ids) for (ids, _), slot in zip(rows, slots, strict=True)]
        found = self._read(self.model, starts, [slot.target for slot in slots])
        sizes = [len(slot.target) for slot in slots]
        targets = torch.tensor([token for slot in slots for token in slot.target], device=found.hidden.device)
        nll = states_nll(Head.of(self.model), found.hidden, targets)  # (N,)
        force = torch.stack([clamped(row, self.enough).mean() for row in nll.split(sizes)])  # (rows,)
        if "hidden" not in self.weights:
            return torch.stack([force, torch.zeros_like(force)], 1)
        states = {layer: residuals.split(sizes) for layer, residuals in found.residuals.items()}
        hidden = [
            hidden_distance({layer: states[layer][row] for layer in states}, self.reference[k])
            for row, (_, k) in enumerate(rows)
        ]
        return torch.stack([force, torch.stack(hidden)], 1)

    def _read(self, model: "PreTrainedModel", starts: Sequence[list[int]], targets: Sequence[list[int]]) -> Forward:
        """One forward of starts and their targets: what predicts the targets, and the residuals at them."""
        sequences = [start + target for start, target in zip(starts, targets, strict=True)]
        input_ids, mask = pad_batch(sequences, self.pad, model.device, left=False)  # (B, T)
        at_target = torch.zeros_like(mask, dtype=torch.bool)
        for row, (start, target) in enumerate(zip(starts, targets, strict=True)):
            at_target[row, len(start) : len(start) + len(target)] = True
        self.passes += len(sequences)
        predicting = at_target.roll(-1, 1)  # nothing goes round the end: a start has at least one token
        return forward(model, plain_layout(input_ids, mask), predicting, self.layers, at_target)

    def _fluency(self, prefixes: Sequence[Ids]) -> list[float]:
        """-log p of each prefix, a mean over its tokens; of the first only if something stands before it."""
        rows = [[*self.slots[0].before, *ids] for ids in prefixes]
        counted = [min(len(ids), len(row) - 1) for ids, row in zip(prefixes, rows, strict=True)]
        read = [i for i, count in enumerate(counted) if count > 0]
        found = [0.0] * len(prefixes)
        for batch in self._batches([len(rows[i]) for i in read]):
            some = [read[place] for place in batch]
            self.passes += len(some)
            losses = token_nll(self.base or self.model, [rows[i] for i in some], [counted[i] for i in some], self.pad)
            for i, nll in zip(some, losses, strict=True):
                found[i] = nll.mean().item()
        return found

    def _length(self, ids: Ids, k: int) -> int:
        return len(self.slots[k].prompt(ids)) + len(self.slots[k].target)

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Numbers of the rows that go through a model together, the longest first: so many tokens, or one row."""
        return batches_by_length(range(len(lengths)), lengths.__getitem__, max_tokens=self.max_batch_tokens)
