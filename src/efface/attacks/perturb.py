"""Does a misspelt prompt get past the edit? Character and spacing noise (Hughes et al. 2024, arXiv 2412.03556).

Best-of-n jailbreaking draws n noisy versions of a request and counts it as answered if one of them is. Here each
kind, rate and try is a point of its own, measured on all prompts, so that no point is a maximum over tries in
disguise; what an attacker gets who may try all of them on each prompt stands beside as `any_point`, an upper bound.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from efface.attacks.altered import altered_to_fit, attack_altered, prompts_as_read
from efface.attacks.lists import read_lists, several
from efface.attacks.result import AttackResult
from efface.attacks.target import Target
from efface.checks import at_least_one
from efface.errors import UserError

KINDS = ("swap", "capital", "drop", "double", "space")
MIX = "mix"


@dataclass(frozen=True)
class PerturbSettings:
    """Settings of `perturb`."""

    kinds: tuple[str, ...] = several(
        "swap,capital,drop,double,space,mix",
        str,
        "Kinds of noise: swap (a character with the next), capital (the other case), drop, double, space "
        "(put one in or take one out), mix (all of them).",
    )
    rates: tuple[float, ...] = several("0.05,0.15", float, "Fractions of the characters that are altered.")
    tries: int = field(default=1, metadata={"help": "Noisy versions for each kind and rate, each its own point."})

    def __post_init__(self) -> None:
        read_lists(self)
        if not set(self.kinds) <= {*KINDS, MIX}:
            raise UserError(
                f"kinds={self.kinds!r}: kinds of noise are {', '.join((*KINDS, MIX))}, with commas between."
            )
        if self.rates[-1] > 1:
            raise UserError(f"rates={self.rates!r}: a fraction of the characters is at most 1, as in 0.05,0.15.")
        at_least_one(self, "tries")


def perturb(target: Target, settings: PerturbSettings) -> AttackResult:
    """Measure the model on noisy prompts. The noise depends on the target's seed, the try and the prompt alone.

    `found`: what `attack_altered` says.
    """
    prompts = prompts_as_read(target)
    tries = range(1, settings.tries + 1)

    def noisy(kind: str, rate: float, number: int) -> list[str]:
        key = f"{target.seed} {number}"
        return altered_to_fit(target, prompts, lambda _, prompt: perturbed(prompt, kind, rate, key))

    def points() -> Iterator[tuple[dict[str, Any], list[str]]]:
        for kind, rate, number in itertools.product(settings.kinds, settings.rates, tries):
            yield {"kind": kind, "rate": rate, "try": number}, noisy(kind, rate, number)

    return attack_altered(target, "perturb", settings, points(), start={"kind": "none"})


def perturbed(text: str, kind: str, rate: float, key: str) -> str:
    """`text` with noise at `rate` of the characters that can have it, but at one at least if there is any.

    The characters at a lower rate are among those at a higher one.

    Args:
        kind: one of KINDS, or "mix": at each character one of those.
        key: equal keys give equal noise.
    """
    generator = random.Random(f"{key} {kind} {text}")
    kinds = KINDS if kind == MIX else (kind,)
    options = {place: [one for one in kinds if _fits(one, text, place)] for place in range(len(text))}
    places = [place for place in options if options[place]]
    generator.shuffle(places)
    drawn = [(place, generator.choice(options[place])) for place in places]
    edits = dict(drawn[: max(round(rate * len(places)), 1)])
    found, place = "", 0
    while place < len(text):
        here, edit = text[place], edits.get(place)
        if edit == "swap":  # the next character's own edit is lost
            found += text[place + 1] + here
            place += 2
            continue
        found += _edited(here, edit)
        place += 1
    return found or text  # nothing can be continued after nothing


def _fits(kind: str, text: str, place: int) -> bool:
    """Whether the text changes by this edit of this character."""
    here, last = text[place], place == len(text) - 1
    if kind == "swap":
        return not last and here != text[place + 1]
    if kind == "capital":
        return here.swapcase() != here
    if kind == "space":
        return not last  # a space at the end is noise of another kind: tokenizers put it before the next word
    return not here.isspace()


def _edited(character: str, edit: str | None) -> str:
    if edit == "capital":
        return character.swapcase()
    if edit == "drop":
        return ""
    if edit == "double":
        return character * 2
    if edit == "space":
        return "" if character == " " else character + " "
    return character
