"""Which points of relearning lie on one curve? Those of attacks that are alike in all but their rates and steps.

The best methods may be attacked for longer than all are (`pairs: --learning_rates 2e-5 --steps 5,10,20`, then
`pairs-long: --learning_rates 2e-5 --steps 40,80`): at a constant rate both are the same training, read at other steps.
Taken apart, the longer one would be a straight line from its start to its first point.
"""

import shlex
from collections.abc import Iterable, Sequence

from efface.comparison.config import AttackPlan, SweepConfig
from efface.files.jsonl import Row

Curves = dict[tuple[str, str], list[Row]]
"""(attack, rate) -> points in the order of their steps."""


def curves_of(kept: Row, attacks: Row | Sequence[AttackPlan]) -> Curves:
    """The curves of a kept model, under the name of the first attack of each kind.

    Args:
        attacks: all that were planned, or the results' own config of them.
    """
    names, found = _kinds(_plans(attacks)), dict[tuple[str, str], dict[int, Row]]()
    for attack, made in kept["attacks"].items():
        for rate, points in made.get("curves", {}).items():
            at = found.setdefault((names.get(attack, attack), rate), {})
            for point in points:
                at.setdefault(point["steps"], point)
    return {curve: [at[step] for step in sorted(at)] for curve, at in found.items()}


def planned(config: SweepConfig) -> list[AttackPlan]:
    """All attacks, those on every model before those on the best."""
    return [*config.attacks.every, *config.attacks.best]


def steps_of(curves: Iterable[Curves]) -> dict[tuple[str, str], list[int]]:
    """Of several models: of each curve that one of them has, the steps at which one of them was measured."""
    found: dict[tuple[str, str], set[int]] = {}
    for one in curves:
        for curve, points in one.items():
            found.setdefault(curve, set()).update(point["steps"] for point in points)
    return {curve: sorted(steps) for curve, steps in found.items()}


def _plans(attacks: Row | Sequence[AttackPlan]) -> Sequence[AttackPlan]:
    if isinstance(attacks, dict):
        return [AttackPlan(**plan) for part in ("every", "best") for plan in attacks.get(part, [])]
    return attacks


def _kinds(plans: Sequence[AttackPlan]) -> dict[str, str]:
    """Attack -> the first one that is alike in all but rates and steps; under a schedule the steps shape the rate."""
    first: dict[tuple[tuple[str, str], ...], str] = {}
    names = {}
    for plan in plans:
        flags = _flags(plan.flags)
        for free in ("learning_rates", "steps"):
            flags.pop(free, None)
        alone = flags.get("schedule", "constant") != "constant"
        names[plan.name] = plan.name if alone else first.setdefault(tuple(sorted(flags.items())), plan.name)
    return names


def _flags(text: str) -> dict[str, str]:
    """`--name value` and `--name=value`, as they were written."""
    found: dict[str, str] = {}
    name = ""
    for word in shlex.split(text):
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").replace("-", "_").partition("=")
            found[name] = value
        else:
            found[name] = f"{found.get(name, '')} {word}".strip()
    return found
