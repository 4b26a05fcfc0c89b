"""How robust are models against everything we have? `efface audit`: each attack of a budget, one after the other.

    DIR/results.json                 everything below, and for each model its columns (`columns.py`)
    DIR/untouched/                   what the base and the models do before any attack, measured once
    DIR/MODEL/ATTACK/result.json     as `efface attack` writes it, the generations beside it; .part until it is done
    DIR/controls/                    the same of the controls (`controls.py`)

Whatever one attack dies of, the others are made.
"""

import dataclasses
import gc
import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from efface.attacks.finished import Untouched, finished_result, read_result
from efface.attacks.result import AttackResult, read_options
from efface.attacks.selection import NOTHING, Option, option_of
from efface.attacks.target import Target
from efface.audit.battery import BUDGETS, Trial, choose_trials, folder_of, left_to_others
from efface.audit.columns import columns_of, compare_models, weigh
from efface.audit.controls import BASE, CONTROLS, control_model, needed, rows_of
from efface.audit.earlier import Earlier, earlier_models, seconds_spent
from efface.audit.rows import RESULT, AuditResults, figures_of, is_base, row_of, told, too_dear, training_seed
from efface.errors import RunError, UserError, out_of_memory
from efface.files.environment import environment
from efface.files.events import Journal, recorded
from efface.files.jsonl import Row
from efface.files.results import MARKER, RESULTS, write_json
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
            now stay in the table, with the rows that were finished.
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
        run = _Run(folder, chosen, how | {"resume": resume}, journal, budget)
        try:
            for earlier in earlier_models(folder / RESULTS, without=set(models)):
                run.again(earlier)
            errors = [error for name, model in models.items() if (error := run.model(name, model, chosen)) is not None]
            if len(errors) == len(models):
                raise errors[0]
            if controls and given.get("base") is not None:
                run.controls()
        finally:  # also when it is interrupted
            run.conclude()
        return cast(AuditResults, run.results)


def _check(models: Mapping[str, Any]) -> None:
    if not models:
        raise UserError("an audit needs at least one model.")
    for name in models:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name in (UNTOUCHED, CONTROLS, RESULTS, MARKER):
            raise UserError(f"model name {name!r} cannot be a directory of the audit. Name it otherwise: NAME=MODEL.")


