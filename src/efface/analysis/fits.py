"""How are many probes of the same states trained at once? All of them see one matrix, each its own labels and rows.

A probe reads [log-odds of the token, h] and begins at what the log-odds alone say, so that a state that adds nothing
changes nothing. How far it goes from there, by the penalty of the linear one or the epoch of the other, is chosen on
groups that are kept out of its training.

Linear: logistic regression with an L2 penalty on h alone, by the bound of Boehning and Lindsay (1988) on its curvature
(p (1 - p) <= 1/4) with Nesterov's momentum: in the axes of the states one step fits every problem and penalty. One
hidden layer: rectified units on [log-odds, h], by Adam.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (10.0, 100.0, 1000.0, 10_000.0)
"""On the squared length of the weights of standardised states; 1 / C of scikit-learn."""
ITERATIONS = 80
UNITS, RATE, BATCH, DECAY = 32, 1e-3, 128, 1.0
EPOCHS, PATIENCE = 80, 8


@dataclass
class Problems:
    """P probes to be trained on the same n states."""

    labels: Tensor
    """(n, P) float, 0 or 1."""
    odds: Tensor
    """(n, P) float, of each state's token."""
    train: Tensor
    """(n, P) float, 1 on the states that are learned from."""
    check: Tensor
    """(n, P) float, 1 on those that tell how far to go."""

    def picked(self, which: Tensor) -> "Problems":
        """Some of them, or some several times."""
        return Problems(*(table[:, which] for table in (self.labels, self.odds, self.train, self.check)))


def standardised(hidden: np.ndarray) -> Tensor:
    """(n, d) float32: each coordinate with mean 0 and variance 1 over all states; constant ones are 0."""
    states = torch.from_numpy(np.ascontiguousarray(hidden, dtype=np.float32))
    centred = states - states.mean(0)
    scale = centred.pow(2).mean(0).sqrt()
    return centred / torch.where(scale > 1e-6 * scale.max(), scale, torch.inf)


