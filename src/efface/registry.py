"""What does a name on the command line stand for? An entry of a registry, or a dotted path of a third party."""

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

from efface.errors import UserError, described


def resolve(kind: str, name: str, paths: Mapping[str, str], form: str) -> Any:
    """The object at `paths[name]`, or at `name` itself if that is a path.

    Args:
        kind: what it is, for errors: "method".
        paths: name -> "package.module:Object".
        form: what a path of one's own looks like: "package.module:Class".

    Raises:
        UserError: if there is none.
    """
    path = paths.get(name, name)
    if ":" not in path:
        raise UserError(f"{kind} {name!r} is unknown. There are: {', '.join(paths)}; or {form} of your own.")
    try:
        return resolve_name(path)
    except (Exception, SystemExit) as error:  # importing runs a third party's code, which may do anything
        raise UserError(f"{kind} {name!r} cannot be imported: {described(error)}. Write {form}.") from error