class _Run:
    """An audit in the making; `results` is on disk after every attack.

    What is attacked has a place, its directory: that of a model has its name, that of a control is "controls/NAME".
    """

    def __init__(self, folder: Path, chosen: list[Trial], how: Row, say: Journal, budget: str):
        self.folder, self.chosen, self.how, self.say = folder, chosen, how, say
        self.known = Untouched(folder / UNTOUCHED)
        self.earlier = seconds_spent(folder / RESULTS)
        self.reports: dict[str, Row] = {}
        """By place, of what could be measured."""
        self.before: dict[str, Option] = {}
        self.options: dict[str, dict[str, Sequence[Option]]] = {}
        self.any_cost: dict[str, dict[str, Sequence[Option]]] = {}
        """The same with what costs too much perplexity to count."""
        self.seed = int(how.get("seed", 0))
        self.results: Row = {
            "schema": 2,
            "budget": budget,
            "cannot_show": [name for name in left_to_others(budget) if name not in {trial.name for trial in chosen}],
            "base": None,
            "models": [],
            "controls": {},
            "comparisons": [],
            "seeds": {"attack": self.seed, "generations": None},
            "environment": None,
            "command": how.get("command"),
        }

    def model(self, name: str, model: Any, chosen: Sequence[Trial]) -> UserError | RunError | None:
        """Measure and attack a model. Returns why, if it could not even be measured."""
        report: Row = {"name": name, "error": None, "attacks": [], "columns": {}}
        self.results["models"].append(report)
        return self._audit(name, model, report, chosen)

    def again(self, earlier: Earlier) -> None:
        """A model of an earlier run: all of it is taken from there, and where that cannot be, its old report is."""
        if earlier.model is None or self.model(earlier.report["name"], earlier.model, earlier.trials) is not None:
            self.results["models"] = [one for one in self.results["models"] if one["name"] != earlier.report["name"]]
            self.results["models"].append(earlier.report)

    def controls(self) -> None:
        """Make the attacks on their controls, those that were made on a model."""
        made = {row["attack"] for model in self.results["models"] for row in model["attacks"] if row["judged"]}
        for name, trials in needed(self.chosen).items():
            wanted = [trial for trial in trials if trial.name in made]
            if not wanted:
                continue
            twins = (one["name"] for one in self.results["models"] if one["error"] is None and is_base(one))
            report: Row = {
                "name": name,
                "as": next(twins, None) if name == BASE else None,
                "error": None,
                "attacks": [],
            }
            self.results["controls"][name] = report
            if report["as"] is None:
                place = f"{CONTROLS}/{name}"
                try:
                    rows = self.how.get("rows", "shipped:heldout")
                    model = control_model(name, self.how["base"], rows, self.folder / place, self.say)
                except (Exception, SystemExit) as error:
                    log.info("the control %s could not be made", name, exc_info=True)
                    report["error"] = told(error)
                    go_on_after(report["error"])
                else:
                    self._audit(place, model, report, wanted)

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
        write_json(self.folder / RESULTS, self.results)

    def _audit(self, place: str, model: Any, report: Row, chosen: Sequence[Trial]) -> UserError | RunError | None:
        try:
            target, finished = self._begin(place, model, report, chosen)
        except (Exception, SystemExit) as error:  # SystemExit: of a scorer of a third party
            log.info("%s could not be measured", place, exc_info=True)
            report["error"] = told(error)
            go_on_after(report["error"])
            return error if isinstance(error, UserError | RunError) else RunError(f"{place}: {told(error)}")
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
            finished = {
                trial.name: finished_result(self._file(place, trial), trial.name, trial.settings, described)
                for trial in chosen
            }
            untouched = target.untouched("model", described)
        except Exception as error:
            if out_of_memory(error):
                raise RunError(f"{place} ran out of memory before the attacks. Lower max_tokens_at_once.") from error
            raise
        if target.base is not None:
            figures = target.untouched("base", described).to_dict()
            self.results["base"] = {"model": target.names["base"], **figures}
        self.results["environment"] = environment(seed=target.seed, model=target.model, command=target.command)
        self.results["seeds"]["generations"] = target.decoding.seed
        named = target.names["model"]
        report |= {"model": named, "target": described, "evaluation": untouched.to_dict()}
        report["training_seed"] = training_seed(named)
        self.reports[place], self.before[place] = report, option_of(NOTHING, untouched)
        self.options[place], self.any_cost[place] = {}, {}
        return target, {key: result for key, result in finished.items() if result is not None}

    def _attack(self, place: str, target: Target, finished: dict[str, AttackResult], chosen: Sequence[Trial]) -> None:
        """All attacks on the model that was begun last."""
        for number, trial in enumerate(chosen, 1):
            row = row_of(trial, self.earlier.get((place, trial.name)))
            self.reports[place]["attacks"].append(row)
            try:
                if trial.name in finished:
                    self._take(row, place, trial, finished[trial.name])
                elif trial.entry.needs_base and target.base is None:
                    row["skipped"] = "it needs the model that this one was made from: pass --base."
                elif trial.needs_labelled and target.labelled is None:
                    row["skipped"] = "it needs labelled texts: pass --labelled."
                else:
                    self.say(f"{place}: {number} of {len(chosen)}, {trial.name} {trial.flags}".rstrip())
                    with self.say.during("attack", model=place, attack=trial.name) as found:
                        self._one(row, place, trial, dataclasses.replace(target, output=self._file(place, trial)))
                        found["error"] = row["error"]
            finally:  # also when it is interrupted
                self.save()

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
            self._take(row, place, trial, read_result(target.output))
        except (Exception, SystemExit) as error:  # of a third party's code, which must not end the audit
            row["error"] = told(error)
            go_on_after(row["error"])
            log.info("%s failed", trial.name, exc_info=True)
            gc.collect()  # copies of the model that an error holds in cycles
            self.say(f"{trial.name} failed: {row['error']}")
        except BaseException:
            row["error"] = "interrupted."
            raise
        finally:
            row["seconds"] = round((row["seconds"] or 0) + time.monotonic() - start, 1)

    def _take(self, row: Row, place: str, trial: Trial, result: AttackResult) -> None:
        """The figures of an attack that is made, and what it lets an attacker do."""
        file, dear = self._file(place, trial), too_dear(result)
        options = read_options(result, file)
        at_any_cost = read_options(result, file, dear) if dear else options
        row |= figures_of(result, options, at_any_cost, self.seed)
        self.options[place][trial.name], self.any_cost[place][trial.name] = options, at_any_cost

    def _file(self, place: str, trial: Trial) -> Path:
        """Of the result of an attack on a model."""
        return self.folder / place / folder_of(trial.name) / RESULT
