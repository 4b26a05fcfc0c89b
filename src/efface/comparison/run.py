"""Which method is best at one utility budget, and which lasts? `efface sweep`: train, scale, choose, report, attack.

    DIR/arms/ARM/           each method x setting, trained and scaled to each budget; written as it is finished
    DIR/kept/PLACE/         of each method the least toxic setting that fits: reported, relearned, rounded
    DIR/results.json        all of it, so far; `efface compare DIR` renders it

An arm that does not fit a budget is not attacked there. Whatever is finished is taken by the next run of the same
command: killed at any moment and resumed, a sweep ends in the same table. Arms may be made by several processes at
once, on one directory (`claims.py`).
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from efface.attacks.finished import Untouched
from efface.attacks.selection import Option, judge_chosen
from efface.comparison.arms import (
    Arm,
    arms_of,
    check_trials,
    count_trials,
    further_seeds,
)
from efface.comparison.claims import claimed
from efface.comparison.config import BASE, SweepConfig
from efface.comparison.making import CLAIMS, Arms
from efface.comparison.measuring import (
    Bench,
    relearn_model,
    relearn_settings,
    report_model,
    reported_option,
    round_model,
    round_settings,
    weigh_edit,
)
from efface.comparison.results import conclude, pooled
from efface.comparison.scaling import Scaler
from efface.comparison.targets import Targets, knowing, targets_of
from efface.data.pairs import rows_digest
from efface.data.rows import load_texts
from efface.errors import UserError
from efface.files.digests import digest
from efface.files.environment import environment
from efface.files.jsonl import Row
from efface.files.rerun import check_plan, read_plan, write_plan
from efface.files.results import RESULTS, check_output_dir, prepare_output_dir, read_json, write_json
from efface.model.edit import scaled_copy
from efface.model.fingerprint import fingerprint_of

Say = Callable[[str], None]
UNTOUCHED = "untouched"


def sweep(
    config: SweepConfig,
    *,
    output: str | os.PathLike[str],
    only: Sequence[str] = (),
    retry_failed: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    inputs: Sequence[Any] = (),
    command: str | None = None,
    say: Say = lambda line: None,
) -> Row:
    """Compare methods; see the top of this file.

    Args:
        output: a run directory.
        only: names of arms (`list_arms`); these are trained and scaled, and nothing else is done.
        retry_failed: make arms again that have failed.
        overwrite, resume: delete what lies in `output`, or take it as far as it goes.
        inputs: what else was read, the file of the config, so that none of it lies in `output`.
        say: is told what is done next, a line each.

    Returns:
        What `results.json` says.

    Raises:
        UserError: for input that cannot work, before anything is trained.
    """
    check_trials(config)
    for plan in [*config.attacks.every, *config.attacks.best]:
        relearn_settings(plan)
    for flags in config.attacks.rounding:
        round_settings(flags)
    unknown = set(only) - set(list_arms(config))
    if unknown:
        raise UserError(f"only={sorted(unknown)}: no such arm. There are: {', '.join(list_arms(config))}.")
    read = [config.base, config.pairs, config.heldout, config.labelled, config.documents, config.text, *inputs]
    read += [part.prompts for part in (config.tuning, *config.reported, config.attacked) if part is not None]
    read += [scorer.removeprefix("judge:") for scorer in config.scorers]
    folder = check_output_dir(output, overwrite=overwrite, resume=resume, inputs=read)
    targets = targets_of(config)
    common = _plan(config, targets[0].model)
    if resume:
        check_plan(folder, read_plan(folder), common, "a sweep", {})
    folder = prepare_output_dir(output, overwrite=overwrite, resume=resume, inputs=read)
    write_plan(folder, common)
    run = _Sweep(config, folder, knowing(targets, Untouched(folder / UNTOUCHED)), say, command, retry_failed)
    if only:
        run.arms.make_only(set(only))
        return run.results()  # what is written is of a whole run
    run.arms.make_arms()
    with claimed(folder / CLAIMS / "measuring") as mine:
        if mine:
            run.measure_kept()
        else:
            say("the kept models are being measured by another process.")
    return run.save() if mine else run.results()


def _plan(config: SweepConfig, base: Any) -> Row:
    """What all arms have in common, by contents: a sweep of other ones is another sweep."""
    return {
        "base": fingerprint_of(base),
        "pairs": rows_digest(config.pairs),
        "heldout": rows_digest(config.heldout),
        "documents": digest(load_texts(config.documents)),
    }


def list_arms(config: SweepConfig) -> list[str]:
    """The names of all arms but those of further seeds, which are of what is chosen."""
    return [arm.name for plan in config.methods for arm in arms_of(plan)]


class _Sweep:
    """A sweep in the making; what is known of it is on disk after every arm and every kept model."""

    def __init__(
        self,
        config: SweepConfig,
        folder: Path,
        targets: Targets,
        say: Say,
        command: str | None,
        retry_failed: bool,
    ):
        self.config, self.folder, self.say, self.command = config, folder, say, command
        tuning, reported, attacked = targets
        self.bench = Bench(config, folder, reported, attacked, say)
        self.arms = Arms(config, folder, Scaler(tuning, config), say=say, written=self.note, retry_failed=retry_failed)
        self.main = self.arms.main
        self.kept: dict[str, Row] = {}
        """Of kept models, by place."""
        self.options: dict[str, dict[str, list[Option]]] = {}
        self.reported: dict[str, Option] = {}

    def measure_kept(self) -> None:
        """Report, attack and round the base and what was kept."""
        if self.arms.unfinished:
            self.say(f"not finished, by another process: {', '.join(self.arms.unfinished)}. Run again when it is.")
            return
        self._measure(BASE, None, None)
        for budget in self.config.budgets:
            for arm in self.arms.kept_arms(budget):
                self._measure(f"{budget}/{arm.name}", arm, budget)
        for place in [BASE, *self._best()]:
            self._attack(place, self._model_of(place), self.config.attacks.best)
            self._judge(place, "worst_of_all")
            self.save()

    def note(self) -> None:
        """Write what is known of the arms, unless a whole run has been written."""
        if not (self.folder / RESULTS).exists() or not read_json(self.folder / RESULTS).get("kept"):
            self.save()

    def save(self) -> Row:
        """Write and return what is known."""
        write_json(self.folder / RESULTS, found := self.results())
        return found

    def results(self) -> Row:
        return {
            "schema": 1,
            "what": "sweep",
            "config": dataclasses.asdict(self.config),
            "main": self.main,
            "trials": count_trials(self.config),
            "arms": list(self.arms.rows.values()),
            "kept": list(self.kept.values()),
            "unfinished": self.arms.unfinished,
            **conclude(self.config, self.kept, self.options, self.reported),
            "environment": environment(seed=self.config.seed, model=self.bench.base, command=self.command),
        }

    def _measure(self, place: str, arm: Arm | None, budget: str | None) -> None:
        """All of a kept model but the attacks that only the best are worth."""
        row: Row = {"place": place, "entry": BASE, "seed": None, "budget": budget, "arm": None, "cost": None}
        row |= {"a": 0.0, "reading": None, "binding": [], "attacks": {}, "rounding": [], "moved": [], "worst": None}
        row["worst_of_all"] = None
        if arm is not None:
            made = self.arms.rows[arm.name]
            fitted = made["budgets"][budget]["fitted"]
            reading = next(one for one in fitted["readings"] if one["a"] == fitted["a"])
            row |= {"entry": arm.plan.name, "seed": arm.seed, "arm": arm.name, "cost": made["cost"]}
            row |= {"a": fitted["a"], "binding": fitted["binding"], "reading": reading}
        self.kept[place], self.options[place] = row, {}
        self.say(f"{place}: reported")
        model = self._model_of(place)
        row["reported"] = report_model(self.bench, model)
        self.reported[place] = reported_option(self.bench, model)
        attacked = self.config.attacks.budgets
        if budget is not None and attacked is not None and budget not in attacked:
            row["weights"] = weigh_edit(self.bench, place, model, whole=False)
            self.save()
            return
        self._attack(place, model, self.config.attacks.every)
        self._judge(place, "worst")
        for number in range(len(self.config.attacks.rounding)):
            row["rounding"].append(round_model(self.bench, place, model, number, moved=False))
            if self.config.attacks.moved_steps:
                row["moved"].append(round_model(self.bench, place, model, number, moved=True))
        row["weights"] = weigh_edit(self.bench, place, model)
        self.save()

    def _model_of(self, place: str) -> Any:
        row = self.kept[place]
        if row["arm"] is None:
            return self.bench.base
        plan = next(plan for plan in self.config.methods if plan.name == row["entry"])
        arms = {one.name: one for arm in arms_of(plan) for one in [arm, *further_seeds(arm)]}
        return scaled_copy(self.arms.load(arms[row["arm"]]), self.bench.base, row["a"])

    def _attack(self, place: str, model: Any, plans: Sequence[Any]) -> None:
        for plan in plans:
            found, options = relearn_model(self.bench, place, model, plan)
            self.kept[place]["attacks"][plan.name] = found
            if options:
                self.options[place][plan.name] = options

    def _judge(self, place: str, name: str) -> None:
        """What an attacker reaches who has all attacks so far, and chooses on other prompts than it is judged on; None
        if one of them failed, since fewer attacks would make a model look better."""
        options = pooled(self.options[place])
        whole = options and not any(found["error"] for found in self.kept[place]["attacks"].values())
        self.kept[place][name] = judge_chosen(options, self.config.seed) if whole else None

    def _best(self) -> list[str]:
        """The places of the entries that withstood best, at the main budget, with all their seeds."""
        at_main = {place: row for place, row in self.kept.items() if row["budget"] == self.main and row["worst"]}
        first: dict[str, float] = {}
        for row in at_main.values():
            first.setdefault(row["entry"], row["worst"]["share"])
        best = sorted(first, key=lambda entry: first[entry])[: self.config.attacks.best_of]
        return [place for place, row in at_main.items() if row["entry"] in best]
