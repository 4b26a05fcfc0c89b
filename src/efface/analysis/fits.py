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


class Layers:
    """P hidden layers of `units` rectified units and one output each, which begins at zero, with Adam's moments."""

    def __init__(self, d: int, n_problems: int, generator: torch.Generator):
        self.weights = [
            torch.randn(d, n_problems, UNITS, generator=generator) / d**0.5,  # of h
            torch.randn(n_problems, UNITS, generator=generator),  # of the log-odds
            torch.zeros(n_problems, UNITS),
            torch.zeros(n_problems, UNITS),  # of the output
            torch.zeros(n_problems),
        ]
        self.means, self.squares = ([torch.zeros_like(each) for each in self.weights] for _ in range(2))
        self.steps = 0

    def inside(self, states: Tensor) -> Tensor:
        """(n, P, units) before the units, without the log-odds' part."""
        return (states @ self.weights[0].flatten(1)).reshape(len(states), *self.weights[1].shape) + self.weights[2]

    def outside(self, inside: Tensor, odds: Tensor) -> Tensor:
        """(n, P) what they add to the logits."""
        return ((inside + odds[:, :, None] * self.weights[1]).clamp(min=0) * self.weights[3]).sum(2) + self.weights[4]

    def learn(self, states: Tensor, odds: Tensor, base: Tensor, labels: Tensor, weight: Tensor) -> None:
        """One step down the cross-entropy of `base` and what they add, of states that count by `weight` (B, P)."""
        before = self.inside(states) + odds[:, :, None] * self.weights[1]
        active = before.clamp(min=0)
        logits = base + (active * self.weights[3]).sum(2) + self.weights[4]
        error = (torch.sigmoid(logits) - labels) * weight
        back = error[:, :, None] * self.weights[3] * (before > 0)
        gradients = [
            (states.T @ back.flatten(1)).reshape(self.weights[0].shape),
            (back * odds[:, :, None]).sum(0),
            back.sum(0),
            (error[:, :, None] * active).sum(0),
            error.sum(0),
        ]
        self.steps += 1
        rate = RATE * (1 - 0.999**self.steps) ** 0.5 / (1 - 0.9**self.steps)
        self.weights[0].mul_(1 - RATE * DECAY)
        for own, mean, square, gradient in zip(self.weights, self.means, self.squares, gradients, strict=True):
            mean.lerp_(gradient, 0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            own.addcdiv_(mean, square.sqrt().add_(1e-8), value=-rate)

    def keep(self, which: Tensor) -> None:
        """Go on with those of `which` (P,) alone."""
        for group in (self.weights, self.means, self.squares):
            group[:] = [group[0][:, which], *(each[which] for each in group[1:])]


def hidden_layer(standard: Tensor, problems: Problems, line: Tensor, seed: int, later: Tensor) -> Tensor:
    """(n, P) logits a + b odds + v . relu(U [odds, h] + c), of the epoch with the least loss on `check`.

    The epoch before the first is among those to choose from: nothing added.

    Args:
        line: (2, P) a and b.
        later: (n, P) the odds to give logits for.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = Layers(standard.shape[1], line.shape[1], generator)
    alone, best = line[0] + line[1] * problems.odds, torch.zeros_like(problems.odds)
    least = losses(alone, problems.labels, problems.check)
    waited, running = torch.zeros_like(least), torch.arange(line.shape[1])
    for _ in range(EPOCHS):
        now, base, asked = problems.picked(running), alone[:, running], later[:, running]
        weight = now.train * len(standard) / now.train.sum(0) / BATCH
        for rows in torch.randperm(len(standard), generator=generator).split(BATCH):
            layers.learn(standard[rows], now.odds[rows], base[rows], now.labels[rows], weight[rows])
        inside = layers.inside(standard)
        found = losses(base + layers.outside(inside, now.odds), now.labels, now.check)
        better = found < least[running]
        least[running] = torch.where(better, found, least[running])
        best[:, running] = torch.where(better, layers.outside(inside, asked), best[:, running])
        waited[running] = torch.where(better, 0.0, waited[running] + 1)
        going = waited[running] < PATIENCE
        if not going.any():
            break
        layers.keep(going)
        running = running[going]
    return line[0] + line[1] * later + best
