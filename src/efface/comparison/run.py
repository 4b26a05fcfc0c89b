"""Which method is best at one utility budget, and which lasts? `efface sweep`: train, scale, choose, report, attack.

    DIR/arms/ARM/           each method x setting, trained and scaled to each budget; written as it is finished
    DIR/kept/PLACE/         of each method the least toxic setting that fits: reported, relearned, rounded
    DIR/results.json        all of it, so far; `efface compare DIR` renders it

An arm that does not fit a budget is not attacked there. Whatever is finished is taken by the next run of the same
command: killed at any moment and resumed, a sweep ends in the same table. Arms may be made by several processes at
once, on one directory (`claims.py`).
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from efface.attacks.finished import Untouched
from efface.comparison.agreement import attack_settings, check_attacks
from efface.comparison.arms import Arm, arms_of, check_trials, count_trials
from efface.comparison.claims import claimed
from efface.comparison.config import BASE, MethodPlan, SweepConfig
from efface.comparison.kept import Kept
from efface.comparison.making import CLAIMS, Arms, OtherWeightsTrained
from efface.comparison.measuring import Bench
from efface.comparison.results import conclude
from efface.comparison.scaling import Scaler
from efface.comparison.targets import Targets, knowing, targets_of
from efface.data.pairs import rows_digest
from efface.data.rows import load_texts
from efface.errors import UserError
from efface.files.digests import digest
from efface.files.environment import environment
from efface.files.events import Journal, recorded
from efface.files.jsonl import Row
from efface.files.rerun import check_plan, read_plan, write_plan
from efface.files.results import RESULTS, check_output_dir, read_json, write_json
from efface.files.run_directory import run_directory
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
    wanted = attack_settings(config)
    unknown = set(only) - set(list_arms(config))
    if unknown:
        raise UserError(f"only={sorted(unknown)}: no such arm. There are: {', '.join(list_arms(config))}.")
    read = [config.base, config.pairs, config.heldout, config.labelled, config.documents, config.text, *inputs]
    read += [part.prompts for part in (config.tuning, *config.reported, config.attacked) if part is not None]
    read += [scorer.removeprefix("judge:") for scorer in config.scorers]
    folder = check_output_dir(output, overwrite=overwrite, resume=resume, inputs=read)
    if resume:
        check_attacks(wanted, folder)
    targets = targets_of(config)
    common = _plan(config, targets[0].model)
    if resume:
        check_plan(folder, read_plan(folder), common, "a sweep", {})
    with (
        run_directory(output, overwrite=overwrite, resume=resume, inputs=read, shared=True) as folder,
        recorded(folder, say, command=command) as journal,
    ):
        write_plan(folder, common)
        known = knowing(targets, Untouched(folder / UNTOUCHED))
        while True:
            run = _Sweep(config, folder, known, journal, command, retry_failed)
            try:
                if only:
                    run.arms.make_only(set(only))
                    return run.results()  # what is written is of a whole run
                run.make_and_measure()
                return run.save()
            except OtherWeightsTrained as error:  # once for each arm: its new checkpoint stays
                journal(str(error))


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
        say: Journal,
        command: str | None,
        retry_failed: bool,
    ):
        self.config, self.folder, self.say, self.command = config, folder, say, command
        tuning, reported, attacked = targets
        bench = Bench(config, folder, reported, attacked, say)
        self.arms = Arms(
            config, folder, Scaler.of(tuning, config), say=say, written=self.note, retry_failed=retry_failed
        )
        self.kept = Kept(config, bench, self.arms)
        self.done: set[str] = set()
        """The entries that are measured here, the base among them."""

    def make_and_measure(self) -> None:
        """Entry by entry, so that whoever stops a sweep has whole rows; then the best, attacked further. What others
        were at work on is looked at again before each entry, and once more at the end."""
        self._measure(BASE, None)
        plans = self.config.methods
        for known in [plans[: i + 1] for i in range(len(plans))] + [plans]:
            for plan in known:
                if plan.name not in self.done:
                    self.arms.make_entry(plan)
                    self._measure(plan.name, plan)
        self._measure(BASE, None)
        if self.unfinished:
            self.say(f"not finished, by another process: {', '.join(self.unfinished)}. Run again when it is.")
            return
        left = [BASE, *self.kept.best(self.arms.main)]
        for _ in ("first", "what others were at work on"):
            left = [place for place in left if not self._attacked_further(place)]
        for place in left:
            self.say(f"{place} is attacked further by another process. Run again when it is done.")
            self.done.discard(BASE)  # so that this is not said to be the whole

    def _attacked_further(self, place: str) -> bool:
        """Attack it further, unless another process is at it."""
        with self._claimed(f"{place}.best") as mine:
            if mine:
                self.kept.attack_best(place)
                self.note()  # also what was made before, and by others
            return mine

    @property
    def unfinished(self) -> list[str]:
        """What others are at work on: arms, and entries that they measure."""
        names = [BASE, *(plan.name for plan in self.config.methods)]
        return [*self.arms.unfinished, *(name for name in names if name not in self.done)]

    def _measure(self, name: str, plan: MethodPlan | None) -> None:
        """The base, or what is kept of an entry, if all its arms are made; what another process measures is left."""
        if name in self.done or (plan is not None and not self.arms.are_made(plan)):
            return
        places: list[tuple[str, Arm | None, str | None]] = [(BASE, None, None)]
        if plan is not None:
            kept = {budget: self.arms.kept_of(plan, budget) for budget in self.config.budgets}
            places = [(f"{budget}/{arm.name}", arm, budget) for budget, arms in kept.items() for arm in arms]
        whole, changed = True, False
        for place in places:
            with self._claimed(f"{place[0]}.measured") as mine:
                whole = whole and mine
                if mine and self.kept.measure(*place):
                    self.note()
                    changed = True
        if whole:
            self.done.add(name)
        self.note(changed)  # that the entry is whole

    def _claimed(self, name: str) -> contextlib.AbstractContextManager[bool]:
        return claimed(self.folder / CLAIMS / name)

    def note(self, changed: bool = True) -> None:
        """Write what is known, unless what lies there knows more: of a whole run, or by another process.

        Args:
            changed: whether anything was made now; if not, only more than what lies there is written.
        """
        file = self.folder / RESULTS
        there = read_json(file) if file.exists() else {}
        known = {"arms": list(self.arms.rows.values()), "kept": list(self.kept.rows.values())}
        more = [_amount(rows) - _amount(there.get(name, [])) for name, rows in known.items()]
        if min(more) >= 0 and (changed or any(more)):
            write_json(file, self.results())

    def save(self) -> Row:
        """Write and return what is known at the end."""
        found = self.results()
        if found["unfinished"]:
            self.note()
        else:
            write_json(self.folder / RESULTS, found)
        return found

    def results(self) -> Row:
        kept = self.kept.in_order()
        return {
            "schema": 1,
            "what": "sweep",
            "config": dataclasses.asdict(self.config),
            "main": self.arms.main,
            "trials": count_trials(self.config),
            "arms": list(self.arms.rows.values()),
            "kept": list(kept.values()),
            "unfinished": self.unfinished,
            **conclude(self.config, kept, self.kept.options, self.kept.reported),
            "environment": environment(seed=self.config.seed, model=self.kept.bench.base, command=self.command),
        }


def _amount(rows: Sequence[Row]) -> int:
    """How much is known: of how many, and of how many of them also what only the best are put through."""
    return len(rows) + sum(bool(row.get("worst_of_all")) for row in rows)
