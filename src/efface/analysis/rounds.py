"""On which groups is a probe trained, by which is it stopped, and which is it asked about?

Groups are dealt to twenty parts. In cross-validation every fifth part is asked about, three others stop the training;
in online coding the next parts are asked about, by what was learned from those before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efface.analysis.heldout import HeldOut
from efface.analysis.token_odds import TokenOdds

PARTS, FOLDS = 20, 5
CHECKED = 3
"""Parts that stop the training of a fold."""
PORTIONS = (2, 5, 10, 20)
"""Parts that are known when the next ones are coded; a fifth of them stops the training."""


@dataclass(frozen=True, eq=False)
class Split:
    """One probe's rows: what it is trained on, what it is stopped by, and where it is asked."""

    labels: np.ndarray
    """(n,)"""
    first: np.ndarray
    """(n,) log-odds while it is trained, from the parts of `train`."""
    later: np.ndarray
    """(n,) log-odds where it is asked, from those of `check` too."""
    train: np.ndarray
    """(n,) bool"""
    check: np.ndarray
    asked: np.ndarray


@dataclass(frozen=True, eq=False)
class Rounds:
    """The splits of one labelling."""

    labels: np.ndarray
    odds: TokenOdds

    @classmethod
    def of(cls, held_out: HeldOut, labels: np.ndarray, token_ids: np.ndarray) -> "Rounds":
        return cls(labels, TokenOdds(labels, token_ids, held_out.dealt(labels, PARTS)))

    def folds(self) -> list[Split]:
        """Cross-validation: every state is asked once."""
        found = []
        for fold in range(FOLDS):
            rest = [part for part in range(PARTS) if part % FOLDS != fold]
            check = [part for part in rest if part % FOLDS == (fold + 1) % FOLDS][:CHECKED]
            found.append(self._split(rest, check, range(fold, PARTS, FOLDS)))
        return found

    def portions(self) -> list[Split]:
        """Online coding: each is asked of the next parts."""
        pairs = zip(PORTIONS, PORTIONS[1:], strict=False)
        return [self._split(range(known), range(max(1, known // 5)), range(known, end)) for known, end in pairs]

    def _split(self, known: Sequence[int], check: Sequence[int], asked: Sequence[int]) -> Split:
        train = [part for part in known if part not in check]
        rows = (np.isin(self.odds.parts, parts) for parts in (train, check, asked))
        return Split(self.labels, self.odds.log_odds(train), self.odds.log_odds(known), *rows)
