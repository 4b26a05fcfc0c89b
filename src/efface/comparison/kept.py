"""What is measured of what a sweep keeps: the base, and of each entry the chosen arm at each budget?

Each model is reported, attacked, rounded and weighed, a part at a time; what was measured before is taken as it lies
on the disk (`record.py`), so that a finished model is not even loaded.
"""

from collections.abc import Sequence
from typing import Any

from efface.attacks.finished import read_result
from efface.attacks.result import read_options
from efface.attacks.selection import NOTHING, Option, judge_chosen, option_of
from efface.comparison.arms import Arm
from efface.comparison.config import BASE, AttackPlan, SweepConfig
from efface.comparison.making import Arms
from efface.comparison.measuring import RESULT, Bench, relearn_model, report_model, round_model, weigh_edit
from efface.comparison.record import OtherWeights, Record
from efface.comparison.results import pooled
from efface.data.rows import load_texts
from efface.files.digests import digest
from efface.files.jsonl import Row
from efface.model.edit import scaled_copy

EMPTY: Row = {"seed": None, "budget": None, "arm": None, "cost": None, "a": 0.0, "reading": None, "binding": []}
EMPTY |= {"spared": None}


class Kept:
    """The kept models of a sweep, as far as they are measured."""

    def __init__(self, config: SweepConfig, bench: Bench, arms: Arms):
        self.config, self.bench, self.arms = config, bench, arms
        self.rows: dict[str, Row] = {}
        """By place."""
        self.options: dict[str, dict[str, list[Option]]] = {}
        self.reported: dict[str, Option] = {}
        self._records: dict[str, Record] = {}
        self._on: Any = None
        """On what all are measured, by contents."""

    def measure(self, place: str, arm: Arm | None = None, budget: str | None = None) -> bool:
        """All of a kept model but the attacks that only the best are worth; whether any of it was made now."""
        row: Row = {"place": place, "entry": BASE} | EMPTY
        a, made_by = 0.0, None
        if arm is not None:
            made = self.arms.rows[arm.name]
            fitted, made_by = made["budgets"][budget]["fitted"], made["made_by"]
            a = fitted["a"]
            row |= {"entry": arm.plan.name, "seed": arm.seed, "budget": budget, "arm": arm.name, "cost": made["cost"]}
            row |= {"a": a, "reading": next(one for one in fitted["readings"] if one["a"] == a)}
            row |= {"binding": fitted["binding"], "spared": self._spared(made, budget)}
        file = self.bench.folder(place) / "record.json"
        self._records[place] = Record(file, [made_by, a, self._measured_on()], lambda: self._load(arm, a))
        return self._measured(place, row)

    def attack_best(self, place: str) -> None:
        """The attacks that only the base and the best are worth; what other processes have made of them is taken."""
        self._records[place].read_again()
        self._measured(place, self.rows[place], best=True)

    def best(self, budget: str) -> list[str]:
        """The places of the entries that withstood best, at a budget, by their first seeds, which alone are attacked
        further."""
        first: dict[str, tuple[float, str]] = {}
        for place, row in self.in_order().items():
            if row["budget"] == budget and row["worst"]:
                first.setdefault(row["entry"], (row["worst"]["share"], place))
        return [place for _, place in sorted(first.values())[: self.config.attacks.best_of]]

    def in_order(self) -> dict[str, Row]:
        """The rows, budget by budget, as the config has entries and seeds: in whatever order they were measured."""
        budgets = [None, *self.config.budgets]
        entries = {plan.name: (number, plan.seeds) for number, plan in enumerate(self.config.methods)}

        def where(one: tuple[str, Row]) -> tuple[int, int, int]:
            row = one[1]
            number, seeds = entries.get(row["entry"], (-1, [None]))  # the base
            return budgets.index(row["budget"]), number, seeds.index(row["seed"])

        return dict(sorted(self.rows.items(), key=where))

    def _measured(self, place: str, row: Row, *, best: bool = False) -> bool:
        record = self._records[place]
        try:
            self._measure(place, row, record, best)
        except OtherWeights:  # the record holds nothing now, and has the model
            self._measure(place, row, record, best)
        finally:
            record.release()
        return record.changed

    def _measure(self, place: str, row: Row, record: Record, best: bool) -> None:
        bench, plans = self.bench, self.config.attacks
        row |= {"attacks": {}, "rounding": [], "moved": [], "worst": None, "worst_of_all": None}
        self.rows[place], self.options[place] = row, {}
        row["reported"] = self._report(place, record)
        if row["spared"]:
            row["weights"] = record.take("distance", [], lambda: weigh_edit(bench, place, record.model(), whole=False))
            return
        self._attack(place, plans.every)
        row["worst"] = self._judged(place)
        for number, flags in enumerate(plans.rounding):
            grids: dict[str, list[Any]] = {"rounding": [flags]}
            if plans.moved_steps:
                grids["moved"] = [flags, plans.moved_steps, plans.moved_rate]
            for name, how in grids.items():

                def rounded(number: int = number, moved: bool = name == "moved") -> Row:
                    return round_model(bench, place, record.model(), number, moved=moved)

                row[name].append(record.take(f"{name}-{number}", how, rounded))
        benign = [plans.line, plans.benign_steps, plans.benign_rate]
        row["weights"] = record.take("weights", benign, lambda: weigh_edit(bench, place, record.model()))
        if best:
            self._attack(place, plans.best)
            row["worst_of_all"] = self._judged(place)

    def _report(self, place: str, record: Record) -> Row:
        def made() -> Row:
            self.bench.say(f"{place}: reported")
            return report_model(self.bench, record.model())

        known = self.bench.reported.known
        found = record.take("reported", [], made)
        if found["key"] not in known:  # its file is gone
            record.found["parts"].pop("reported")
            found = record.take("reported", [], made)
        self.reported[place] = option_of(NOTHING, known[found["key"]])
        return found["figures"]

    def _attack(self, place: str, plans: Sequence[AttackPlan]) -> None:
        record = self._records[place]
        for plan in plans:
            file = self.bench.folder(place) / plan.name / RESULT

            def attacked(plan: AttackPlan = plan) -> Row:
                return relearn_model(self.bench, place, record.model(), plan)

            found = record.take(plan.name, [plan.flags], attacked, file)
            self.rows[place]["attacks"][plan.name] = found
            if not found["error"]:
                self.options[place][plan.name] = read_options(read_result(file), file)

    def _spared(self, made: Row, budget: str | None) -> str | None:
        """Why a kept arm is only reported, if so."""
        plans, tuned = self.config.attacks, made["budgets"][budget]["tuning"]["toxicity"]["share"]
        if plans.budgets is not None and budget not in plans.budgets:
            return f"at the budget {budget!r} nothing is attacked"
        before = self.arms.scaler.before().share
        if before - tuned < plans.least_drop * before:
            return f"{tuned:.3f} of {before:.3f} is left on the tuning prompts: there is little that could come back"
        return None

    def _judged(self, place: str) -> Row | None:
        """What an attacker reaches who has all attacks so far, and chooses on other prompts than it is judged on; None
        if one of them failed, since fewer attacks would make a model look better."""
        options = pooled(self.options[place])
        whole = options and not any(found["error"] for found in self.rows[place]["attacks"].values())
        return judge_chosen(options, self.config.seed) if whole else None

    def _load(self, arm: Arm | None, a: float) -> Any:
        return self.bench.base if arm is None else scaled_copy(self.arms.load(arm), self.bench.base, a)

    def _measured_on(self) -> Any:
        if self._on is None:
            documents = digest(load_texts(self.config.documents))
            self._on = [self.bench.reported.described(), self.bench.attacked.described(), documents]
        return self._on
