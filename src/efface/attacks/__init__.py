"""BREAK: the attacks by name. A new one is one file and one entry here; a dotted path of a third party works too.

An attack is a function `attack(target: Target, settings: ItsSettings) -> AttackResult`, see `target.py` and
`result.py`; its settings are a frozen dataclass with a help text under each field.
"""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from efface.errors import UserError
from efface.registry import resolve

if TYPE_CHECKING:
    from efface.attacks.result import AttackResult
    from efface.attacks.target import Target


@dataclass(frozen=True)
class Attack:
    """Where an attack lives, and what `efface attacks` says of it."""

    path: str
    what: str
    source: str


ATTACKS = {
    "relearn": Attack(
        "efface.attacks.relearn:relearn",
        "fine-tune on toxic rows, all weights or LoRA",
        "Lucki et al. 2024, arXiv 2409.18025",
    ),
}


def load_attack(name: str) -> "Callable[[Target, Any], AttackResult]":
    """The attack called `name`, or at the dotted path `package.module:function`.

    Raises:
        UserError: if there is no such attack.
    """
    paths = {name: attack.path for name, attack in ATTACKS.items()}
    found = resolve("attack", name, paths, "package.module:function")
    settings_class(found, name)
    return found


def settings_class(attack: Any, name: str = "") -> type[Any]:
    """The dataclass that the parameter `settings` of an attack is annotated with.

    Raises:
        UserError: if it has none, and so is no attack.
    """
    try:
        found: Any = inspect.signature(attack).parameters["settings"].annotation
    except (TypeError, ValueError, KeyError):  # nothing to call, or nothing so called
        found = None
    if isinstance(found, str):  # a module that postpones the evaluation of annotations
        found = getattr(attack, "__globals__", {}).get(found)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise UserError(
            f"attack {name or attack!r} is no attack of efface: a function (target, settings) is needed whose "
            "`settings` are annotated with a dataclass."
        )
    return found
