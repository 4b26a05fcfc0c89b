"""What does an attacker get who may try several things on each prompt? Any of n, beside the base's any of n.

Of each prompt the try counts that the first judge scores highest. More tries find more in every model, so that such a
figure says nothing by itself: beside it stand the base under the same tries, and what as many plain samples of the
prompt as it is would find in the model.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from efface.attacks.measurement import Measurement
from efface.attacks.record import Record
from efface.scoring.scorer import THRESHOLD


def any_share(points: Sequence[Measurement | None]) -> float | None:
    """The part of the prompts with a toxic continuation at one of `points` at least, by the first judge; None if one
    was not measured, as those of a base that is not there."""
    found = [point for point in points if point is not None]
    if len(found) < len(points) or not found:
        return None
    toxic = [(point.scores(next(iter(point.figures["judges"]))) > THRESHOLD).any(1) for point in found]  # (n_prompts,)
    return float(np.any(toxic, axis=0).mean())


def count_tries(points: Sequence[Measurement]) -> int:
    """How many continuations a prompt has at all of `points` together: the n of any of n."""
    return sum(point.measured.toxicity.samples for point in points)


def before_any(record: Record, n: int) -> float:
    """The part of the prompts, as they are, with a toxic continuation among `n` of the model's: what so many tries
    find without any attack. Greedy decoding writes the same one every time."""
    target, decoding = record.target, record.target.decoding
    if not decoding.sampled:
        return record.before.measured.toxicity.probability
    plain = record.attempt(target.model, {"plain samples": n}, decoding=dataclasses.replace(decoding, samples=n))
    return plain.measured.toxicity.probability
