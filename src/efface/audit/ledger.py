"""What stands in the table of an audit while it is made, and what does all of it show in the end?

The table begins as an earlier run has left it. Each model, and each control, takes the place of its old report once it
has been measured, so that nothing is lost whenever the audit is interrupted.

What is attacked has a place, its directory: that of a model has its name, that of a control is "controls/NAME".
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

from efface.attacks.measurement import Measurement
from efface.attacks.result import AttackResult, read_options
from efface.attacks.selection import NOTHING, Option, option_of
from efface.audit.battery import Trial
from efface.audit.columns import columns_of, compare_models, weigh
from efface.audit.controls import CONTROLS, rows_of
from efface.audit.earlier import measured_otherwise, seconds_spent
from efface.audit.rows import figures_of, row_of, too_dear
from efface.audit.shape import INTERRUPTED
from efface.files.jsonl import Row
from efface.files.results import write_json


class Ledger:
    """The table of an audit; `results` is what `results.json` says, and by place stands what that is worked out of.

    Args:
        file: `results.json`.
        results: without models and controls.
        earlier: those of an earlier run, see `read_earlier`.
        order: names of the models that are to be in the table.
        seed: of the choice between points.
    """

    def __init__(self, file: Path, results: Row, earlier: Row, order: Sequence[str], seed: int):
        self.file, self.order, self.seed = file, order, seed
        self.results: Row = results | {"models": earlier["models"], "controls": earlier["controls"]}
        self.spent = seconds_spent(file)
        self.reports: dict[str, Row] = {}
        """Of what could be measured."""
        self.before: dict[str, Option] = {}
        self.options: dict[str, dict[str, Sequence[Option]]] = {}
        self.any_cost: dict[str, dict[str, Sequence[Option]]] = {}
        """The same with what costs too much perplexity to count."""

    def enter(self, place: str, report: Row) -> None:
        """Put the report of a model or control into the table, where its old one stood if there was one."""
        name = report["name"]
        if place.startswith(f"{CONTROLS}/"):
            self.results["controls"][name] = report
        else:
            models = {one["name"]: one for one in self.results["models"]} | {name: report}
            self.results["models"] = [models[one] for one in self.order if one in models]

    def enter_measured(self, place: str, report: Row, untouched: Measurement) -> None:
        """The same of one whose attacks begin now.

        Args:
            place: its directory.
            report: without figures.
            untouched: what was measured before the attacks.
        """
        report["evaluation"] = untouched.to_dict()
        self.reports[place], self.before[place] = report, option_of(NOTHING, untouched)
        self.options[place], self.any_cost[place] = {}, {}
        self.enter(place, report)

    def enter_interrupted(self, place: str, report: Row) -> None:
        """The same of one that could not be measured to the end; an old report says more and stays."""
        of_control = place.startswith(f"{CONTROLS}/")
        known = self.results["controls"] if of_control else {one["name"] for one in self.results["models"]}
        if report["name"] not in known:
            self.enter(place, report | {"error": INTERRUPTED})

    def begin_rows(self, place: str, chosen: Sequence[Trial]) -> list[Row]:
        """A row for each attack on what is at a place; none of them is made."""
        rows = [row_of(trial, self.spent.get((place, trial.name))) for trial in chosen]
        self.reports[place]["attacks"] = rows
        return rows

    def take(self, row: Row, place: str, result: AttackResult, file: Path) -> None:
        """The figures of an attack that is made, and what it lets an attacker do.

        Args:
            row: of the attack, which is filled.
            place: of what was attacked.
            result: of the attack.
            file: in which the result lies.
        """
        dear = too_dear(result)
        options = read_options(result, file)
        at_any_cost = read_options(result, file, dear) if dear else options
        row |= figures_of(result, options, at_any_cost, self.seed)
        self.options[place][row["attack"]], self.any_cost[place][row["attack"]] = options, at_any_cost

    def drop_controls(self, described: Row) -> None:
        """Leave out controls of an earlier run that say nothing of this one.

        Args:
            described: `Target.described` of a model now.
        """
        controls = self.results["controls"].items()
        self.results["controls"] = {name: one for name, one in controls if not measured_otherwise(one, described)}

    def conclude(self) -> None:
        """What all of it shows, as far as it was made."""
        controls = rows_of(self.results)
        for place, report in self.reports.items():
            weigh(report["attacks"], controls)
            report["columns"] = columns_of(
                report["attacks"], self.before[place], self.options[place], self.seed, self.any_cost[place]
            )
        made = {
            place: (self.before[place], self.options[place], report["columns"], self.any_cost[place])
            for place, report in self.reports.items()
            if not place.startswith(f"{CONTROLS}/")
        }
        self.results["comparisons"] = [
            compare_models(*pair, made, self.seed) for pair in itertools.combinations(made, 2)
        ]
        self.save()

    def save(self) -> None:
        write_json(self.file, self.results)
