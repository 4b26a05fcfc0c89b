"""What form have the results of an audit? As far as tables, reports and exports read them again.

Interrupted ones too: a row that was not reached has no figures, and no word of why.
"""

from typing import Any

from efface.attacks.measurement import FIGURES
from efface.attacks.result import FOUND
from efface.attacks.selection import JUDGED
from efface.evaluation.comparison import COMPARISON
from efface.files.jsonl import Row
from efface.files.shapes import Each, Maybe, Missing, check_shape

TARGET = {"names": Maybe(Each(Maybe(str))), "decoding": Maybe(dict), "weights": Maybe(str), "base": Maybe(str)}
ROW: dict[str, Any] = {
    "attack": str,
    "flags": Maybe(str),
    "published": Maybe(str),
    "access": str,
    "control": Maybe(str),
    "before": Maybe(FIGURES),
    "after": Maybe(FIGURES),
    "any_cost": Maybe(JUDGED),
    "judged": Maybe(JUDGED),
    "p_holm": Maybe(float),
    "evidence": Maybe(str),
    "control_judged": Maybe(JUDGED),
    "base_share": Maybe(float),
    "found": Maybe(FOUND),
    "seconds": Maybe(float),
    "skipped": Maybe(str),
    "error": Maybe(str),
}
MADE = {"before": FIGURES, "after": FIGURES, "found": FOUND}
"""What a row has besides, once it is judged."""
COLUMN = {
    "judged": Maybe(JUDGED),
    "apart": Maybe(Each(str)),
    "p_holm": Maybe(float),
    "any_cost": Maybe(JUDGED),
}
MODEL = {
    "name": str,
    "model": Maybe(str),
    "error": Maybe(str),
    "attacks": [ROW],
    "columns": Each(COLUMN),
    "target": Missing(TARGET),
    "evaluation": Missing(FIGURES),
    "training_seed": Maybe(int),
}
PAIRED = Maybe(COMPARISON | {"p_holm": Maybe(float)})
AUDIT: dict[str, Any] = {
    "budget": str,
    "cannot_show": Maybe([str]),
    "base": Maybe(FIGURES | {"model": Maybe(str)}),
    "models": [MODEL],
    "controls": Each({"attacks": Maybe([ROW]), "columns": Maybe(Each(COLUMN)), "as": Maybe(str), "error": Maybe(str)}),
    "comparisons": [{"models": (str, str), "before": PAIRED, "attacks": Each(PAIRED), "columns": Each(PAIRED)}],
    "seeds": Maybe({"attack": Maybe(int), "generations": Maybe(int)}),
    "environment": Maybe(dict),
}
INTERRUPTED = "interrupted."
"""The error of a model or an attack that was begun when the audit ended."""


def check_audit(results: Row, where: str) -> Row:
    """The results of an audit, with what earlier versions, or an interruption, have left out put in as nothing.

    Raises:
        UserError: saying `where` they were read, and what is wrong.
    """
    check_shape(results, AUDIT, where)
    models = [_whole_model(model, f"{where}, model {model['name']!r}") for model in results["models"]]
    controls = {
        name: control
        | {"attacks": [_whole_row(row, f"{where}, control {name!r}") for row in control.get("attacks") or []]}
        for name, control in results["controls"].items()
    }
    seeds = {"attack": None, "generations": None} | (results.get("seeds") or {})
    left_out = results.get("cannot_show") or []
    whole = {"models": models, "controls": controls, "seeds": seeds, "base": results.get("base")}
    return results | whole | {"cannot_show": left_out}


def _whole_model(model: Row, where: str) -> Row:
    if model.get("error") is None and "evaluation" not in model and not model["attacks"]:
        model = model | {"error": INTERRUPTED}  # earlier versions did not say so
    if model.get("error") is None:
        check_shape(model, {"evaluation": FIGURES, "target": TARGET}, where)
    columns = {access: {"judged": None, "apart": {}} | column for access, column in model["columns"].items()}
    columns = {access: column | {"apart": column["apart"] or {}} for access, column in columns.items()}
    attacks = [_whole_row(row, where) for row in model["attacks"]]
    return {"error": None, "training_seed": None} | model | {"columns": columns, "attacks": attacks}


def _whole_row(row: Row, where: str) -> Row:
    if row.get("judged") is not None:
        check_shape(row, MADE, f"{where}, attack {row['attack']!r}")
    found = dict.fromkeys(ROW) | row
    return found | {"flags": found["flags"] or "", "published": found["published"] or ""}
