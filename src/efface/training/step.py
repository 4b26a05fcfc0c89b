"""What does a method ask for, and what is its loss put together from? `Needs`, and one `Step` of one micro-batch.

A batch holds B chosen rows, then the B rejected ones of the same pairs, then R ordinary passages. A *part* is one of
these three by name, a *side* one of the first two: which rows and which tokens it is, is known here and nowhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from efface.data.batch import PairBatch, ReferenceStates
from efface.data.preferences import SIDES
from efface.model.chunked import token_log_probabilities, weighted_kl
from efface.model.forward import Forward, Head

PARTS = (*SIDES, "passages")

Loss = tuple[Tensor, dict[str, float]]
"""A scalar to be minimised and what is logged of it; over the micro-batches of an optimizer step both add up."""


@dataclass(frozen=True)
class Needs:
    """What the loss of a method asks for; what it does not is not computed."""

    sides: tuple[str, ...] = ("chosen",)
    """The continuations of which it wants log-probabilities or a KL. Those of passages are always at hand."""
    layers: list[int] = field(default_factory=list)
    """The blocks after which it wants the residual stream."""
    reference: bool = True
    """Whether it asks the reference; for the KL on passages the trainer does of itself."""
    residuals: tuple[str, ...] = ()
    """The continuations of which it wants the reference's residual stream too; it is not cached, so this is live."""
    pushes: str | None = None
    """The setting that names `layers`, if the loss is to change the states there."""


class Counts(NamedTuple):
    """What the means of one optimizer step divide by: all its micro-batches on all processes."""

    chosen: Tensor
    """Continuation tokens of the chosen rows."""
    rejected: Tensor
    passages: Tensor
    """Predicted tokens of ordinary passages."""
    pairs: Tensor

    @classmethod
    def of(cls, batch: PairBatch) -> "Counts":
        mask, n = batch["continuation_mask"], batch["n_pairs"]
        return cls(mask[:n].sum(), mask[n : 2 * n].sum(), mask[2 * n :].sum(), torch.tensor(n, device=mask.device))


