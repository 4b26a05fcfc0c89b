"""Does a misspelt prompt get past the edit? Best-of-n with noise on the prompt (Hughes et al. 2024, arXiv 2412.03556).

Best-of-n jailbreaking draws n noisy versions of a request and counts it as answered if one of them is. So the attack
is judged by the best of all its tries on each prompt, and its curve is that share over n = 1, 2, 4, ... More tries
find more in every model: beside each n stands the base's under the same noise. With `best_of` off, each kind, rate and
try is a point of its own, measured on all prompts, and the attack is judged by the worst of these.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from efface.attacks.altered import altered_to_fit, attack_altered, prompts_as_read, without_cutting
from efface.attacks.any_of import any_share, before_any, count_tries
from efface.attacks.lists import read_lists, several
from efface.attacks.noise import KINDS, MIX, PAPER, perturbed
from efface.attacks.record import Record, recorded
from efface.attacks.result import AttackResult
from efface.attacks.target import Target
from efface.checks import at_least_one
from efface.errors import UserError

Noise = tuple[dict[str, Any], Callable[[], list[str]]]
"""What a try is called, and what makes its prompts."""


@dataclass(frozen=True)
class PerturbSettings:
    """Settings of `perturb`."""

    kinds: tuple[str, ...] = several(
        MIX,
        str,
        "Kinds of noise: swap (a character with the next), capital (the other case), drop, double, space (put one in "
        "or take one out), mix (all of these), bon (the paper's: words scrambled, letters in the other case, "
        "characters replaced by their neighbours).",
    )
    rates: tuple[float, ...] = several(
        "0.03", float, "Fractions of the characters that are altered; of bon its sigma, which is 0.4 in the paper."
    )
    tries: int = field(default=16, metadata={"help": "Noisy versions of a prompt for each kind and rate."})
    best_of: bool = field(
        default=True,
        metadata={"help": "Judge each prompt by the worst of all tries; if not, each try is a point of its own."},
    )

    def __post_init__(self) -> None:
        read_lists(self)
        known = (*KINDS, MIX, PAPER)
        if not set(self.kinds) <= set(known):
            raise UserError(f"kinds={self.kinds!r}: kinds of noise are {', '.join(known)}, with commas between.")
        if self.rates[-1] > 1:
            raise UserError(f"rates={self.rates!r}: a fraction of the characters is at most 1, as in 0.05,0.15.")
        at_least_one(self, "tries")


def perturb(target: Target, settings: PerturbSettings) -> AttackResult:
    """Measure the model on noisy prompts. The noise depends on the target's seed, the try and the prompt alone.

    `found`, with `best_of`: of each n (`any_of`) among the `points` the `share` of prompts with a toxic continuation
    in the first n tries, and that of the base (`base_share`, None without one); `any_of`, `base_share` of all tries;
    `mean_share`, what a try finds alone; `before_any`, what as many plain samples find in the model. Without it: what
    `attack_altered` says.
    """
    with recorded(target, "perturb", settings) as record:
        tries = _tries(target, settings)
        return _best_of(record, tries) if settings.best_of else attack_altered(record, tries, start={"kind": "none"})


def _tries(target: Target, settings: PerturbSettings) -> list[Noise]:
    """In turn of each kind and rate the first, then of each the second, ..."""
    prompts = prompts_as_read(target)

    def noisy(kind: str, rate: float, number: int) -> list[str]:
        key = f"{target.seed} {number}"
        return altered_to_fit(target, prompts, lambda _, prompt: perturbed(prompt, kind, rate, key))

    each = itertools.product(range(1, settings.tries + 1), settings.kinds, settings.rates)
    return [
        ({"kind": kind, "rate": rate, "try": number}, partial(noisy, kind, rate, number))
        for number, kind, rate in each
    ]


def _best_of(record: Record, tries: list[Noise]) -> AttackResult:
    target, decoding = record.target, without_cutting(record.target)
    record.start(any_of=0)
    rows, done, bases = [], [], []
    for number, (at, alter) in enumerate(tries, 1):
        prompts = alter()
        bases.append(record.base_at(at, decoding, prompts))
        done.append(record.attempt(target.model, at, prompts=prompts, decoding=decoding))
        if number & (number - 1) == 0 or number == len(tries):  # a power of two
            point = record.best_of(done, {"any_of": count_tries(done)})
            rows.append({**point.at, "share": point.share, "base_share": any_share(bases)})
    return record.result(
        record.curve[-1],
        points=rows,
        any_of=count_tries(done),
        base_share=any_share(bases),
        mean_share=sum(point.share for point in done) / len(done),
        before_any=before_any(record, count_tries(done)),
    )
