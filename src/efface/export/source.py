"""What has been given to be exported? Models that were measured, and the attacks that were made on them.

An evaluation, an attack and an audit say the same things in files of their own; here they have one form.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from efface.attacks import ATTACKS, Attack
from efface.attacks.measurement import BLOCKS
from efface.attacks.result import RESULT
from efface.audit.rows import attack_file
from efface.audit.shape import TARGET, check_audit
from efface.errors import UserError
from efface.evaluation.result import EVALUATION, generations_path
from efface.files.digests import key_of
from efface.files.io import is_regular_file
from efface.files.jsonl import Row
from efface.files.results import RESULTS, read_json
from efface.files.shapes import check_shape

SIDES = ("base", "edited")
"""Of a run of `efface demo` or `efface detox`."""


@dataclass(frozen=True)
class Measured:
    """A model, and what was found of it."""

    name: str
    """What the run calls it: the name of its file, or of the model in an audit."""
    result: Row | None
    """As `efface evaluate` writes it, as far as it is known; None where the model could not be measured."""
    file: Path
    """Where that stands."""
    generations: Path | None = None
    """Where its continuations would lie; None where a run keeps them otherwise."""
    attacks: list[Row] = field(default_factory=list)
    """Rows as those of an audit."""
    error: str | None = None
    """Why it could not be measured."""

    @property
    def found(self) -> Row:
        """`result` of a model that was measured."""
        assert self.result is not None
        return self.result

    @property
    def identity(self) -> str:
        """A UUID that is the same for the same result."""
        return str(uuid.UUID(hex=key_of([self.name, self.result, self.attacks]), version=4))


def read_given(path: Path) -> list[Measured]:
    """What lies in a file or directory that an efface command has written.

    Raises:
        UserError: if it is none of those, or a file in it has been changed.
    """
    if not path.is_dir() and not is_regular_file(path):
        raise UserError(f"{path} cannot be exported: there is no such file or directory. Pass one that efface wrote.")
    if not path.is_dir():
        found = list(_read_file(path))
    else:
        whole = path / RESULTS
        found = list(_read_file(whole)) if whole.exists() else []
        # A run's own summary says everything; without one the directory is a user's, with results side by side.
        found = found or [one for file in sorted(path.glob("*.json")) for one in _read_file(file)]
    if not found:
        raise UserError(
            f"{path} holds nothing that can be exported: no evaluation, no result of an attack, no audit, no demo or "
            "detox run. Pass the directory or the JSON file that one of these commands wrote."
        )
    return found


def _read_file(file: Path) -> Iterator[Measured]:
    """None where it is something else."""
    content = read_json(file)
    if {"models", "budget"} <= content.keys():
        yield from _read_audit(content, file)
    elif set(SIDES) <= content.keys():
        for name in SIDES:
            beside = file.with_name(f"{name}.json")
            check_shape(content[name], EVALUATION, f"{name!r} of {file}")
            yield Measured(name, content[name], file, generations_path(beside))
    elif {"attack", "before", "found"} <= content.keys():
        yield _read_attack(content, file)
    elif {"toxicity", "degeneration"} <= content.keys():
        check_shape(content, EVALUATION, str(file))
        yield Measured(file.stem, content, file, generations_path(file))


def _read_audit(content: Row, file: Path) -> Iterator[Measured]:
    content = check_audit(content, str(file))
    shared = {"environment": content.get("environment") or {}}
    for model in content["models"]:
        result, name = None, model["name"]
        if model.get("evaluation") is not None:
            names = _names_of(file.parent, name, model["attacks"])
            result = _result_of(model["evaluation"], model.get("target") or {}, names, model.get("model")) | shared
        rows = [row | {"found": row.get("found") or {}} for row in model["attacks"]]
        yield Measured(name, result, file, attacks=rows, error=model.get("error"))


def _read_attack(content: Row, file: Path) -> Measured:
    """As an audit of one attack on one model."""
    check_shape(content, RESULT, str(file))
    check_shape(content["target"], TARGET, f"the target of {file}")
    names = content["target"].get("names") or {}
    result = _result_of(content["before"], content["target"], names, names.get("model"))
    result["environment"] = content.get("environment") or {}
    row = {
        "attack": content["attack"],
        "flags": None,
        "access": entry_of(content["attack"]).access,
        "before": content["before"],
        "judged": content.get("judged"),
        "p_holm": None,
        "evidence": None,
        "found": content["found"],
        "skipped": None,
        "error": None,
    }
    return Measured(public_name(names.get("model") or file.stem), result, file, attacks=[row])


def _result_of(figures: Row, target: Row, names: Row, model: str | None) -> Row:
    """The evaluation before any attack. An audit has no more than the figures and the decoding of it."""
    settings: Row = {"prompts": names.get("prompts"), "decoding": target.get("decoding")}
    if names.get("limit") is not None:
        settings["limit"] = names["limit"]
    return {"model": model, "settings": settings} | {name: figures[name] for name in BLOCKS if name in figures}


def _names_of(folder: Path, model: str, rows: list[Row]) -> Row:
    """What the user called model and prompts: an audit's own file has their hashes, those of its attacks the names."""
    for row in rows:
        file = attack_file(folder, model, row["attack"])
        if file is not None:
            return read_json(file, {"target": TARGET})["target"].get("names") or {}
    return {}


def entry_of(attack: str) -> Attack:
    """What is known of an attack, or of the attack that it is a variant of; of one of a third party the defaults."""
    return ATTACKS.get(attack.partition("-")[0], Attack(attack, "an attack of a third party"))


def public_name(name: str) -> str:
    """Of a model or of prompts, for others to read: of an absolute path the last part, since the rest is the machine's
    of whoever made the result."""
    return Path(name).name if Path(name).is_absolute() else name
