"""TRAIN: the methods by name. A new one is one file and one line here; a dotted path of a third party works too."""

from pkgutil import resolve_name
from typing import TYPE_CHECKING

from efface.errors import UserError

if TYPE_CHECKING:
    from efface.methods.base import PairTrainer

METHODS = {
    "repo": "efface.methods.repo:REPOTrainer",
}


def load_method(name: str) -> "type[PairTrainer]":
    """The trainer class called `name`, or at the dotted path `package.module:Class`.

    Raises:
        UserError: if there is no such method.
    """
    path = METHODS.get(name, name)
    if ":" not in path:
        raise UserError(
            f"method {name!r} is unknown. There are: {', '.join(METHODS)}; or package.module:Class of your own."
        )
    try:
        found = resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"method {name!r} cannot be imported: {error}. Write package.module:Class.") from error
    if not hasattr(found, "config_class"):
        raise UserError(
            f"method {name!r} is no trainer class of efface. Derive it from efface.methods.base.PairTrainer."
        )
    return found
