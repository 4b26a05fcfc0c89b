"""What has an attack found? A curve of measurements, its highest point, and what of that holds on other prompts."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.attacks.measurement import BLOCKS, FIGURES, SCORED, Measurement
from efface.attacks.selection import JUDGED, NOTHING, Option, option_of
from efface.errors import UserError
from efface.evaluation.result import generations_path
from efface.files.jsonl import Row, read_jsonl
from efface.files.output import check_output_file, first_row_has, is_stamped
from efface.files.results import write_json, write_jsonl
from efface.files.shapes import Maybe, Missing, check_shape

FOUND = {"left_out": Missing([str]), "base_share": Maybe(float)}
RESULT = {
    "attack": Missing(str),
    "settings": dict,
    "target": dict,
    "base": Maybe(FIGURES),
    "before": FIGURES,
    "after": FIGURES,
    "judged": Missing(Maybe(JUDGED)),
    "curve": Missing([FIGURES]),
    "found": FOUND,
    "environment": Missing(dict),
}
"""The shape of a result on the disk, as far as it is read again."""


@dataclass
class AttackResult:
    """What an attack found."""

    attack: str
    settings: dict[str, Any]
    """Of the attack, as `describe_settings` gives them."""
    target: dict[str, Any]
    """What was attacked and how it was measured: `Target.names` and `Target.described()`."""
    base: Measurement | None
    before: Measurement
    after: Measurement
    """The highest point of the curve that counts, chosen on the same prompts that it is measured on."""
    curve: list[Measurement]
    found: dict[str, Any]
    """What else the attack has to say."""
    environment: dict[str, Any]
    judged: Row | None = None
    """What an attacker reaches who chooses the point on other prompts, see `selection.judge_chosen`; None in files of
    older versions."""

    def to_dict(self, generations: str | None = None) -> dict[str, Any]:
        """As it is written to JSON; `generations` names the file that holds them."""
        return {
            "schema": 1,
            "attack": self.attack,
            "settings": self.settings,
            "target": self.target,
            "base": None if self.base is None else self.base.to_dict(),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "judged": self.judged,
            "curve": [point.to_dict() for point in self.curve],
            "found": self.found,
            "generations": generations,
            "environment": self.environment,
        }

    @classmethod
    def from_dict(cls, result: Row, where: str) -> "AttackResult":
        """A result as it lies on the disk, read from `where`; the generations are in the file beside it.

        Raises:
            UserError: if it is none.
        """
        check_shape(result, RESULT, where)
        base, before = result.get("base"), read_point(result["before"])
        curve = [read_point(point) for point in result.get("curve", [])]
        for point in curve:
            if point.figures == before.figures:  # the start of the curve, which is what was before
                point.generations = before.generations
        return cls(
            attack=result.get("attack", ""),
            settings=result["settings"],
            target=result["target"],
            base=None if base is None else read_point(base),
            before=before,
            after=read_point(result["after"]),
            curve=curve,
            found=result["found"],
            environment=result.get("environment", {}),
            judged=result.get("judged"),
        )

    def columns(self) -> dict[str, dict[str, Any]]:
        """Title -> figures, for `report.table.evaluation_table`."""
        return {title: measurement.figures for title, measurement in self._measurements()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `path`, and beside it `<stem>.generations.jsonl`, whose rows say `at` which point they were made."""
        beside = generations_path(path)
        rows: Iterator[Row] = (
            {"at": title, **row} for title, measurement in self._measurements() for row in measurement.generations
        )
        # What is beside comes first: a result file never names a file that is not there.
        write_jsonl(beside, rows)
        write_json(path, self.to_dict(beside.name))

    def _measurements(self) -> list[tuple[str, Measurement]]:
        start = [("base", self.base)] if self.base is not None else []
        attacked = [point for point in self.curve if point.generations is not self.before.generations]
        return [*start, ("before", self.before), *((title(point.at), point) for point in attacked)]


def check_result_file(path: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = False) -> None:
    """Nothing, if the result of an attack may be written there, see `check_output_file`. Raises UserError if not."""

    def is_beside(file: Path) -> bool:
        return first_row_has(file, {"at": str, **SCORED})

    check_output_file(
        path,
        lambda file: is_stamped(file, RESULT),
        "the result of an attack",
        beside={generations_path(path): is_beside},
        overwrite=overwrite,
        resume=resume,
    )


def title(at: dict[str, Any]) -> str:
    """{"steps": 10} -> "steps 10"."""
    return ", ".join(f"{name} {value}" for name, value in at.items())


def read_point(block: Row) -> Measurement:
    """A point of a curve from a result file, whose shape has been checked: `Measurement.to_dict` the other way round,
    without the generations."""
    figures = {name: block[name] for name in (*BLOCKS, "versus_before") if name in block}
    return Measurement(figures, [], {name: value for name, value in block.items() if name not in figures})


def read_options(result: AttackResult, path: str | os.PathLike[str], besides: Collection[str] = ()) -> list[Option]:
    """What an attacker may do by a result that lies at `path`: nothing, or any point of the curve that counts.

    Args:
        besides: titles of points that are taken though they do not count.

    Raises:
        UserError: if the generations are not beside it, or not those that were judged.
    """
    beside = generations_path(path)
    rows = read_jsonl(beside)
    check_shape(rows, [{"at": str, **SCORED}], os.fspath(beside))
    by_point: dict[str, list[Row]] = {}
    for row in rows:
        by_point.setdefault(row["at"], []).append(row)
    left_out = result.found.get("left_out", [])
    found = []
    for name, point in [(NOTHING, result.before), *((title(point.at), point) for point in result.curve)]:
        among = name in result.judged["among"] if result.judged is not None else name not in left_out
        among = among or name in besides
        # The start of a curve is untouched, and written as what was before.
        if name == NOTHING or (among and name in by_point):
            generations = by_point.get(name, [])
            toxicity = point.measured.toxicity
            if len(generations) != toxicity.n_prompts * toxicity.samples:
                raise UserError(f"{beside}: the {len(generations)} rows of {name!r} are not those judged. Remove it.")
            if any(row["scores"].keys() < point.measured.judges.keys() for row in generations):
                raise UserError(f"{beside}: {name!r} has not the scores of all judges. Remove it.")
            found.append(option_of(name, point, generations))
    return found
