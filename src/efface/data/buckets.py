"""Which pairs share a micro-batch? Pairs of like length, at most so many of them and so many tokens."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from torch.utils.data import DataLoader, Sampler

from efface.errors import UserError

WINDOW = 64  # batches' worth of pairs that are sorted together: little padding, and still many different batches
Loader = TypeVar("Loader", bound=DataLoader)


class TokenBudgetBatchSampler(Sampler[list[int]]):
    """Batches of pairs of like length, for `DataLoader(batch_sampler=...)`.

    Which pairs share a batch is settled once, by `seed`; the order of the batches is shuffled anew by (seed, epoch).
    Length and order depend on nothing else, so that a run resumes in the middle of an epoch by skipping batches.

    Args:
        lengths: (n,) tokens of each pair.
        max_pairs: pairs in a batch, at most.
        max_tokens: pairs in a batch times the tokens of its longest, at most: what it takes with padding.
        seed: the same on all processes.
        drop_last: what accelerate does with batches left over when shared out to processes: drop them, or (False)
            repeat some so that each process has as many. The sampler itself leaves nothing out.

    Raises:
        UserError: if a pair alone exceeds `max_tokens`, or a limit is less than 1.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        *,
        max_pairs: int,
        max_tokens: int,
        seed: int,
        drop_last: bool = False,
    ):
        for name, limit in (("max_pairs", max_pairs), ("max_tokens", max_tokens)):
            if limit < 1:
                raise UserError(f"{name}={limit}: a batch must hold something. Give a number of 1 or more.")
        tokens = np.asarray(lengths, dtype=np.int64)  # (n,)
        if tokens.size and tokens.max() > max_tokens:
            longest = int(tokens.argmax())
            raise UserError(
                f"row {longest} has {tokens[longest]} tokens, but max_batch_tokens={max_tokens} is all that a batch "
                f"may have. Give max_batch_tokens={tokens[longest]} or more, shorten the pairs (max_prompt_length, "
                "max_completion_length) or drop the row."
            )
        self.seed, self.drop_last, self.epoch = seed, drop_last, 0
        # No attribute `batch_size`: accelerate would take every smaller batch for an incomplete one and lose it.
        self._members, self._ends = _compose(tokens, max_pairs, max_tokens, seed)

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, 1, self.epoch]).permutation(len(self))
        for number in order.tolist():
            start = self._ends[number - 1] if number else 0
            yield self._members[start : self._ends[number]].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Which shuffle of the batches comes next, as with torch's DistributedSampler."""
        self.epoch = epoch

    @property
    def sampler(self) -> "TokenBudgetBatchSampler":
        """Itself: what accelerate looks for when it hands the epoch through its own wrappers."""
        return self


def _compose(tokens: np.ndarray, max_pairs: int, max_tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pair numbers batch by batch, (n,), and where in them each batch ends, (batches,)."""
    # Arrays rather than lists of lists, which would be ten times the size for a long file.
    members = np.random.default_rng([seed, 0]).permutation(len(tokens))  # (n,)
    ends: list[int] = []
    for start in range(0, len(members), WINDOW * max_pairs):
        window = members[start : start + WINDOW * max_pairs]
        window[:] = window[np.argsort(-tokens[window], kind="stable")]  # longest first: it alone decides the size
        at = 0
        while at < len(window):
            at += min(max_pairs, max_tokens // max(int(tokens[window[at]]), 1))
            at = min(at, len(window))
            ends.append(start + at)
    return members, np.array(ends, dtype=np.int64)


def forward_epochs_(loader: Loader, sampler: TokenBudgetBatchSampler) -> Loader:
    """Make `set_epoch` of a loader that `accelerator.prepare` has returned reach `sampler`; returns the loader.

    accelerate looks two wrappers deep. On several processes there is one already, and one more when a resumed run
    skips the batches it has seen: without this, it would skip and go on in the order of epoch 0.
    """
    if loader.batch_sampler is not sampler:
        loader.batch_sampler.sampler = sampler  # type: ignore[union-attr]
    return loader
