"""How robust are models against everything we have? `efface audit`: each attack of a budget, one after the other.

    DIR/results.json                 everything below, and for each model its columns (`columns.py`)
    DIR/untouched/                   what the base and the models do before any attack, measured once
    DIR/MODEL/ATTACK/result.json     as `efface attack` writes it, the generations beside it; .part until it is done
    DIR/controls/                    the same of the controls (`controls.py`)

Whatever one attack dies of, the others are made.
"""

import dataclasses
import gc
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from efface.attacks.finished import MadeOtherwise, Untouched, finished_result, read_result
from efface.attacks.result import AttackResult
from efface.attacks.target import Target
from efface.audit.battery import BUDGETS, Trial, choose_trials, folder_of, left_to_others
from efface.audit.controls import BASE, CONTROLS, control_model, needed
from efface.audit.earlier import Earlier, NotAlike, check_alike, read_earlier, staying_models
from efface.audit.ledger import Ledger
from efface.audit.rows import RESULT, AuditResults, is_base, told, training_seed
from efface.audit.shape import INTERRUPTED
from efface.errors import RunError, UserError, out_of_memory
from efface.files.environment import environment
from efface.files.events import Journal, recorded
from efface.files.jsonl import Row
from efface.files.results import MARKER, RESULTS
from efface.files.run_directory import run_directory
from efface.generation.processes import go_on_after

log = logging.getLogger(__name__)
UNTOUCHED = "untouched"
Say = Callable[[str], None]


def audit_models(
    models: Mapping[str, Any],
    *,
    output: str | os.PathLike[str],
    budget: str = "quick",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    controls: bool = True,
    measurement: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    say: Say = lambda line: None,
) -> AuditResults:
    """Attack every model with every attack of the budget.

    Args:
        models: name -> what `Target.load` takes for a model.
        output: a run directory.
        budget, only, skip: which attacks, see `battery.choose_trials`.
        controls: make each attack on its control too, without which no row is known to be evidence; needs a base.
        measurement: other arguments of `Target.load`: `base`, `scorer`, `command`, ... Where `text`, `limit` and
            `max_text_tokens` are None or missing, it is the shipped text and as much as the budget says.
        overwrite, resume: delete what lies in `output`, or take it as far as it goes: also models that are not given
            now stay in the table, with the rows that were finished and their controls. They must have been measured
            as those are that are given now.
        say: is told what is done next, a line each.

    Returns:
        What `results.json` says. An attack that failed or was skipped says so there, under `error` or `skipped`; a
        model, or a control, that could not be loaded or measured, too.

    Raises:
        UserError: for input that cannot work.
        RunError: if no model could be loaded and measured.
    """
    chosen = choose_trials(budget, only, skip)
    _check(models)
    sizes, given = BUDGETS[budget], {name: value for name, value in (measurement or {}).items() if value is not None}
    how = {"text": "shipped:text", "limit": sizes.limit, "max_text_tokens": sizes.max_text_tokens} | given
    read = [*models.values(), *(given.get(name) for name in ("base", "prompts", "rows", "labelled", "text"))]
    with (
        run_directory(output, overwrite=overwrite, resume=resume, inputs=read) as folder,
        recorded(folder, say, command=how.get("command")) as journal,
    ):
        earlier = read_earlier(folder / RESULTS)
        staying = staying_models(earlier, set(models), budget)
        order = [*(one.report["name"] for one in staying), *models]
        seed = int(how.get("seed", 0))
        head = {
            "schema": 2,
            "budget": budget,
            "cannot_show": [name for name in left_to_others(budget) if name not in {trial.name for trial in chosen}],
            "base": earlier.get("base"),
            "comparisons": [],
            "seeds": {"attack": seed, "generations": None},
            "environment": None,
            "command": how.get("command"),
        }
        ledger = Ledger(folder / RESULTS, head, earlier, order, seed)
        run = _Run(folder, how | {"resume": resume}, journal, ledger, staying)
        try:
            for one in staying:
                run.again(one)
            errors = [error for name, model in models.items() if (error := run.model(name, model, chosen)) is not None]
            if len(errors) == len(models):
                raise errors[0]
            if controls and given.get("base") is not None:
                run.controls()
        except (NotAlike, MadeOtherwise):  # nothing was made, and the earlier table is left as it is
            raise
        except BaseException:  # also when it is interrupted
            ledger.conclude()
            raise
        ledger.conclude()
        return cast(AuditResults, ledger.results)


