"""How much of an edit does a utility budget allow? The largest a at which base + a edit stays within all its bounds.

    KL( base || base + a edit ) <= kl nats a token    and    perplexity <= (1 + perplexity) that of the base

on ordinary text, and what is written is no gibberish (a guard, asked last, since it costs most). Methods are compared
there: an edit that is merely stronger would else look better.

Found by bisection between an a that fits and one that does not. Costs grow about with a^2, so the next a is where the
line through the square roots of the costs meets the bound, kept away from both ends; four or five readings do. Where
the guard refuses what costs allow, the gap between what it takes and what it refuses is halved until it is within the
tolerance too. **Costs need not grow with a.** Nothing here relies on it: what is returned has itself been measured to
fit, every a that was read below it fits, and the next larger one that was read, within the tolerance, does not (or it
is the most). Should an edit cost less again further out, that is beyond an a that failed, and is not taken.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from efface.checks import all_finite, not_negative, positive

KL, PERPLEXITY, GUARD, MOST = "kl", "perplexity", "guard", "most"
"""What can bind: the bounds, or that no more was asked for."""


@dataclass(frozen=True)
class UtilityBounds:
    """What an edit may cost on ordinary text."""

    kl: float = 0.05
    """KL to the base, in nats a token."""
    perplexity: float = 0.03
    """By what part perplexity may rise."""

    def __post_init__(self) -> None:
        all_finite(self)
        not_negative("kl", self.kl)
        not_negative("perplexity", self.perplexity)


@dataclass(frozen=True)
class Cost:
    """What an edit costs on ordinary text; None for what is not finite."""

    kl: float | None
    perplexity: float | None
    """The value, not the rise."""


@dataclass(frozen=True)
class CostReading:
    """What was found at one multiple of the edit."""

    a: float
    kl: float | None
    perplexity: float | None
    increase: float | None
    """Of perplexity over the base's, as a part."""
    guard: str | None
    """What the guard said: "ok", or why not; None where it was not asked."""
    exceeded: list[str] = field(default_factory=list)
    """Which bounds it breaks."""

    @property
    def fits(self) -> bool:
        return not self.exceeded

    def to_dict(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return asdict(self)


@dataclass(frozen=True)
class FittedScale:
    """How much of an edit a budget allows."""

    a: float | None
    """None if nothing above 0 that was tried fits."""
    binding: list[str]
    """What keeps it from being larger: bounds that the next larger reading breaks, or "most"."""
    readings: list[CostReading]
    """In the order in which they were made."""

    def to_dict(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return {"a": self.a, "binding": self.binding, "readings": [one.to_dict() for one in self.readings]}


def fit_scale(
    cost: Callable[[float], Cost],
    base_perplexity: float,
    bounds: UtilityBounds = UtilityBounds(),
    *,
    guard: Callable[[float], str] | None = None,
    most: float = 2.0,
    tolerance: float = 0.02,
    readings: int = 12,
    guard_readings: int = 12,
) -> FittedScale:
    """The largest a, 0 < a <= most, at which base + a edit stays within `bounds`; see the top of this file.

    Args:
        cost: what base + a edit costs.
        base_perplexity: of the base on the same text.
        guard: says "ok" of base + a edit, or why it is not; asked at what fits otherwise.
        tolerance: how near to the largest, in a; also, as a part of a bound, how near to it is near enough.
        readings: of `cost`, at most, but for those that the guard asks for.
        guard_readings: how often the guard is asked, at most.
    """
    positive("most", most)
    positive("tolerance", tolerance)
    positive("base_perplexity", base_perplexity)
    found: list[CostReading] = []

    def read(a: float) -> CostReading:
        known = [one for one in found if one.a == a]
        if not known:
            found.append(judge_cost(a, cost(a), base_perplexity, bounds))
        return (known or found[-1:])[0]

    def ask(one: CostReading) -> CostReading:
        said = "ok" if guard is None or not one.fits else guard(one.a)
        asked = one if guard is None or not one.fits else _with_guard(one, said)
        found[found.index(one)] = asked
        return asked

    low, high = _between_bounds(read, bounds, most, tolerance, readings)
    if low is None:
        return FittedScale(None, high.exceeded if high is not None else [], found)
    best = ask(low)
    if best.fits:
        return FittedScale(best.a, [MOST] if high is None else high.exceeded, found)
    return _below_guard(read, ask, best, tolerance, guard_readings - 1, found)


def fit_as_it_is(
    cost: Callable[[float], Cost],
    base_perplexity: float,
    bounds: UtilityBounds = UtilityBounds(),
    *,
    guard: Callable[[float], str] | None = None,
) -> FittedScale:
    """Whether the edit stays within `bounds` as it is: a is 1, or None. Arguments as `fit_scale`."""
    positive("base_perplexity", base_perplexity)
    one = judge_cost(1.0, cost(1.0), base_perplexity, bounds)
    if one.fits and guard is not None:
        one = _with_guard(one, guard(1.0))
    return FittedScale(1.0, [MOST], [one]) if one.fits else FittedScale(None, one.exceeded, [one])


def judge_cost(a: float, cost: Cost, base_perplexity: float, bounds: UtilityBounds) -> CostReading:
    """Which bounds a cost breaks; what is not finite breaks both."""
    kl, value = (None if one is None or not math.isfinite(one) else one for one in (cost.kl, cost.perplexity))
    increase = None if value is None else value / base_perplexity - 1
    exceeded = [KL] if kl is None or kl > bounds.kl else []
    exceeded += [PERPLEXITY] if increase is None or increase > bounds.perplexity else []
    return CostReading(a, kl, value, increase, None, exceeded)


def _with_guard(one: CostReading, said: str) -> CostReading:
    return CostReading(one.a, one.kl, one.perplexity, one.increase, said, [] if said == "ok" else [GUARD])


def _between_bounds(
    read: Callable[[float], CostReading], bounds: UtilityBounds, most: float, tolerance: float, readings: int
) -> tuple[CostReading | None, CostReading | None]:
    """The largest reading that fits and the smallest above it that does not; None for what there is not."""
    low: CostReading | None = None
    high: CostReading | None = None
    a = min(1.0, most)
    for count in range(readings):
        one = read(a)
        if one.fits:
            low = one
        else:
            high = one
        if low is not None and low.a == most:
            return low, None
        start = 0.0 if low is None else low.a
        end = most if high is None else high.a
        if high is not None and end - start <= tolerance * 0.1 * most:
            break
        if low is not None and high is not None and (end - start <= tolerance or _near(low, bounds, tolerance)):
            break
        a = _next(low, high, bounds, start, end, halve=count % 3 == 2, tolerance=tolerance)
    return low, high


def _next(
    low: CostReading | None,
    high: CostReading | None,
    bounds: UtilityBounds,
    start: float,
    end: float,
    *,
    halve: bool,
    tolerance: float,
) -> float:
    """Where to look next, strictly between `start` and `end`, or at `end` while nothing has failed."""
    left, right = 0.0 if low is None else _load(low, bounds), math.inf if high is None else _load(high, bounds)
    if high is None:
        assert low is not None  # something has been read
        guess = start * 1.05 / left if left > 0 else end  # a little further: one that fails is needed too
        return min(guess, end) if guess > start * (1 + tolerance) else min(start * (1 + 2 * tolerance), end)
    if halve or not math.isfinite(right) or right <= left:
        return (start + end) / 2
    guess = start + (end - start) * (0.99 - left) / (right - left)
    edge = 0.05 * (end - start)
    return min(max(guess, start + edge), end - edge)


def _load(one: CostReading, bounds: UtilityBounds) -> float:
    """How full the fuller of the bounds is, as a square root: about proportional to a, 1 at the bound."""
    parts = []
    for value, bound in ((one.kl, bounds.kl), (one.increase, bounds.perplexity)):
        if value is None:
            return math.inf
        parts.append(max(value, 0.0) / bound if bound else (math.inf if value > 0 else 0.0))
    return math.sqrt(max(parts))


def _near(one: CostReading, bounds: UtilityBounds, tolerance: float) -> bool:
    return _load(one, bounds) ** 2 >= 1 - tolerance


def _below_guard(
    read: Callable[[float], CostReading],
    ask: Callable[[CostReading], CostReading],
    high: CostReading,
    tolerance: float,
    times: int,
    found: list[CostReading],
) -> FittedScale:
    """Halve between 0 and what the guard refuses; it is asked first of what has been read between, since that costs
    nothing but its answer."""
    low: CostReading | None = None
    for _ in range(times):
        start = 0.0 if low is None else low.a
        between = [one.a for one in found if start < one.a < high.a]
        middle, gap = (start + high.a) / 2, high.a - start
        if gap <= tolerance and not between:
            break
        known = [a for a in between if gap <= tolerance or abs(a - middle) <= gap / 4]
        one = ask(read(min(known, key=lambda a: abs(a - middle), default=middle)))
        low, high = (one, high) if one.fits else (low, one)
    return FittedScale(None if low is None else low.a, high.exceeded, found)
