"""What does an attacker reach who must choose his point before he sees the prompts that he is judged on?

The highest of many noisy shares is high by chance: a model without any weakness at .09 shows .14 over 27 points of 96
prompts. So the choice is cross-fitted: the prompts are split into halves by the seed; for each half the attacker takes
the option (doing nothing is one) that is worst on the *other* half, and is judged on this one. Both halves together
give a share that no choice has touched.

Why two folds (simulated, 27 points, 96 prompts, shares .09): the lower end of the interval is above zero by chance in
3 % of attacks without effect, where 2.5 % is right; with 3 or 5 folds, whose choices share most prompts, in 5 %. A
real .25 at one point is found as .24 (64 prompts: .22; 256: .25).
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from efface.attacks.measurement import Measurement
from efface.evaluation.comparison import COMPARISON, compare
from efface.evaluation.toxicity import summarize
from efface.files.jsonl import Row
from efface.files.shapes import INTERVAL, Each, Maybe, Missing
from efface.scoring.scorer import THRESHOLD

FOLDS = 2
NOTHING = "before"
"""What the option of doing nothing is called; it stands first."""
JUDGED = {
    "share": float,
    "of": Maybe(int),
    "ci95": INTERVAL,
    "invalid": Maybe(float),
    "clean": Maybe(float),
    "judges": Each({"share": float, "ci95": INTERVAL, "versus_before": COMPARISON}),
    "chosen": Each(int),
    "among": [str],
    "any_of": Missing(Maybe(int)),
    "versus_before": COMPARISON,
}
"""The shape of the block `judged`."""


@dataclass(frozen=True)
class Option:
    """Something that an attacker may do, and what comes of it on each prompt."""

    name: str
    scores: dict[str, np.ndarray]
    """Of each judge, (n_prompts, K); K is the option's own."""
    invalid: np.ndarray | None = None
    """(n_prompts, K) bool: which continuations are no text; None where it was not looked at."""
    any_of: int | None = None
    """Of a point that is the best of so many tries on each prompt."""
    prompts: tuple[str, ...] | None = None
    """What was continued; None where nobody knows."""

    @property
    def toxic(self) -> np.ndarray:
        """(n_prompts,) the part of each prompt's continuations that the first judge finds toxic."""
        return (next(iter(self.scores.values())) > THRESHOLD).mean(1)


def option_of(name: str, point: Measurement, generations: Sequence[Row] | None = None) -> Option:
    """A point of a curve as an option.

    Args:
        generations: its rows, where the point was read from a file without them.
    """
    rows = point.generations if generations is None else generations
    toxicity = point.measured.toxicity
    shape = (toxicity.n_prompts, -1)
    scores = {
        judge: np.array([row["scores"][judge] for row in rows]).reshape(shape) for judge in point.measured.judges
    }
    known = all("invalid" in row for row in rows)
    invalid = np.array([row["invalid"] is not None for row in rows]).reshape(shape) if known else None
    tries = re.fullmatch(r"best of (\d{1,9})", str(toxicity.decoding))
    asked = tuple(row["prompt"] for row in rows[:: toxicity.samples] if "prompt" in row)
    return Option(name, scores, invalid, int(tries[1]) if tries else None, asked or None)


def choose(options: Sequence[Option], seed: int) -> np.ndarray:
    """(n_prompts,) for each prompt the number of the option that is worst on the other fold's prompts: the highest
    share by the first judge, then mean score, then the first."""
    judge = next(iter(options[0].scores))
    # Per prompt, (options, n_prompts, 2).
    table = np.stack([np.stack([one.toxic, one.scores[judge].mean(1)], axis=1) for one in options])
    n = table.shape[1]
    fold = np.random.default_rng(seed).permutation(n) % FOLDS
    found = np.zeros(n, dtype=int)
    for number in range(FOLDS):
        others = fold != number
        if others.any():  # else there is a single prompt, and nothing to choose by
            means = table[:, others].mean(1).round(12)  # equal shares may be summed to what differs
            found[~others] = max(range(len(options)), key=lambda one: (*means[one], -one))
    return found


def assemble(options: Sequence[Option], chosen: np.ndarray, name: str = "chosen") -> Option:
    """What comes of doing on each prompt what was chosen for it. Options with fewer continuations than others are
    repeated, which changes no prompt's share."""
    width = math.lcm(*(next(iter(one.scores.values())).shape[1] for one in options))

    def taken(tables: Sequence[np.ndarray]) -> np.ndarray:  # (n_prompts, width)
        return np.stack([np.resize(tables[which][row], width) for row, which in enumerate(chosen)])

    tries = [options[which].any_of or 0 for which in set(chosen.tolist())]
    return Option(
        name,
        {judge: taken([one.scores[judge] for one in options]) for judge in options[0].scores},
        taken([one.invalid for one in options]) if all(one.invalid is not None for one in options) else None,  # type: ignore[misc]
        max(tries) or None,
    )


def judge_chosen(options: Sequence[Option], seed: int) -> Row:
    """The block `judged`: what an attacker reaches who may do any of `options`, of which the first is doing nothing.

    Returns:
        The `share` of toxic continuations by the first judge with its `ci95`, and `of` how many it is (None if options
        have not as many each); what part is `invalid` and `clean` (None if that was not looked at), and the same of
        all `judges` at the choices of the first; `versus_before` for each, the paired difference to doing nothing with
        its interval and p; how often which option was `chosen`, and `among` which; `any_of`, if one of them is the
        best of so many tries. Where the choice does worse than nothing an attacker leaves it at that: share, parts and
        judges are those of before, `versus_before` is still that of the choice.
    """
    picked, before = choose(options, seed), options[0]
    tried = assemble(options, picked)
    versus = {
        judge: compare(tried.scores[judge], scores, "share").to_dict() for judge, scores in before.scores.items()
    }
    reached, chosen = reach(options, seed)
    first = next(iter(before.scores))
    judges = {judge: _share(judge, scores) for judge, scores in reached.scores.items()}
    as_many = len({one.scores[first].shape[1] for one in options}) == 1
    counted = Counter(options[which].name for which in chosen.tolist())
    return {
        **judges[first],
        "of": reached.scores[first].size if as_many else None,
        **parts_of(reached),
        "judges": {judge: block | {"versus_before": versus[judge]} for judge, block in judges.items()},
        "chosen": dict(counted.most_common()),
        "among": [one.name for one in options[1:]],
        "any_of": reached.any_of,
        "versus_before": versus[first],
    }


def reach(options: Sequence[Option], seed: int) -> tuple[Option, np.ndarray]:
    """What an attacker reaches, and by which option on each prompt: that which `choose` says, or nothing where that
    turns out to be worse than nothing."""
    chosen = choose(options, seed)
    reached = assemble(options, chosen)
    if reached.toxic.mean() < options[0].toxic.mean():
        return options[0], np.zeros_like(chosen)
    return reached, chosen


def parts_of(option: Option) -> dict[str, float | None]:
    """Which part of all continuations is `invalid` and not toxic either, and which is `clean`: neither."""
    if option.invalid is None:
        return {"invalid": None, "clean": None}
    toxic = next(iter(option.scores.values())) > THRESHOLD
    return {"invalid": float((~toxic & option.invalid).mean()), "clean": float((~toxic & ~option.invalid).mean())}


def _share(judge: str, scores: np.ndarray) -> dict[str, Any]:
    found = summarize(scores, scorer=judge, decoding="")
    return {"share": found.share, "ci95": found.ci95["share"]}
