"""Are the neurons that an edit has moved the ones that write toxicity? More than chance, by a permutation test.

Of all neurons those with the most change and those with the most of something else (such as `Writing.contributions`),
the same number of each: their overlap against the overlap if within every layer the neurons had changed places. So
that a layer that moves as a whole and is toxic as a whole proves nothing. `fold` is the overlap over its expectation:
1 by chance, 1 / share at the most.
"""

import numpy as np

from efface.errors import UserError
from efface.files.jsonl import Row

SHARE = 0.01
PERMUTATIONS = 2000


def enrichment(
    moved: np.ndarray,
    other: np.ndarray,
    *,
    share: float = SHARE,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Row:
    """How many of the neurons with the largest `moved` are among those with the largest `other`.

    Args:
        moved, other: (layers, d_ff) for each neuron.
        share: of all neurons that are "the largest"; at least one.

    Returns:
        `n` neurons on each side, `overlap`, `expected` by chance, `fold`, and `p`, one-sided, never below
        1 / (permutations + 1). If nothing has moved, `overlap` is 0, `fold` and `p` are null.

    Raises:
        UserError: if the tables do not fit together.
    """
    if moved.shape != other.shape or moved.ndim != 2:
        raise UserError(f"tables of {moved.shape} and {other.shape} neurons: two of (layers, d_ff) are needed.")
    n = max(round(share * moved.size), 1)
    if not moved.any():
        return {"n": n, "overlap": 0, "expected": 0.0, "fold": None, "p": None}
    a, b = (_largest(table, n) for table in (moved, other))
    overlap = int((a & b).sum())
    # Within a layer the overlap of k and m of d neurons is hypergeometric; layers are drawn apart.
    k, m, d = a.sum(1), b.sum(1), a.shape[1]
    drawn = np.random.default_rng(seed).hypergeometric(k, d - k, m, size=(permutations, len(k))).sum(1)
    expected = float((k * m / d).sum())
    p = (1 + int((drawn >= overlap).sum())) / (permutations + 1)
    return {
        "n": n,
        "overlap": overlap,
        "expected": expected,
        "fold": overlap / expected if expected else None,
        "p": p,
    }


def _largest(table: np.ndarray, n: int) -> np.ndarray:
    """Which n entries are the largest, the first of equals."""
    found = np.zeros(table.size, dtype=bool)
    found[np.argsort(-table.ravel(), kind="stable")[:n]] = True
    return found.reshape(table.shape)
