"""What does the token alone say of the label? Its log-odds of toxic, counted in other groups than it is used on.

With n1 and n0 how often the token is toxic and benign in the known groups, pi the share of toxic states there and
alpha a few states as of an unknown token:

    odds(token) = log (n1 + alpha pi) / (n0 + alpha (1 - pi)) - log pi / (1 - pi)

which is 0 for a token that is not among them. Groups lie in parts, and a state never counts in its own part: a token
of one group says nothing of that group, also where a probe is trained on it.
"""

from collections.abc import Sequence

import numpy as np

ALPHA = 1.0


class TokenOdds:
    """How often each token is toxic in each part.

    Args:
        labels: (n,) 0 or 1.
        token_ids: (n,)
        parts: (n,) the part of each state, from 0.
    """

    def __init__(self, labels: np.ndarray, token_ids: np.ndarray, parts: np.ndarray):
        names, self.tokens = np.unique(token_ids, return_inverse=True)
        self.parts, n_parts = parts, int(parts.max()) + 1
        place = self.tokens * n_parts + parts
        # (2, tokens, parts): benign and toxic
        self.counts = np.stack(
            [
                np.bincount(place, labels == label, len(names) * n_parts).reshape(len(names), n_parts)
                for label in (0, 1)
            ]
        )

    def log_odds(self, known: Sequence[int]) -> np.ndarray:
        """(n,) for each state, from the parts `known` without its own; 0 where they do not hold its token."""
        inside = np.zeros(self.counts.shape[2], dtype=bool)
        inside[list(known)] = True
        benign, toxic = self._without_own(self.counts[:, :, inside].sum(2), self.counts, inside)
        states = self.counts.sum(1)  # (2, parts)
        of_benign, of_toxic = states[:, inside].sum(1)[:, None] - states[:, self.parts] * inside[self.parts]
        share = (of_toxic + 0.5) / (of_toxic + of_benign + 1)  # also where no other part is known
        return np.log((toxic + ALPHA * share) / (benign + ALPHA * (1 - share))) - np.log(share / (1 - share))

    def _without_own(self, total: np.ndarray, counts: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """(2, n): (2, tokens) counts of all known parts, less those of each state's own part if it is known."""
        return total[:, self.tokens] - counts[:, self.tokens, self.parts] * inside[self.parts]