def _check(models: Mapping[str, Any]) -> None:
    if not models:
        raise UserError("an audit needs at least one model.")
    for name in models:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name in (UNTOUCHED, CONTROLS, RESULTS, MARKER):
            raise UserError(f"model name {name!r} cannot be a directory of the audit. Name it otherwise: NAME=MODEL.")


class _Run:
    """An audit in the making; its ledger is on disk after every attack.

    Args:
        folder: of the audit.
        how: arguments of `Target.load`.
        say: is told what is done.
        ledger: the table.
        staying: models of an earlier run that are not given now.
    """

    def __init__(self, folder: Path, how: Row, say: Journal, ledger: Ledger, staying: Sequence[Earlier]):
        self.folder, self.how, self.say, self.ledger = folder, how, say, ledger
        self.known = Untouched(folder / UNTOUCHED)
        self.staying = [one.report for one in staying]
        self.trials: dict[str, Trial] = {}
        """All that were made on any model in the table, by name."""

    def model(self, name: str, model: Any, chosen: Sequence[Trial]) -> UserError | RunError | None:
        """Measure and attack a model. Returns why, if it could not even be measured."""
        self.trials |= {trial.name: trial for trial in chosen}
        return self._audit(name, model, {"name": name, "error": None, "attacks": [], "columns": {}}, chosen)

    def again(self, earlier: Earlier) -> None:
        """A model of an earlier run: all of it is taken from there, and where that cannot be, its old report is."""
        self.trials |= {trial.name: trial for trial in earlier.trials}
        if earlier.model is None or self.model(earlier.report["name"], earlier.model, earlier.trials) is not None:
            self.ledger.enter(earlier.report["name"], earlier.report)

    def controls(self) -> None:
        """Make the attacks on their controls, those that were made on a model, be it in an earlier run."""
        models = self.ledger.results["models"]
        made = {row["attack"] for model in models for row in model["attacks"] if row["judged"]}
        for name, trials in needed(list(self.trials.values())).items():
            wanted = [trial for trial in trials if trial.name in made]
            if not wanted:
                continue
            twins = (one["name"] for one in models if one["error"] is None and is_base(one))
            twin = next(twins, None) if name == BASE else None
            report: Row = {"name": name, "as": twin, "error": None, "attacks": []}
            place = f"{CONTROLS}/{name}"
            if twin is not None:
                self.ledger.enter(place, report)
                continue
            try:
                rows = self.how.get("rows", "shipped:heldout")
                model = control_model(name, self.how["base"], rows, self.folder / place, self.say)
            except (Exception, SystemExit) as error:
                log.info("the control %s could not be made", name, exc_info=True)
                report["error"] = told(error)
                self.ledger.enter(place, report)
                go_on_after(report["error"])
            else:
                self._audit(place, model, report, wanted)

    def _audit(self, place: str, model: Any, report: Row, chosen: Sequence[Trial]) -> UserError | RunError | None:
        try:
            target, finished = self._begin(place, model, report, chosen)
        except NotAlike:
            raise
        except (Exception, SystemExit) as error:  # SystemExit: of a scorer of a third party
            log.info("%s could not be measured", place, exc_info=True)
            report["error"] = told(error)
            self.ledger.enter(place, report)
            go_on_after(report["error"])
            return error if isinstance(error, UserError | RunError) else RunError(f"{place}: {told(error)}")
        except BaseException:
            self.ledger.enter_interrupted(place, report)
            raise
        self._attack(place, target, finished, chosen)
        return None

    def _begin(
        self, place: str, model: Any, report: Row, chosen: Sequence[Trial]
    ) -> tuple[Target, dict[str, AttackResult]]:
        """Load the model and measure it. Returns also the results of earlier attacks on it, by trial."""
        self.say(f"{place}: measured before the attacks")
        try:
            target = Target.load(model, **self.how)
            target.known = self.known
            described = target.described()
            check_alike(self.staying, described)
            finished = {
                trial.name: finished_result(self._file(place, trial), trial.name, trial.settings, described)
                for trial in chosen
            }
            untouched = target.untouched("model", described)
        except Exception as error:
            if out_of_memory(error):
                raise RunError(f"{place} ran out of memory before the attacks. Lower max_tokens_at_once.") from error
            raise
        base = None if target.base is None else target.untouched("base", described).to_dict()
        self.ledger.results["base"] = None if base is None else {"model": target.names["base"], **base}
        made_on = environment(seed=target.seed, model=target.model, command=target.command)
        self.ledger.results["environment"] = made_on
        self.ledger.results["seeds"]["generations"] = target.decoding.seed
        self.ledger.drop_controls(described)
        named = target.names["model"]
        report |= {"model": named, "target": described, "training_seed": training_seed(named)}
        self.ledger.enter_measured(place, report, untouched)
        return target, {key: result for key, result in finished.items() if result is not None}

    def _attack(self, place: str, target: Target, finished: dict[str, AttackResult], chosen: Sequence[Trial]) -> None:
        """All attacks on the model that was begun last; what is finished is taken first, so that it is in the table
        whatever comes of the others."""
        rows = self.ledger.begin_rows(place, chosen)
        for row, trial in zip(rows, chosen, strict=True):
            if trial.name in finished:
                self.ledger.take(row, place, finished[trial.name], self._file(place, trial))
        self.ledger.save()
        for number, (row, trial) in enumerate(zip(rows, chosen, strict=True), 1):
            if trial.name in finished:
                continue
            try:
                if trial.entry.needs_base and target.base is None:
                    row["skipped"] = "it needs the model that this one was made from: pass --base."
                elif trial.needs_labelled and target.labelled is None:
                    row["skipped"] = "it needs labelled texts: pass --labelled."
                else:
                    self.say(f"{place}: {number} of {len(chosen)}, {trial.name} {trial.flags}".rstrip())
                    with self.say.during("attack", model=place, attack=trial.name) as found:
                        self._one(row, place, trial, dataclasses.replace(target, output=self._file(place, trial)))
                        found["error"] = row["error"]
            finally:  # also when it is interrupted
                self.ledger.save()

    def _one(self, row: Row, place: str, trial: Trial, target: Target) -> None:
        """Make one attack; `row` says what came of it, whatever that is."""
        assert target.output is not None
        start = time.monotonic()
        try:
            target.output.parent.mkdir(parents=True, exist_ok=True)  # for the part file
            target.output.unlink(missing_ok=True)  # what is there is no result, or it would have been taken
            result = trial.attack(target, trial.settings)
            if not os.path.lexists(target.output):  # an attack of a third party may not record itself
                result.save(target.output)
            self.ledger.take(row, place, read_result(target.output), target.output)
        except (Exception, SystemExit) as error:  # of a third party's code, which must not end the audit
            row["error"] = told(error)
            go_on_after(row["error"])
            log.info("%s failed", trial.name, exc_info=True)
            gc.collect()  # copies of the model that an error holds in cycles
            self.say(f"{trial.name} failed: {row['error']}")
        except BaseException:
            row["error"] = INTERRUPTED
            raise
        finally:
            row["seconds"] = round((row["seconds"] or 0) + time.monotonic() - start, 1)

    def _file(self, place: str, trial: Trial) -> Path:
        """Of the result of an attack on a model."""
        return self.folder / place / folder_of(trial.name) / RESULT
