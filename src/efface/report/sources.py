"""What lies in this directory? Results of efface, told apart by their form.

A directory of `efface demo` or `detox` brings what lies inside it: its training, its audit, its sweep.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.analysis.erasure import ERASURE
from efface.attacks.result import RESULT
from efface.audit.shape import AUDIT, check_audit
from efface.comparison.table import SWEEP
from efface.errors import UserError
from efface.evaluation.result import EVALUATION
from efface.files.jsonl import Row
from efface.files.results import RESULTS, read_json
from efface.files.shapes import Maybe, check_shape
from efface.report import NOT_MEASURED

EDIT, TRAINING, EVALUATED, ATTACKED, AUDITED, SWEPT, ANALYZED = (
    "edit",
    "training",
    "evaluation",
    "attack",
    "audit",
    "sweep",
    "analysis",
)
MADE_BY = {
    EDIT: "`efface demo` or `detox`",
    TRAINING: "`efface train`",
    EVALUATED: "`efface evaluate`",
    ATTACKED: "`efface attack`",
    AUDITED: "`efface audit`",
    SWEPT: "`efface sweep`",
    ANALYZED: "`efface analyze`",
}
COMPARED = {"share_ratio": Maybe(float), "share_ratio_ci95": Maybe((Maybe(float), Maybe(float)))}
COMPARED |= {"perplexity_change": Maybe(float)}
SHAPES: dict[str, Any] = {
    EDIT: {"base": EVALUATION, "edited": EVALUATION, "comparison": COMPARED, "erasure": dict, "plan": dict},
    TRAINING: {"history": [dict], "settings": dict, "method": str},
    EVALUATED: EVALUATION,
    ATTACKED: RESULT,
    AUDITED: AUDIT,
    SWEPT: SWEEP,
    ANALYZED: {"base": str, "n_pairs": int, "models": [{"name": str, "blocks": dict, "failed": dict}]},
}
INSIDE = ("model", "audit", "sweep")
"""Directories of an edit that are read with it."""


@dataclass(frozen=True)
class Source:
    """One file of results."""

    kind: str
    """A key of SHAPES."""
    name: str
    """What the user called it."""
    file: Path
    result: Row
    inside: bool = False
    """Whether it lies inside an edit, which it was made for."""

    @property
    def folder(self) -> Path:
        return self.file.parent


def read_sources(paths: Sequence[str | os.PathLike[str]]) -> list[Source]:
    """The results that lie at `paths`, directories or files, in that order.

    Raises:
        UserError: naming a path that is missing, holds nothing of efface, or holds what is not whole.
    """
    if not paths:
        raise UserError("a report needs at least one directory of results.")
    found: dict[Path, Source] = {}
    for path in paths:
        for source in _read(Path(path)):
            found.setdefault(source.file.resolve(), source)
    return list(found.values())


def _read(path: Path) -> list[Source]:
    if not path.exists():
        raise UserError(f"{path} is not there. Pass the directory, or the file, of one of {_commands()}.")
    if not path.is_dir():
        source = _source(path, path.stem)
        if source is None:
            raise UserError(f"{path} holds no results of efface. Pass what one of {_commands()} wrote.")
        return [source]
    if (path / RESULTS).exists():
        source = _source(path / RESULTS, path.name or path.resolve().name)
        if source is None:
            raise UserError(f"{path / RESULTS} has no form of results of efface. Pass what {_commands()} wrote.")
        inside = [path / name for name in INSIDE if source.kind == EDIT and (path / name / RESULTS).exists()]
        return [source, *(dataclasses.replace(each, inside=True) for one in inside for each in _read(one))]
    sources = [source for file in sorted(path.glob("*.json")) if (source := _source(file, file.stem)) is not None]
    if not sources:
        raise UserError(f"{path} holds no {RESULTS} and no other results of efface. Pass what {_commands()} wrote.")
    return sources


def _source(file: Path, name: str) -> Source | None:
    """None if it is of no known kind."""
    result = read_json(file)
    kind = _kind(result)
    if kind is None:
        return None
    check_shape(result, SHAPES[kind], os.fspath(file))
    if kind == AUDITED:
        result = check_audit(result, os.fspath(file))
    if kind == EDIT and NOT_MEASURED not in result["erasure"]:
        check_shape(result["erasure"], ERASURE, f"{file}, 'erasure'")
    return Source(kind, name, file, result)


def _kind(result: Row) -> str | None:
    """By keys that only one kind has; whether it is whole is another question."""
    told = {"sweep": SWEPT, "analysis": ANALYZED}.get(str(result.get("what")))
    if told is not None:
        return told
    keys = result.keys()
    for kind, needed in (
        (EDIT, {"base", "edited", "comparison"}),
        (AUDITED, {"budget", "models", "controls"}),
        (ATTACKED, {"before", "after", "found"}),
        (TRAINING, {"history", "settings", "method"}),
        (EVALUATED, {"toxicity", "degeneration"}),
    ):
        if needed <= keys:
            return kind
    return None


def _commands() -> str:
    return ", ".join(dict.fromkeys(MADE_BY.values()))
