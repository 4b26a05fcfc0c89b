"""How sure is a share of prompts or of continuations? Intervals at 95 % that hold also where it is near 0 or 1.

A percentile bootstrap knows nothing of what it has not seen: of 0 toxic prompts in 64 it says [0, 0].

One share: Wilson's interval (1927) of p out of m independent trials,

    (p + z^2 / 2m +- z sqrt(p (1 - p) / m + z^2 / 4m^2)) / (1 + z^2 / m).

With one continuation of each prompt m is the number of prompts. K continuations of a prompt are not independent: then
m is the effective size p (1 - p) / (s^2 / n) by the spread s of the prompts' own shares, as Franco, Little, Louis and
Slud (2019, "Comparative Study of Confidence Intervals for Proportions in Complex Sample Surveys") recommend, but not
below n (all K of a prompt alike) nor above nK (independent). At small shares s is itself known from a few prompts and
too small half of the time, which costs the interval its coverage (.90 at n = 64, K = 4, p = .03); so s is that of the
prompts and one more, all of whose continuations are of the rarer kind. tests/evaluation/test_proportions.py simulates
what is covered.

A paired difference: Bonett and Price (2012, "Adjusted Wald Confidence Interval for a Difference of Binomial
Proportions Based on Paired Data"): one prompt is added that differs by +1 and one by -1, then the normal interval is
taken. With K continuations the same is done with the differences of the prompts' shares.

A ratio of paired shares: MOVER (Donner and Zou 2012, "Closed-form confidence intervals for functions of the normal
mean and standard deviation", equation for a ratio), made of the intervals of both shares and their correlation.
"""

import math

import numpy as np

Z = 1.959964
MOST = 2**50
"""What is counted up to: beyond it a float does not tell one from the next."""


def count_of(share: float, n: int) -> int | None:
    """How many of `n` a share is; None where it is none of so many."""
    if not 0 < n < MOST:
        return None
    count = round(share * n)
    return count if abs(share * n - count) < 1e-6 * n else None


def share_interval(per_prompt: np.ndarray, samples: int = 1) -> tuple[float, float]:
    """Of the mean of `per_prompt`, (n,): each the share of a prompt's `samples` continuations."""
    n, p = len(per_prompt), float(np.mean(per_prompt))
    rarer = float(p <= 0.5)
    spread = np.append(per_prompt, rarer)
    q = spread.mean()
    effective = q * (1 - q) * n / spread.var() if spread.var() > 0 else math.inf
    return wilson(p, float(np.clip(effective, n, n * samples)))


def wilson(p: float, m: float) -> tuple[float, float]:
    """Of a share `p` out of `m` independent trials, which need be no whole number."""
    centre = p + Z * Z / (2 * m)
    half = Z * math.sqrt(p * (1 - p) / m + Z * Z / (4 * m * m))
    lower, upper = ((centre + sign * half) / (1 + Z * Z / m) for sign in (-1, 1))
    # Rounding must not put an end on the wrong side of the share.
    return min(max(lower, 0.0), p), max(min(upper, 1.0), p)


def paired_interval(differences: np.ndarray) -> tuple[float, float]:
    """Of the mean of `differences`, (n,): of a prompt's share under one model minus that under another, in [-1, 1]."""
    n = len(differences) + 2
    centre = differences.sum() / n
    half = Z * math.sqrt((((differences**2).sum() + 2) / n - centre**2) / n)
    return max(float(centre - half), -1.0), min(float(centre + half), 1.0)


def unpaired_interval(p: float, of_p: tuple[float, float], q: float, of_q: tuple[float, float]) -> tuple[float, float]:
    """Of p - q, two shares with their intervals: Newcombe's hybrid score interval (1998, "Interval estimation for the
    difference between independent proportions", method 10)."""
    return p - q - math.hypot(p - of_p[0], of_q[1] - q), p - q + math.hypot(of_p[1] - p, q - of_q[0])


def ratio_interval(table: np.ndarray, samples: tuple[int, int] = (1, 1)) -> tuple[float, float]:
    """Of mean(first) / mean(second), where `table`, (n, 2), holds the shares of a prompt's continuations under two
    models. (inf, inf) where the second is 0: no reduction can be shown of what is not there."""
    p, q = table.mean(0).tolist()
    if q == 0:
        return math.inf, math.inf
    (low_p, high_p), (low_q, high_q) = (share_interval(table[:, i], samples[i]) for i in range(2))
    spread = table.std(0)
    r = float(np.corrcoef(table.T)[0, 1]) if spread.all() else 0.0
    lower = _mover(p, q, low_p, high_q, p * q - r * (p - low_p) * (high_q - q), -1)
    upper = _mover(p, q, high_p, low_q, p * q - r * (high_p - p) * (q - low_q), +1)
    return min(max(lower, 0.0), p / q), max(upper, p / q)


def _mover(p: float, q: float, of_p: float, of_q: float, product: float, sign: int) -> float:
    """One end of the interval of p / q from the ends of theirs that lead to it."""
    below = of_q * (2 * q - of_q)
    if below == 0:
        return math.inf if sign > 0 else 0.0
    root = math.sqrt(max(product**2 - of_p * of_q * (2 * p - of_p) * (2 * q - of_q), 0.0))
    return (product + sign * root) / below
