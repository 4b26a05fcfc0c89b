"""How are all arms of a sweep made, once each, and which of them are kept?

An arm that fails or diverges is a row that says so. Of each entry the least toxic arm that fits a budget is kept; with
its other seeds only what was chosen at the main budget is made. The checkpoints of arms that no budget has chosen are
removed: they are as large as the base.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from efface.comparison.arms import MODEL, Arm, arms_of, defaults_of, further_seeds, train_arm
from efface.comparison.claims import claimed
from efface.comparison.config import BASE, MethodPlan, SweepConfig
from efface.comparison.measuring import told
from efface.comparison.scaling import Scaler, choose_arm
from efface.errors import RunError, UserError
from efface.files.digests import digest, file_digest
from efface.files.events import Journal
from efface.files.jsonl import Row
from efface.files.results import RESULTS, read_json, remove, write_json
from efface.model.copies import merged
from efface.model.devices import as_many_threads
from efface.model.fingerprint import fingerprint_of
from efface.model.load import load_model

log = logging.getLogger(__name__)
CLAIMS = ".claims"


class OtherWeightsTrained(RunError):
    """A checkpoint that was removed was trained again and is not the one that was scaled. Its row is gone: it is made
    anew by whoever begins again, and all that was measured of it."""


@dataclass(frozen=True)
class _Base:
    """The base, as what an arm edits."""

    missing: str = ""
    """Why there is nothing to edit, if so."""
    name: str = BASE


class Arms:
    """The arms of a sweep, made or in the making.

    Args:
        written: called after each arm that is made now.
        retry_failed: make those again that have failed.
    """

    def __init__(
        self,
        config: SweepConfig,
        folder: Path,
        scaler: Scaler,
        *,
        say: Journal,
        written: Callable[[], object],
        retry_failed: bool = False,
    ):
        self.config, self.folder, self.scaler, self.say, self.written = config, folder, scaler, say, written
        self.retry_failed = retry_failed
        budgets = {name: dataclasses.asdict(bounds) for name, bounds in config.budgets.items()}
        self.made_by: dict[str, Any] = {
            "tuning": scaler.target.described(),
            "budgets": budgets,
            "pairs": config.pairs,
            "most": config.most,
            "max_kl_tokens": config.max_kl_tokens,
        }
        self.main = next(iter(config.budgets))
        self.rows: dict[str, Row] = {}
        """By name."""
        self.unfinished: list[str] = []
        """Those that other processes are at work on."""

    def make_only(self, names: set[str]) -> None:
        for plan in self.config.methods:
            for arm in arms_of(plan):
                if arm.name in names:
                    self._make(arm)

    def make_entry(self, plan: MethodPlan) -> None:
        """Every trial of an entry, then what was chosen with the other seeds; what others have made is taken."""
        for arm in arms_of(plan):
            self._make(arm)
        chosen = self.chosen(plan, self.main)
        for arm in [] if chosen is None else further_seeds(chosen):
            self._make(arm)
        self.unfinished = [name for name in self.unfinished if name not in self.rows]
        self._forget_others(plan)

    def _make(self, arm: Arm) -> None:
        """Train and scale an arm, unless that is done."""
        if arm.name in self.rows:
            return
        start = self._start_of(arm)
        if start is None:
            self._leave(arm)
            return
        file = arm.folder(self.folder) / "arm.json"
        by = self.made_by if arm.plan.scaled else {**self.made_by, "scaled": False}
        made_by = digest([arm.name, str(start.name), by, contents_of(arm.settings)], 16)
        with claimed(self.folder / CLAIMS / arm.name) as mine:
            found = read_json(file) if file.exists() else {}
            same = _said_alike(found.get("defaults", {}), defaults_of(arm))
            same = same and found.get("start") in (None, self._said_of(start))  # older versions say nothing of it
            if same and found.get("made_by") == made_by and not (found["error"] and self.retry_failed):
                self.rows[arm.name] = found
            elif mine:
                files = contents_of(arm.settings) == found.get("contents")
                if found and not (same and files and arm.plan.after is None):
                    self._forget(arm)  # it may have been made of another arm, of other files, or by other defaults
                self.say(f"{arm.name}: trained and scaled")
                with self.say.during("arm", arm=arm.name) as told_of_it:
                    made = self._made(arm, start)
                    self.rows[arm.name] = made | {"made_by": made_by, "start": self._said_of(start)}
                    told_of_it["error"] = self.rows[arm.name]["error"]
                write_json(file, self.rows[arm.name])
                self.written()
            else:
                self._leave(arm)

    def _leave(self, arm: Arm) -> None:
        if arm.name not in self.unfinished:
            self.unfinished.append(arm.name)

    def _said_of(self, start: "Arm | _Base") -> str | None:
        """What is known of an arm that is edited further; it says another thing of other weights."""
        if not isinstance(start, Arm):
            return None
        row = self.rows[start.name]
        return digest([row["made_by"], row["budgets"]], 16)

    def _made(self, arm: Arm, start: "Arm | _Base") -> Row:
        row: Row = {"arm": arm.name, "entry": arm.plan.name, "method": arm.plan.method, "settings": arm.settings}
        row |= {"seed": arm.seed, "cost": None, "budgets": {}, "error": None, "contents": contents_of(arm.settings)}
        row |= {"defaults": defaults_of(arm), "threads": torch.get_num_threads()}
        try:
            cost = train_arm(self.config, arm, self._model_before(start), self.folder, self.say)
            row["cost"] = cost if not isinstance(start, Arm) else added(self.rows[start.name]["cost"], cost)
            model = self.load(arm)
            row |= {"weights": fingerprint_of(model), "budgets": self.scaler.fit(model, scaled=arm.plan.scaled)}
        except OtherWeightsTrained:  # of what it edits
            raise
        except Exception as error:  # a method of a third party may raise anything, which is a row and not the end
            log.info("%s failed", arm.name, exc_info=True)
            row["error"] = told(error)
            self.say(f"{arm.name} failed: {row['error']}")
        return row

    def load(self, arm: Arm) -> Any:
        """The trained model; one that was removed, and is kept since the config has more in it, is trained again, by
        as many threads as it was.

        Raises:
            OtherWeightsTrained: if it did not become the one that was scaled.
        """
        folder, row = arm.folder(self.folder) / MODEL, self.rows.get(arm.name, {})
        if not (folder / RESULTS).exists():
            before = self._model_before(self._start_of(arm))
            with claimed(self.folder / CLAIMS / f"{arm.name}.model", wait=True), as_many_threads(row.get("threads")):
                train_arm(self.config, arm, before, self.folder, self.say)  # which takes what another has just made
        model = merged(load_model(folder)[0])
        if row.get("weights") not in (None, fingerprint_of(model)):
            file = folder.with_name("arm.json")
            if file.exists() and read_json(file).get("weights") == row["weights"]:  # nobody has made it anew by now
                file.unlink()
            raise OtherWeightsTrained(
                f"{arm.name}: its checkpoint was gone, and trained again it has other weights (another machine or "
                "version rounds otherwise). It is scaled and measured anew."
            )
        return model

    def _model_before(self, start: "Arm | _Base | None") -> Any:
        """What `load_model` takes for the model that an arm edits."""
        if isinstance(start, Arm):
            self.load(start)
            return start.folder(self.folder) / MODEL
        if start is not None and start.missing:
            raise UserError(start.missing)
        return self.config.base

    def _start_of(self, arm: Arm) -> "Arm | _Base | None":
        """What an arm edits: the base, or what is kept of the entry that it comes after; None while that is not
        known, since other processes are at work on it."""
        if arm.plan.after is None:
            return _Base()
        plan = next(plan for plan in self.config.methods if plan.name == arm.plan.after)
        for one in arms_of(plan):
            self._make(one)
        if any(one.name not in self.rows for one in arms_of(plan)):
            return None
        none = f"it comes after {plan.name}, of which no arm fits the budget {self.main!r}."
        return self.chosen(plan, self.main) or _Base(none)

    def chosen(self, plan: MethodPlan, budget: str) -> Arm | None:
        """The arm of an entry that is kept at a budget; None if none fits, or not all of them are made."""
        arms = {arm.name: arm for arm in arms_of(plan)}
        rows = [self.rows[name] for name in arms if name in self.rows]
        best = choose_arm(rows, budget) if len(rows) == len(arms) else None
        return None if best is None else arms[best["arm"]]

    def are_made(self, plan: MethodPlan) -> bool:
        """Whether all arms of an entry are, with all seeds of what was chosen."""
        chosen = self.chosen(plan, self.main)
        arms = [*arms_of(plan), *([] if chosen is None else further_seeds(chosen))]
        return all(arm.name in self.rows for arm in arms)

    def kept_of(self, plan: MethodPlan, budget: str) -> list[Arm]:
        """What was chosen of an entry, and at the main budget the same with other seeds, as far as it fits."""
        chosen = self.chosen(plan, budget)
        if chosen is None:
            return []
        more = further_seeds(chosen) if budget == self.main else []
        made = [self.rows[arm.name] for arm in more if arm.name in self.rows]
        fitting = {row["arm"] for row in made if choose_arm([row], budget)}
        return [chosen, *(arm for arm in more if arm.name in fitting)]

    def _forget_others(self, plan: MethodPlan) -> None:
        """Remove the checkpoints of arms that no budget has chosen."""
        kept = {None if (one := self.chosen(plan, budget)) is None else one.name for budget in self.config.budgets}
        for arm in [] if self.config.keep_models or self.unfinished else arms_of(plan):
            if arm.name not in kept:
                self._forget(arm)

    def _forget(self, arm: Arm) -> None:
        folder = arm.folder(self.folder) / MODEL
        if folder.exists():
            remove(folder)


def contents_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the files that settings name."""
    files = {name: Path(value) for name, value in settings.items() if isinstance(value, str)}
    return {name: file_digest(file) for name, file in files.items() if file.is_file()}


def _said_alike(before: Row, now: Row) -> bool:
    """Do the defaults that an arm was made by still say what they said? Older versions say nothing of some."""
    return all(name in now and now[name] == value for name, value in before.items())


def added(cost: Row | None, more: Row) -> Row:
    """What an arm and what it edits further have cost together; None where either does not say."""
    before = cost or {}
    return {
        name: None if before.get(name) is None and value is None else (before.get(name) or 0) + (value or 0)
        for name, value in more.items()
    }