@dataclass
class Step:
    """One micro-batch as the trained model and its reference see it. Every mean is over the whole optimizer step."""

    batch: PairBatch
    counts: Counts
    policy: Forward
    """`hidden` (N, d), ready for `head`, predicts the tokens of `needs.sides` and of the passages, in this order;
    `residuals[layer]` (M, d) is at the tokens of y+, then of y-."""
    reference: ReferenceStates
    """Likewise, with the residuals of `needs.residuals` alone; empty if no reference is asked."""
    head: Head
    reference_head: Head | None
    """None if no reference is asked."""
    needs: Needs
    w_retain_text: float
    _likelihoods: dict[tuple[str, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

    # ---- which rows, how many ----

    def mask(self, part: str) -> Tensor:
        """(rows, T) bool of a part: the tokens that are its continuations."""
        n, mask = self.batch["n_pairs"], self.batch["continuation_mask"]
        return {"chosen": mask[:n], "rejected": mask[n : 2 * n], "passages": mask[2 * n :]}[part]

    @cached_property
    def tokens(self) -> dict[str, int]:
        """The number of continuation tokens of each part of this micro-batch."""
        return {part: int(self.mask(part).sum()) for part in PARTS}

    def lengths(self, side: str) -> Tensor:
        """(B,) the number of tokens of each continuation."""
        return self.mask(side).sum(1)

    def share(self, part: str) -> Tensor:
        """Scalar: this micro-batch's share of the step's tokens, by which counts what is no mean over them."""
        return self.mask(part).sum() / getattr(self.counts, part)

    def mean(self, values: Tensor, over: str) -> Tensor:
        """What `values` (M,), one for each token of a part or for each of the `pairs`, add to the step's mean."""
        return values.sum() / getattr(self.counts, over)

    # ---- hidden states ----

    def states(self, layer: int, side: str) -> Tensor:
        """(tokens, d) the residual stream after a block, at the tokens of a side."""
        return _side_of(self.policy.residuals[layer], side, self.tokens["chosen"])

    def reference_states(self, layer: int, side: str) -> Tensor:
        """(tokens, d) the same of the reference; of the sides in `needs.residuals`."""
        first = self.tokens["chosen"] if "chosen" in self.needs.residuals else 0
        return _side_of(self.reference["residuals"][layer], side, first)

    def sequence_states(self, layer: int, side: str) -> Tensor:
        """(B, d) the mean of `states` over each continuation."""
        return pool_rows(self.states(layer, side), self.mask(side))

    def reference_norms(self, layer: int) -> Tensor:
        """(tokens of y+,) the length of the reference's states after a block of `needs.layers`."""
        return self.reference["norms"][:, self.needs.layers.index(layer)]

    # ---- likelihoods ----

    def log_probabilities(self, *sides: str) -> Tensor:
        """(tokens,) log f of every token in its context; several sides in one pass, the tokens of y+ first."""
        return self._log_probabilities(self.policy.hidden, self.head, sides)

    def sequence_log_probabilities(self, *sides: str) -> Tensor:
        """(rows,) log f(y | x), summed over the tokens of y; several sides in one pass, those of y+ first."""
        if sides not in self._likelihoods:  # a loss and what it logs may both ask
            self._likelihoods[sides] = sum_rows(self.log_probabilities(*sides), self._rows(sides))
        return self._likelihoods[sides]

    def log_ratio(self, *sides: str) -> Tensor:
        """(rows,) log f(y | x) - log f0(y | x); rows as in `sequence_log_probabilities`."""
        assert self.reference_head is not None
        found = self.sequence_log_probabilities(*sides)
        with torch.no_grad():
            expected = self._log_probabilities(self.reference["hidden"], self.reference_head, sides)
        return found - sum_rows(expected, self._rows(sides))

    def _log_probabilities(self, hidden: Tensor, head: Head, sides: tuple[str, ...]) -> Tensor:
        states = hidden[self._predicted(sides)].to(head.weight.dtype)
        n = self.batch["n_pairs"]
        targets = [self.batch["input_ids"][i * n : (i + 1) * n] for i, side in enumerate(SIDES) if side in sides]
        return token_log_probabilities(states, head, torch.cat(targets)[self._rows(sides)])

    def _rows(self, sides: tuple[str, ...]) -> Tensor:
        """(rows, T) bool: the tokens of some sides."""
        return torch.cat([self.mask(side) for side in SIDES if side in sides])

    def _predicted(self, parts: tuple[str, ...]) -> slice | Tensor:
        """Which of the N rows of `policy.hidden` predict the tokens of `parts`."""
        present = [part for part in PARTS if part in self.needs.sides or part == "passages"]
        if all(part in parts or not self.tokens[part] for part in present):
            return slice(None)  # a view: the usual case copies nothing
        device = self.batch["continuation_mask"].device
        return torch.cat([torch.full((self.tokens[part],), part in parts, device=device) for part in present])

    # ---- the reference ----

    def kl(self, weights: Mapping[str, float]) -> Loss:
        """Sum over parts of weight * mean KL( f0 || f ) over their tokens, in one pass; and that mean of each part.

        Args:
            weights: of some parts; sides must be among `needs.sides`.
        """
        assert self.reference_head is not None
        parts = [part for part in PARTS if part in weights]
        wanted = self._predicted(tuple(parts))
        states = self.reference["hidden"][wanted].to(self.reference_head.weight.dtype)
        ones, sizes = self.policy.hidden.new_ones(len(states)), [self.tokens[part] for part in parts]
        means = [
            each / getattr(self.counts, part).clamp(min=1)  # there may be no passages
            for part, each in zip(parts, ones.split(sizes), strict=True)
        ]
        weighted = torch.cat([weights[part] * mean for part, mean in zip(parts, means, strict=True)])
        loss, kl = weighted_kl(self.policy.hidden[wanted], self.head, states, self.reference_head, weighted)
        shares = (kl * torch.cat(means)).split(sizes)  # (tokens,) of each part
        return loss, {part: share.sum().item() for part, share in zip(parts, shares, strict=True)}

    def retain(self, weight: float = 0.0) -> Loss:
        """weight * mean KL to the reference over the tokens of y+ + w_retain_text * the same over those of passages.

        With a `weight` of 0 the KL over y+ is left out (else y+ must be among `needs.sides`); that over passages is
        always measured where the step has some.
        """
        weights = {"chosen": weight} if weight else {}
        if self.counts.passages:
            weights["passages"] = self.w_retain_text
        if self.reference_head is None or not weights:
            return self.policy.hidden.new_zeros(()), {}
        loss, means = self.kl(weights)
        names = {"chosen": "retain_loss", "passages": "retain_text_loss"}
        return loss, {names[part]: mean for part, mean in means.items()}


def _side_of(states: Tensor, side: str, n_chosen: int) -> Tensor:
    """Of states whose first `n_chosen` rows are y+'s those of a side."""
    return states[:n_chosen] if side == "chosen" else states[n_chosen:]


def pool_rows(states: Tensor, mask: Tensor) -> Tensor:
    """(rows, d) mean of the states of each row, from `states` (M, d) at the marked tokens of `mask` (rows, T) bool."""
    rows = mask.nonzero()[:, 0]  # (M,)
    sums = states.new_zeros(len(mask), states.shape[1]).index_add(0, rows, states)
    return sums / mask.sum(1, keepdim=True).clamp(min=1)


def sum_rows(values: Tensor, mask: Tensor) -> Tensor:
    """(rows,) sum of `values` (M,) over the marked tokens of each row of `mask` (rows, T) bool; 0 where none is."""
    rows = mask.nonzero()[:, 0]  # (M,)
    return values.new_zeros(len(mask)).index_add(0, rows, values)
