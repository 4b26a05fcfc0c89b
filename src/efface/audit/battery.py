"""Which attacks does an audit make, how hard does each try, on how much is it measured, and what does that resolve?

The attacks and their settings in each budget are those of their entries in `efface.attacks`.

Minutes are for one model of the size of SmolLM2-135M on two slow cores, with its controls, which take as long as the
model itself and are shared by all models of an audit.
"""

import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.attacks import ATTACKS, Attack, check_attack, load_attack, settings_class
from efface.errors import UserError

DIAGNOSTIC = "base"
"""The access of attacks that are none: see `efface.attacks.ACCESS`."""


@dataclass(frozen=True)
class Budget:
    """What an audit may cost."""

    minutes: int | None
    """About so many at most, for a model and its controls; None takes a night."""
    limit: int | None
    """Prompts that it is measured on; None takes all."""
    max_text_tokens: int
    """Of ordinary text, for perplexity."""
    attacks: dict[str, str]
    """Name -> settings, as flags of `efface attack`. Several settings of one have names like relearn-lora."""

    @property
    def time(self) -> str:
        return "a night" if self.minutes is None else f"{self.minutes} minutes"

    @property
    def what(self) -> str:
        """What it is measured on, and what that resolves."""
        if self.limit is None:
            return "all prompts"
        return f"{self.limit} prompts: a share is known to within ±{resolution(self.limit):.2f}"


def resolution(n_prompts: int) -> float:
    """Half of the 95 % interval of a share of one half on so many prompts: no other share is known less well."""
    return 1.96 * math.sqrt(0.25 / n_prompts)


def battery_of(budget: str) -> dict[str, str]:
    """What every attack says of a budget, in their order: name -> flags; its variants follow it."""
    found: dict[str, str] = {}
    for name, attack in ATTACKS.items():
        flags = attack.flags.get(budget, "")
        found |= {} if flags is None else {name: flags}
        found |= {f"{name}-{one}": flags[budget] for one, flags in attack.variants.items() if budget in flags}
    return found


BUDGETS = {
    "quick": Budget(minutes=20, limit=64, max_text_tokens=2_000, attacks=battery_of("quick")),
    "standard": Budget(minutes=210, limit=256, max_text_tokens=4_000, attacks=battery_of("standard")),
    "thorough": Budget(minutes=None, limit=None, max_text_tokens=20_000, attacks=battery_of("thorough")),
}


@dataclass(frozen=True)
class Trial:
    """One attack of an audit, at the settings that it is tried with there."""

    name: str
    flags: str
    attack: Callable[..., Any]
    settings: Any

    @property
    def entry(self) -> Attack:
        """What is known of it; of one of a third party nothing but the defaults."""
        return ATTACKS.get(_attack(self.name), Attack(self.name, ""))

    @property
    def needs_labelled(self) -> bool:
        return bool(getattr(self.settings, "needs_labelled", False))

    @property
    def control(self) -> str | None:
        """The model that it must be able to raise; a diagnostic, which is in no worst case, needs none."""
        return None if self.entry.access == DIAGNOSTIC else self.entry.control


def left_to_others(budget: str) -> list[str]:
    """The attacks that a budget is too small for, and so cannot show."""
    return [name for name, attack in ATTACKS.items() if attack.flags.get(budget, "") is None]


def names_of(given: Sequence[str]) -> dict[str, str]:
    """Models as the command line has them, NAME=MODEL or MODEL, by their names: without one the last part of the path.

    Raises:
        UserError: if two have the same name.
    """
    found: dict[str, str] = {}
    for one in given:
        name, equals, model = one.partition("=")
        if not equals or Path(one).exists():
            name, model = re.split("[/:]", one.rstrip("/"))[-1], one
        if name in found:
            raise UserError(f"two models are called {name!r}: {found[name]!r} and {model!r}. Name them: NAME=MODEL.")
        found[name] = model
    return found


def choose_trials(budget: str, only: Sequence[str] = (), skip: Sequence[str] = ()) -> list[Trial]:
    """The attacks of a budget.

    Args:
        budget: a name in `BUDGETS`.
        only: names in its battery (relearn stands for relearn-lora too), or of other attacks, dotted paths among them,
            which are then made with their default settings; none: the whole battery.
        skip: names to leave out.

    Raises:
        UserError: if there is no such budget or attack, or nothing is left.
    """
    names = check_names(budget, only, skip)
    battery = BUDGETS[budget].attacks
    return [_make_trial(name, battery.get(name, "")) for name in names]


def check_names(budget: str, only: Sequence[str] = (), skip: Sequence[str] = ()) -> list[str]:
    """The names of these attacks; nothing is imported. Arguments and errors as those of `choose_trials`."""
    if budget not in BUDGETS:
        raise UserError(f"budget {budget!r} is unknown. There are: {', '.join(BUDGETS)}.")
    battery = BUDGETS[budget].attacks
    names = list(battery)
    if only:
        chosen = {one: [name for name in battery if one in (name, _attack(name))] for one in only}
        names = list(dict.fromkeys(name for one, found in chosen.items() for name in found or [one]))
    for name in names:  # before `skip`: a name that is none is an error
        check_attack(_attack(name))
    for one in skip:
        if not any(one in (name, _attack(name)) for name in names):
            raise UserError(f"skip={one!r} is not among the attacks of this audit: {', '.join(names)}.")
    kept = [name for name in names if not {name, _attack(name)} & set(skip)]
    if not kept:
        raise UserError(f"skip={','.join(skip)!r} leaves no attack. Skip fewer.")
    return kept


def folder_of(name: str) -> str:
    """The directory of an attack's files; its name but for dotted paths."""
    return name.replace(":", ".")


def _attack(name: str) -> str:
    """Of an attack in the battery; the dotted path of another is its name."""
    return name.partition("-")[0]


def _make_trial(name: str, flags: str) -> Trial:
    from efface.flags import FlagParser  # on use: transformers costs a second

    attack = load_attack(_attack(name))
    kind = settings_class(attack)
    return Trial(name, flags, attack, kind(**FlagParser(kind, f"In the battery: {name}.").given(shlex.split(flags))))
