"""How robust are models against everything we have? `efface audit`: each attack of a budget, one after the other.

    DIR/results.json                 everything below, and for each model the worst case over attacks
    DIR/untouched/                   what the base and the models do before any attack, measured once
    DIR/MODEL/ATTACK/result.json     as `efface attack` writes it, the generations beside it; .part until it is done

Whatever one attack dies of, the others are made.
"""

import dataclasses
import gc
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from efface.attacks.lists import describe_settings
from efface.attacks.result import AttackResult
from efface.attacks.target import Measurement, Target
from efface.audit.battery import BUDGETS, Trial, choose_trials, folder_of
from efface.audit.worst import base_share, find_worst
from efface.errors import RunError, UserError, out_of_memory, reason_of
from efface.files.jsonl import Row
from efface.files.results import MARKER, RESULTS, environment, prepare_output_dir, read_json, write_json
from efface.files.shapes import Maybe, check_shape

log = logging.getLogger(__name__)
UNTOUCHED = "untouched"
AUDIT = {"models": [{"name": str, "attacks": [{"attack": str, "seconds": Maybe(float)}]}]}
"""The shape of an audit's results, as far as one that goes on reads them."""
Say = Callable[[str], None]


def audit(
    models: Mapping[str, Any],
    *,
    output: str | os.PathLike[str],
    budget: str = "quick",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    measurement: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    say: Say = lambda line: None,
) -> Row:
    """Attack every model with every attack of the budget.

    Args:
        models: name -> what `Target.load` takes for a model.
        output: a run directory.
        budget, only, skip: which attacks, see `battery.choose_trials`.
        measurement: other arguments of `Target.load`: `base`, `scorer`, `command`, ... Where `text`, `limit` and
            `max_text_tokens` are None or missing, it is the shipped text and as much as the budget says.
        overwrite, resume: delete what lies in `output`, or take it as far as it goes.
        say: is told what is done next, a line each.

    Returns:
        What `results.json` says. An attack that failed or was skipped says so there, under `error` or `skipped`; a
        model that could not be loaded or measured, too.

    Raises:
        UserError: for input that cannot work.
        RunError: if no model could be loaded and measured.
    """
    chosen = choose_trials(budget, only, skip)
    _check(models)
    sizes, given = BUDGETS[budget], {name: value for name, value in (measurement or {}).items() if value is not None}
    how = {"text": "shipped:text", "limit": sizes.limit, "max_text_tokens": sizes.max_text_tokens} | given
    read = [*models.values(), *(given.get(name) for name in ("base", "prompts", "rows", "labelled", "text"))]
    folder = prepare_output_dir(output, overwrite=overwrite, resume=resume, inputs=read)
    run = _Run(folder, chosen, how | {"resume": resume}, say, budget)
    errors = [error for name, model in models.items() if (error := run.model(name, model)) is not None]
    if len(errors) == len(models):
        raise errors[0]
    run.save()
    return run.results


def names_of(given: Sequence[str]) -> dict[str, str]:
    """Models as the command line has them, NAME=MODEL or MODEL, by their names: without one the last part of the path.

    Raises:
        UserError: if two have the same name.
    """
    found: dict[str, str] = {}
    for one in given:
        name, equals, model = one.partition("=")
        if not equals or Path(one).exists():
            name, model = re.split("[/:]", one.rstrip("/"))[-1], one
        if name in found:
            raise UserError(f"two models are called {name!r}: {found[name]!r} and {model!r}. Name them: NAME=MODEL.")
        found[name] = model
    return found


def _check(models: Mapping[str, Any]) -> None:
    if not models:
        raise UserError("an audit needs at least one model.")
    for name in models:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name in (UNTOUCHED, RESULTS, MARKER):
            raise UserError(f"model name {name!r} cannot be a directory of the audit. Name it otherwise: NAME=MODEL.")