def losses(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """(P,) mean cross-entropy in nats over each column's `rows`."""
    return (F.binary_cross_entropy_with_logits(logits, labels, reduction="none") * rows).sum(0) / rows.sum(0)


def calibrated(problems: Problems) -> Tensor:
    """(2, P): a and b of the best a + b odds on the states of `train`, by Newton's method."""
    m = problems.train.sum(0)
    share = (problems.labels * problems.train).sum(0) / m
    line = torch.stack([torch.logit(share.clamp(1e-4, 1 - 1e-4)), torch.ones_like(m)])
    for _ in range(12):
        p = torch.sigmoid(line[0] + line[1] * problems.odds)
        error, weight = (p - problems.labels) * problems.train, p * (1 - p) * problems.train
        gradient = torch.stack([error.sum(0), (error * problems.odds).sum(0) + 1e-3 * (line[1] - 1)], 1)  # (P, 2)
        cross = (weight * problems.odds).sum(0)
        square = (weight * problems.odds**2).sum(0) + 1e-3
        hessian = torch.stack([weight.sum(0) + 1e-6, cross, cross, square], 1).reshape(-1, 2, 2)
        line = line - torch.linalg.solve(hessian.double(), gradient.double()).to(line).T.clamp(-2, 2)
    return line


@dataclass
class Axes:
    """Standardised states in their principal axes, all of them."""

    states: Tensor
    """(n, d)"""
    variances: Tensor
    """(d,)"""

    @classmethod
    def of(cls, standard: Tensor) -> "Axes":
        variances, axes = torch.linalg.eigh(standard.T @ standard / len(standard))
        return cls(standard @ axes, variances.clamp(min=0))


def linear(axes: Axes, problems: Problems, line: Tensor, penalties: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """(n, P) logits a + b odds + w . h, with w penalised by one of `penalties` (P,) a problem; begun at `line`.

    An infinite penalty leaves `line` as it is.
    """
    alone, none = line[0] + line[1] * problems.odds, penalties.isinf()
    penalties = penalties.clamp(max=1e9)
    n, d = axes.states.shape
    m = problems.train.sum(0)
    middle = (problems.odds * problems.train).sum(0) / m
    spread = ((problems.odds - middle) ** 2 * problems.train).sum(0).div(m).sqrt().clamp(min=1e-3)
    odds = (problems.odds - middle) / spread
    # Hessian of [w, line] <= 1.5 that of w and 3 that of the line, by blocks.
    step = 1 / (1.5 * 0.25 * n * axes.variances[:, None] + penalties)  # (d, P)
    line_step = 1 / (3 * 0.25 * m)
    weight = torch.zeros(d, len(m))
    line = torch.stack([line[0] + line[1] * middle, line[1] * spread])
    ahead, line_ahead, t = weight, line, torch.ones(len(m))
    for _ in range(iterations):
        logits = axes.states @ ahead + line_ahead[0] + line_ahead[1] * odds
        error = (torch.sigmoid(logits) - problems.labels) * problems.train
        gradient = axes.states.T @ error + penalties * ahead
        line_gradient = torch.stack([error.sum(0), (error * odds).sum(0)])
        new, line_new = ahead - step * gradient, line_ahead - line_step * line_gradient
        # Momentum begins anew where it leads uphill.
        uphill = (gradient * (new - weight)).sum(0) + (line_gradient * (line_new - line)).sum(0) > 0
        t = torch.where(uphill, 1.0, t)
        later = (1 + (1 + 4 * t**2).sqrt()) / 2
        momentum = torch.where(uphill, 0.0, (t - 1) / later)
        ahead, line_ahead = new + momentum * (new - weight), line_new + momentum * (line_new - line)
        weight, line, t = new, line_new, later
    return torch.where(none, alone, axes.states @ weight + line[0] + line[1] * odds)


def chosen_penalties(axes: Axes, problems: Problems, line: Tensor, penalties: Sequence[float] = PENALTIES) -> Tensor:
    """(P,) each problem's penalty with the least loss on `check`; infinite if none beats the log-odds alone."""
    columns = torch.arange(problems.labels.shape[1]).repeat(len(penalties))
    each = torch.tensor(penalties).repeat_interleave(problems.labels.shape[1])
    several = problems.picked(columns)
    logits = linear(axes, several, line[:, columns], each)
    found = losses(logits, several.labels, several.check).reshape(len(penalties), -1)
    alone = losses(line[0] + line[1] * problems.odds, problems.labels, problems.check)
    best = found.min(0)
    return torch.where(best.values < alone, torch.tensor(penalties)[best.indices], torch.inf)


def hidden_layer(
    standard: Tensor, problems: Problems, line: Tensor, seed: int, later: Tensor | None = None, units: int = UNITS
) -> Tensor:
    """(n, P) logits a + b odds + v . relu(U [odds, h] + c), of the epoch with the least loss on `check`.

    The output layer begins at zero, and the epoch before the first is among those to choose from.

    Args:
        later: (n, P) the odds to give logits for, where they are not those of training (None).
    """
    generator = torch.Generator().manual_seed(seed)
    n, d = standard.shape
    P = problems.labels.shape[1]
    start = line[0] + line[1] * problems.odds  # (n, P)
    ask = problems.odds if later is None else later
    final = line[0] + line[1] * ask
    best = losses(start, problems.labels, problems.check)
    waited = torch.zeros(P)
    parameters = [
        torch.randn(d, P, units, generator=generator) / d**0.5,
        torch.randn(P, units, generator=generator),
        torch.zeros(P, units),
        torch.zeros(P, units),
        torch.zeros(P),
    ]
    first, second = ([torch.zeros_like(each) for each in parameters] for _ in range(2))
    running = torch.arange(P)
    base, odds, asked = start, problems.odds, ask
    labels, train = problems.labels, problems.train
    step = 0
    for _ in range(EPOCHS):
        scale = n / train.sum(0)
        for rows in torch.randperm(n, generator=generator).split(BATCH):
            step += 1
            x, y, o, r = standard[rows], labels[rows], odds[rows], train[rows]
            U, u, c, v, e = parameters
            before = (x @ U.flatten(1)).reshape(len(rows), *u.shape) + o[:, :, None] * u + c  # (B, P, units)
            active = before.clamp(min=0)
            logits = base[rows] + (active * v).sum(2) + e
            error = (torch.sigmoid(logits) - y) * r * scale / len(rows)  # (B, P)
            back = error[:, :, None] * v * (before > 0)
            gradients = [
                (x.T @ back.flatten(1)).reshape(U.shape),
                (back * o[:, :, None]).sum(0),
                back.sum(0),
                (error[:, :, None] * active).sum(0),
                error.sum(0),
            ]
            torch._foreach_lerp_(first, gradients, 0.1)
            torch._foreach_mul_(second, 0.999)
            torch._foreach_addcmul_(second, gradients, gradients, 0.001)
            rate = RATE * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
            roots = torch._foreach_sqrt(second)
            torch._foreach_add_(roots, 1e-8)
            parameters[0].mul_(1 - RATE * DECAY)
            torch._foreach_addcdiv_(parameters, first, roots, -rate)
        U, u, c, v, e = parameters
        inside = (standard @ U.flatten(1)).reshape(n, *u.shape) + c  # (n, P, units)
        added, asked_added = (((inside + o[:, :, None] * u).clamp(min=0) * v).sum(2) + e for o in (odds, asked))
        found = losses(base + added, labels, problems.check[:, running])
        better = found < best[running]
        at = running[better]
        best[at] = found[better]
        final[:, at] = (line[0, at] + line[1, at] * ask[:, at]) + asked_added[:, better]
        waited[running] = torch.where(better, 0.0, waited[running] + 1)
        keep = waited[running] < PATIENCE
        if not keep.any():
            break
        if not keep.all():
            running = running[keep]
            for group in (parameters, first, second):
                group[:] = [group[0][:, keep], *(each[keep] for each in group[1:])]
            base, odds, asked, labels, train = (table[:, keep] for table in (base, odds, asked, labels, train))
    return final
