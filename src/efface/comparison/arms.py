"""Which arms does a sweep have, and how is one trained? An arm is a method with the settings of one trial and a seed.

    DIR/arms/ARM/model/      the run of `efface train`
    DIR/arms/ARM/arm.json    what came of it, and how much of its edit each budget allows (`scaling.py`)

An arm is called by its entry, a hash of its settings and its seed, so that more entries, trials and seeds may be added
to a config whose sweep is under way.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.comparison.config import MethodPlan, SweepConfig
from efface.data.pairs import load_pairs
from efface.data.preferences import text_of
from efface.data.tokens import token_ids
from efface.errors import UserError
from efface.files.digests import digest
from efface.files.jsonl import Row
from efface.methods import load_method

ARMS, MODEL = "arms", "model"
COUNTED = 256
"""Pairs whose tokens are counted, for the mean."""


@dataclass(frozen=True)
class Arm:
    """A method with settings and a seed."""

    plan: MethodPlan
    trial: int
    """Which of the plan's trials, from 0."""
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        """As the config has them, those of the trial over those of all."""
        return {**self.plan.settings, **self.plan.trials[self.trial]}

    @property
    def name(self) -> str:
        return f"{self.plan.name}-{digest([self.plan.method, self.plan.after, self.settings], 6)}-s{self.seed}"

    def folder(self, directory: Path) -> Path:
        return directory / ARMS / self.name


def arms_of(plan: MethodPlan) -> list[Arm]:
    """The trials of an entry, with its first seed."""
    return [Arm(plan, trial, plan.seeds[0]) for trial in range(len(plan.trials))]


def further_seeds(arm: Arm) -> list[Arm]:
    """What was chosen, with the entry's other seeds."""
    return [Arm(arm.plan, arm.trial, seed) for seed in arm.plan.seeds[1:]]


def count_trials(config: SweepConfig) -> dict[str, int]:
    """How many trials each entry has. A comparison is fair only if all have as many."""
    return {plan.name: len(plan.trials) for plan in config.methods}


def check_trials(config: SweepConfig) -> dict[str, dict[str, Any]]:
    """Arm -> the settings of its method, of all trials, read as flags are.

    Raises:
        UserError: for a method that is none, or a setting that it does not have.
    """
    return {arm.name: read_settings(config, arm) for plan in config.methods for arm in arms_of(plan)}


def read_settings(config: SweepConfig, arm: Arm) -> dict[str, Any]:
    """The fields of the method's configuration; the base too, for what edits an edit."""
    from efface.flags import FlagParser  # on use: transformers costs a second

    kind = load_method(arm.plan.method).config_class
    hint = f"`efface train {arm.plan.method} --list-flags` prints every setting."
    flags = [f"--{name}={_flag(value)}" for name, value in arm.settings.items()]
    try:
        found = FlagParser(kind, hint).given(flags)
    except UserError as error:
        raise UserError(f"methods.{arm.plan.name}: {error}") from error
    if "seed" in found:
        raise UserError(f"methods.{arm.plan.name}: seed is no setting here. Name seeds: [{found['seed']}] beside it.")
    found |= {"seed": arm.seed, "disable_tqdm": True}
    if arm.plan.after is not None and "base" in kind.__dataclass_fields__:
        found.setdefault("base", config.base)
    return found


def defaults_of(arm: Arm) -> dict[str, Any]:
    """What the method says of every setting of ours that the arm does not name: another version may say otherwise."""
    from transformers import TrainingArguments  # on use: it costs a second

    theirs = TrainingArguments.__dataclass_fields__
    ours = dataclasses.fields(load_method(arm.plan.method).config_class)
    said = [one for one in ours if one.name not in arm.settings and one is not theirs.get(one.name)]
    return {one.name: one.default for one in said if isinstance(one.default, str | int | float | None)}


def train_arm(config: SweepConfig, arm: Arm, start: str | os.PathLike[str], directory: Path, say: Any) -> Row:
    """Train an arm, or go on where it was interrupted. Returns its cost.

    Args:
        start: the model that it edits.

    Raises:
        UserError, RunError: as `efface.training.run.train` does.
    """
    from efface.training.run import train

    folder = arm.folder(directory) / MODEL
    method, settings = load_method(arm.plan.method), read_settings(config, arm)
    result = train(
        method, os.fspath(start), config.pairs, folder, settings, method=arm.plan.method, resume=True, say=say
    )
    return {"steps": result["steps"], "seconds": result["seconds"], "tokens": _tokens(config, result, folder)}


def _tokens(config: SweepConfig, result: Row, folder: Path) -> int | None:
    """About how many tokens went through the model: pairs seen times the mean length of both their rows. None for a
    method without steps, which does not say what it reads."""
    from transformers import AutoTokenizer

    from efface.model.load import ordinary_checkpoint

    drawn = result.get("share_of_pairs", {}).get("pairs_drawn")
    if drawn is None:
        return None
    tokenizer = AutoTokenizer.from_pretrained(ordinary_checkpoint(folder), trust_remote_code=False)
    rows = load_pairs(config.pairs).rows[:COUNTED]
    texts = [text_of(row["prompt"]) + text_of(row[side]) for row in rows for side in ("chosen", "rejected")]
    return round(drawn * sum(len(token_ids(tokenizer, text)) for text in texts) / max(len(rows), 1))


def _flag(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
