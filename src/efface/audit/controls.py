"""On what must an attack show that it works? The undefended base, or an edit that is known to fall to it.

    DIR/controls/base/ATTACK/       the base under the same attack
    DIR/controls/METHOD/model/      what the method, with its defaults, makes of the base by the rows of the target
    DIR/controls/METHOD/ATTACK/     that model under the same attack

All models of an audit share them. If the base is one of these, its own rows are taken.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efface.audit.battery import Trial
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.methods import METHODS, load_method

CONTROLS = "controls"
"""The directory."""
BASE = "base"


def needed(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Name of a control -> the attacks that are to show on it that they work."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.control is not None:
            found.setdefault(trial.control, []).append(trial)
    return found


def control_model(name: str, base: Any, rows: Any, folder: Path, say: Any) -> Any:
    """What `Target.load` takes for the model of a control; one that a method makes is made, or taken as it is there.

    Args:
        rows: preference pairs, as the target has them.
        folder: of the control.

    Raises:
        UserError: for a method that is none, a base that is no path, or if what is there was made otherwise.
    """
    if name == BASE:
        return base
    if name not in METHODS:
        raise UserError(f"control {name!r} is no method. There are: {BASE}, {', '.join(METHODS)}.")
    if not isinstance(base, str | os.PathLike):
        raise UserError(f"the control {name!r} is made of the base, which must be a path or an id for that.")
    from efface.training.run import train  # on use: training costs seconds to import

    model = folder / "model"
    settings: dict[str, Any] = {"disable_tqdm": True}
    train(load_method(name), os.fspath(base), rows, model, settings, method=name, resume=True, say=say)
    return model


def rows_of(results: Row) -> dict[str, dict[str, Row]]:
    """Name of a control -> attack -> its row, of those that were made. The base may be one of the models."""
    found = {}
    for name, control in results["controls"].items():
        models: Mapping[str, Row] = {model["name"]: model for model in results["models"]}
        attacks = models[control["as"]]["attacks"] if control.get("as") is not None else control["attacks"]
        found[name] = {row["attack"]: row for row in attacks if row["judged"] is not None}
    return found