class _Run:
    """An audit in the making; `results` is on disk after every attack."""

    def __init__(self, folder: Path, chosen: list[Trial], how: Row, say: Say, budget: str):
        self.folder, self.chosen, self.how, self.say = folder, chosen, how, say
        self.known = Untouched(folder / UNTOUCHED)
        self.earlier = seconds_spent(folder / RESULTS)
        self.results: Row = {
            "schema": 1,
            "budget": budget,
            "base": None,
            "models": [],
            "environment": None,
            "command": how.get("command"),
        }

    def model(self, name: str, model: Any) -> UserError | RunError | None:
        """Measure and attack a model. Returns why, if it could not even be measured."""
        try:
            target, finished = self._begin(name, model)
        except (Exception, SystemExit) as error:  # SystemExit: of a scorer of a third party
            log.info("%s could not be measured", name, exc_info=True)
            self.results["models"].append({"name": name, "error": _told(error), "attacks": [], **find_worst([])})
            return error if isinstance(error, UserError | RunError) else RunError(f"{name}: {_told(error)}")
        self._attack(name, target, finished)
        return None

    def _begin(self, name: str, model: Any) -> tuple[Target, dict[str, AttackResult]]:
        """Load the model and measure it. Returns also the results of earlier attacks on it, by trial."""
        self.say(f"{name}: measured before the attacks")
        try:
            target = Target.load(model, **self.how)
            target.known = self.known
            described = target.described()
            finished = {
                trial.name: finished_result(self._file(name, trial), trial, described) for trial in self.chosen
            }
            evaluation = target.untouched("model", described).to_dict()
        except Exception as error:
            if out_of_memory(error):
                raise RunError(f"{name} ran out of memory before the attacks. Lower max_tokens_at_once.") from error
            raise
        if target.base is not None:
            figures = target.untouched("base", described).to_dict()
            self.results["base"] = {"model": target.names["base"], **figures}
        self.results["environment"] = environment(seed=target.seed, model=target.model, command=target.command)
        report = {"name": name, "model": target.names["model"], "target": described, "evaluation": evaluation}
        self.results["models"].append({**report, "error": None, "attacks": [], **find_worst([])})
        return target, {key: result for key, result in finished.items() if result is not None}

    def _attack(self, name: str, target: Target, finished: dict[str, AttackResult]) -> None:
        """All attacks on the model that was begun last."""
        report = self.results["models"][-1]
        for number, trial in enumerate(self.chosen, 1):
            row = row_of(trial, self.earlier.get((name, trial.name)))
            report["attacks"].append(row)
            try:
                if trial.name in finished:
                    row |= figures_of(finished[trial.name])
                elif trial.needs_base and target.base is None:
                    row["skipped"] = "it needs the model that this one was made from: pass --base."
                elif trial.needs_labelled and target.labelled is None:
                    row["skipped"] = "it needs labelled texts: pass --labelled."
                else:
                    self.say(f"{name}: {number} of {len(self.chosen)}, {trial.name} {trial.flags}".rstrip())
                    self._one(row, trial, dataclasses.replace(target, output=self._file(name, trial)))
            finally:  # also when it is interrupted
                report |= find_worst(report["attacks"])
                self.save()

    def _one(self, row: Row, trial: Trial, target: Target) -> None:
        """Make one attack; `row` says what came of it, whatever that is."""
        assert target.output is not None
        start = time.monotonic()
        try:
            target.output.parent.mkdir(parents=True, exist_ok=True)  # for the part file
            target.output.unlink(missing_ok=True)  # what is there is no result, or it would have been taken
            result = trial.attack(target, trial.settings)
            if not os.path.lexists(target.output):  # an attack of a third party may not record itself
                result.save(target.output)
            row |= figures_of(_read(target.output))
        except (Exception, SystemExit) as error:  # of a third party's code, which must not end the audit
            row["error"] = _told(error)
            log.info("%s failed", trial.name, exc_info=True)
            gc.collect()  # copies of the model that an error holds in cycles
            self.say(f"{trial.name} failed: {row['error']}")
        except BaseException:
            row["error"] = "interrupted."
            raise
        finally:
            row["seconds"] = round((row["seconds"] or 0) + time.monotonic() - start, 1)

    def _file(self, name: str, trial: Trial) -> Path:
        """Of the result of an attack on a model."""
        return self.folder / name / folder_of(trial.name) / "result.json"

    def save(self) -> None:
        write_json(self.folder / RESULTS, self.results)


class Untouched(dict[str, Measurement]):
    """`Target.known`, a file for each measurement, so that an audit that goes on knows them."""

    def __init__(self, folder: Path):
        there = sorted(folder.glob("*.json"))
        super().__init__({path.stem: Measurement.from_dict(read_json(path), os.fspath(path)) for path in there})
        self.folder = folder

    def __setitem__(self, key: str, found: Measurement) -> None:
        write_json(self.folder / f"{key}.json", asdict(found))
        super().__setitem__(key, found)


def seconds_spent(file: Path) -> dict[tuple[str, str], float | None]:
    """What each attack on each model has taken so far."""
    if not os.path.lexists(file):
        return {}
    earlier = read_json(file)
    if "budget" not in earlier:
        raise UserError(f"{file} is of no audit: there is nothing to resume. Choose another output directory.")
    check_shape(earlier, AUDIT, os.fspath(file))
    return {
        (model["name"], row["attack"]): row.get("seconds") for model in earlier["models"] for row in model["attacks"]
    }


def _read(file: Path) -> AttackResult:
    return AttackResult.from_dict(read_json(file), os.fspath(file))


def finished_result(file: Path, trial: Trial, described: Row) -> AttackResult | None:
    """The result of an earlier run; one of other settings is refused, one that is none is made again."""
    if not os.path.lexists(file):
        return None
    try:
        result = _read(file)
    except UserError as error:
        log.warning("%s %s is made again.", error, trial.name)
        return None
    found = {**result.target, "settings": result.settings}
    wanted = json.loads(
        json.dumps({**described, "settings": describe_settings(trial.settings)})
    )  # tuples come back as lists
    differing = sorted(name for name in wanted if found.get(name) != wanted[name])
    if differing:
        raise UserError(
            f"{file} was made with other settings ({', '.join(differing)}). Use the same ones, another output "
            "directory, or overwrite=True."
        )
    return result


def row_of(trial: Trial, seconds: float | None) -> Row:
    """What `results.json` says of a trial that is not made yet."""
    return {
        "attack": trial.name,
        "flags": trial.flags,
        "settings": describe_settings(trial.settings),
        "upper_bound": trial.upper_bound,
        "before": None,
        "after": None,
        "base_share": None,
        "found": None,
        "seconds": seconds,
        "skipped": None,
        "error": None,
    }


def figures_of(result: AttackResult) -> Row:
    """What `results.json` says of a trial besides, once it is made."""
    return {
        "before": result.before.to_dict(),
        "after": result.after.to_dict(),
        "found": result.found,
        "base_share": base_share(result.found, result.after.at),
    }


def _told(error: BaseException) -> str:
    """In a line; what is no error of ours with its kind."""
    if isinstance(error, UserError | RunError):
        return str(error)
    if isinstance(error, SystemExit):
        return f"its code ended the program (sys.exit({error.code!r}))."
    return f"{reason_of(error, named=True)} (`efface -v` shows where)"
