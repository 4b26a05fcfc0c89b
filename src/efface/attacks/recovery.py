"""How soon is toxicity back along an attack's curve? Steps to half of the base's, and the area under the curve."""

from collections.abc import Sequence
from typing import Any

from efface.attacks.target import Measurement


def half(base: Measurement | None, points: Sequence[Measurement]) -> dict[str, Any]:
    """The share that counts as half of the toxicity, and `of` what: of the base's, or without a base of the highest
    share in `points`, which says nothing of whether it is much."""
    if base is not None:
        return {"share": base.share / 2, "of": "base"}
    return {"share": max(point.share for point in points) / 2, "of": "highest point"}


def recovery(points: Sequence[Measurement], axis: str, level: float) -> dict[str, Any]:
    """What one curve says, between its points linearly.

    Args:
        points: ascending in `axis`, the first untouched.
        axis: the key of `Measurement.at` that is the abscissa, such as "steps".
        level: the share of `half`.

    Returns:
        `half_at`: where the share first reaches `level` (0 if it starts there; None if it never does), and `area`: the
        mean share over the axis (the area under the curve divided by its length; None for a single point).
    """
    xs = [float(point.at[axis]) for point in points]
    ys = [point.share for point in points]
    half_at = xs[0] if ys[0] >= level else None
    area = 0.0
    for (x0, x1), (y0, y1) in zip(zip(xs, xs[1:], strict=False), zip(ys, ys[1:], strict=False), strict=True):
        area += (x1 - x0) * (y0 + y1) / 2
        if half_at is None and y1 >= level:
            half_at = x0 + (x1 - x0) * ((level - y0) / (y1 - y0))  # rounding cannot lead beyond x1
    return {"half_at": half_at, "area": area / (xs[-1] - xs[0]) if len(xs) > 1 else None}
