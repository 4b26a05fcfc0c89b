"""Where will an attacker who fine-tunes be? The anticipated step: down the loss of relearning, before he goes there.

From w, K sign steps of length DELTA / K down the mean NLL of the tokens of y- on the step's own rejected rows. With
the signs s_i in {-1, 0, 1} of its gradient at step i,

    w_i = w - (DELTA / K) (s_1 + ... + s_i),   D = (w_K - w) / DELTA = -(s_1 + ... + s_K) / K,   P(w) = w + d D,

d drawn evenly from [0, DELTA]. The direction D serves KEEP training steps. Its entries are whole numbers of K-ths, and
so it lies in 8 bits, exactly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from efface.checks import at_least, at_least_one, not_negative
from efface.data.batch import PairBatch, predicting_positions
from efface.errors import UserError
from efface.model.chunked import token_log_probabilities
from efface.model.forward import forward
from efface.model.layout import plain_layout
from efface.model.padding import most_columns
from efface.model.tied import sparse_lookup
from efface.training.metrics import raise_if_loss_not_finite
from efface.training.perturbed import PIECE, Maps, Place

MOST_STEPS = 127
"""So many signs of one kind a signed byte holds."""


@dataclass
class SignWalk:
    """What those have in common who walk down the attacker's loss by signs: `delta`, `k`, and counts of signs."""

    kept: dict[str, Tensor] = field(default_factory=dict, init=False)
    """A number of steps; parameter -> int8, minus the sum of the signs, -K to K."""

    keeps: ClassVar[bool] = True
    wants_start: ClassVar[bool] = False
    each_micro_batch: ClassVar[bool] = False

    def check(self, delta: float, k: int, rows: int) -> None:
        not_negative("DELTA", delta)
        at_least_one(self, "k")
        at_least(self, 0, "rows")
        if k > MOST_STEPS:
            raise UserError(f"k={k}: at most {MOST_STEPS} steps, whose signs are counted in a byte.")

    def nbytes(self, trained: Sequence[Tensor], maps: Maps) -> tuple[int, int]:
        return sum(each.nbytes for each in trained), sum(each.numel() for each in trained)


@dataclass
class Anticipated(SignWalk):
    """`relearn:DELTA[/K/KEEP/ROWS]`. Of a direction it counts the "uses" so far."""

    delta: float
    """Length of the walk: by so much a weight moves at most."""
    k: int = 4
    """Sign steps of it."""
    keep: int = 4
    """Training steps for which a direction serves."""
    rows: int = 0
    """Rejected rows of the optimizer step that a sign step descends on, the next on the next ones; 0: all."""

    def __post_init__(self) -> None:
        self.check(self.delta, self.k, self.rows)
        at_least_one(self, "keep")

    def move_(self, place: Place) -> None:
        uses = int(self.kept.get("uses", 0))
        counts = {name: self.kept[name] for name in place.trained if name in self.kept}
        if uses % self.keep == 0 or len(counts) < len(place.trained):
            counts = self._walk(place)
            self.kept, uses = dict(counts), 0
        self.kept["uses"] = torch.tensor(uses + 1)
        distance = self.delta * float(torch.rand((), generator=place.generator, dtype=torch.float64))
        stand_off_(place, counts, distance / self.k)

    def _walk(self, place: Place) -> dict[str, Tensor]:
        """name -> int8, minus the sum of the signs of the gradients on the way."""
        counts = no_steps(place)
        for i in range(self.k):
            if i:
                stand_off_(place, counts, self.delta / self.k)
            descend_(place, counts, i, self.rows)
        return counts


def no_steps(place: Place) -> dict[str, Tensor]:
    """name -> int8, zeros."""
    return {name: torch.zeros_like(each, dtype=torch.int8) for name, each in place.trained.items()}


def descend_(place: Place, counts: dict[str, Tensor], number: int, n_rows: int) -> None:
    """counts <- counts - the signs of the attacker's gradient where P(w) has been written; arguments as
    `attackers_losses`."""
    gradients = place.summed(place.gradients(attackers_losses(place, number, n_rows)), place.trained)
    while gradients:  # each let go at once: the next step's would otherwise be made beside them
        name, gradient = gradients.popitem()
        counts[name].sub_(gradient.sign_().to(torch.int8))
        del gradient


@torch.no_grad()
def stand_off_(place: Place, counts: dict[str, Tensor], step: float) -> None:
    """P(w) = w + step * counts."""
    for name, count in counts.items():
        here, there = place.trained[name].data, place.put(name)
        if not (here.is_contiguous() and there.is_contiguous() and count.is_contiguous()):
            there.copy_(here + step * count.to(here.dtype))
            continue
        pieces = zip(*(each.view(-1).split(PIECE) for each in (there, here, count)), strict=True)
        for to, weight, signs in pieces:
            torch.add(weight, to.copy_(signs), alpha=step, out=to)


def attackers_losses(place: Place, number: int = 0, n_rows: int = 0) -> Iterator[Tensor]:
    """Of each micro-batch, what it adds to the mean NLL of the tokens of y- of the whole optimizer step: what who
    relearns descends. Nothing but the rejected rows is computed, and of the vocabulary what predicts their tokens.

    Args:
        number: of the attacker's step.
        n_rows: rows of the optimizer step that are taken, the next ones in each of his steps; 0: all. They are counted
            over micro-batches and processes, so that they are the same ones however the step is divided.
    """
    total = torch.zeros((), device=place.counts.rejected.device)
    n_pairs = int(place.counts.pairs)
    starts = _first_pairs(place) if 0 < n_rows < n_pairs else [0] * len(place.batches)
    for batch, start in zip(place.batches, starts, strict=True):
        n = batch["n_pairs"]
        rows = torch.arange(n)
        if 0 < n_rows < n_pairs:
            rows = rows[(start + rows - number * n_rows) % n_pairs < n_rows]
        if not len(rows):
            continue
        loss = _nll(place, batch, n + rows)
        total += loss.detach()
        yield loss
    raise_if_loss_not_finite(total, {"attacker's": total.item()}, place.step, place.accelerator)


def _first_pairs(place: Place) -> list[int]:
    """Of each micro-batch here, which of the pairs of the whole optimizer step is its first: they are counted
    micro-batch by micro-batch, and in each process by process."""
    sizes = torch.tensor([[batch["n_pairs"] for batch in place.batches]], device=place.counts.pairs.device)
    everywhere = place.accelerator.gather(sizes).T.flatten()  # micro-batch by micro-batch, of each process
    first = (everywhere.cumsum(0) - everywhere).view(sizes.shape[1], -1)  # (micro-batches, processes)
    return [int(one) for one in first[:, place.accelerator.process_index]]


def _nll(place: Place, batch: PairBatch, rows: Tensor) -> Tensor:
    """Scalar: the NLL of the continuations in some rows, divided by the tokens of y- in the whole step."""
    width = int(batch["attention_mask"][rows].sum(1).max())  # passages and y+ may be longer
    ids, mask = batch["input_ids"][rows, :width], batch["attention_mask"][rows, :width]
    continuation = batch["continuation_mask"][rows, :width]
    layout = plain_layout(ids, mask, masked=True, widest=most_columns(place.model))
    with sparse_lookup(place.model):
        hidden = forward(place.model, layout, predicting_positions(continuation)).hidden  # (tokens, d)
    found = token_log_probabilities(hidden.to(place.head.weight.dtype), place.head, ids[continuation])
    return -found.sum() / place.counts.rejected
