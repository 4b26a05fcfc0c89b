"""What are losses put together from? Counts to divide by, the KL to the reference, log-probabilities of tokens."""

from typing import NamedTuple

import torch
from torch import Tensor

from efface.data.batch import PairBatch, ReferenceStates
from efface.data.preferences import SIDES
from efface.model.chunked import token_log_probabilities, weighted_kl
from efface.model.forward import Forward, Head
from efface.training.config import PairConfig


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


class LossTerms:
    """The terms that a `PairTrainer` offers to the `loss` of its methods."""

    args: PairConfig
    sides: tuple[str, ...]
    head: Head
    reference_head: Head | None

    def retain_loss(
        self,
        policy: Forward,
        reference: ReferenceStates,
        batch: PairBatch,
        counts: Counts,
        weight: float,
    ) -> tuple[Tensor, dict[str, float]]:
        """weight * mean KL to the reference over the tokens of y+ + w_retain_text * the same over those of passages.

        With a `weight` of 0 the KL over y+ is left out (else y+ must be among `sides`); that over passages is always
        measured where there are some.
        """
        if self.reference_head is None or not (weight or counts.passages):
            return policy.hidden.new_zeros(()), {}
        wanted = self.predicted(batch, "chosen" if weight else None, "passages")
        states = reference["hidden"][wanted].to(self.reference_head.weight.dtype)
        n = int(batch["continuation_mask"][: batch["n_pairs"]].sum()) if weight else 0
        means = policy.hidden.new_ones(len(states))  # (N,) chosen tokens first, then passages
        means[:n] /= counts.chosen
        means[n:] /= counts.passages.clamp(min=1)  # there may be none
        weights = torch.cat([weight * means[:n], self.args.w_retain_text * means[n:]])
        loss, kl = weighted_kl(policy.hidden[wanted], self.head, states, self.reference_head, weights)
        metrics = {"retain_loss": (kl * means)[:n].sum().item()} if weight else {}
        if counts.passages:
            metrics["retain_text_loss"] = (kl * means)[n:].sum().item()
        return loss, metrics

    def log_probabilities(self, hidden: Tensor, head: Head, batch: PairBatch, *sides: str) -> Tensor:
        """(tokens,) log-probability of every token of y+ and y- (those in `sides`, in this order) in its context.

        Args:
            hidden: `policy.hidden` with `self.head`, or `reference["hidden"]` with `self.reference_head`.
        """
        wanted = batch["continuation_mask"].clone()
        n = batch["n_pairs"]
        for i, side in enumerate(SIDES):
            wanted[i * n : (i + 1) * n] &= side in sides
        wanted[2 * n :] = False
        states = hidden[self.predicted(batch, *sides)].to(head.weight.dtype)
        return token_log_probabilities(states, head, batch["input_ids"][wanted])

    def predicted(self, batch: PairBatch, *parts: str | None) -> slice | Tensor:
        """Which of the N rows of `policy.hidden` predict the tokens of `parts`: "chosen", "rejected", "passages"."""
        n, mask = batch["n_pairs"], batch["continuation_mask"]
        sizes = {
            "chosen": int(mask[:n].sum()),
            "rejected": int(mask[n : 2 * n].sum()),
            "passages": int(mask[2 * n :].sum()),
        }
        present = [name for name in sizes if name in self.sides or name == "passages"]
        if all(name in parts or not sizes[name] for name in present):
            return slice(None)  # a view: the usual case copies nothing
        flags = [torch.full((sizes[name],), name in parts, device=mask.device) for name in present]
        return torch.cat(flags)
