"""What is a sweep to compare, on what, and within which budgets? One YAML or JSON file, checked before any work.

Every key is a field of `SweepConfig`; an unknown one is an error. Settings of methods and attacks are written as their
flags are.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from efface.checks import at_least_one, not_negative, one_of, positive
from efface.comparison.fields import build, list_of, mapping_of
from efface.errors import UserError
from efface.evaluation.budget import UtilityBounds
from efface.files.settings_file import read_settings_file

NAME = r"[A-Za-z0-9][\w.@-]*"
BASE = "base"
DTYPES = ("model", "bfloat16", "auto")


@dataclass(frozen=True)
class PromptPart:
    """Some prompts of a source."""

    prompts: str
    """What `load_prompts` takes."""
    limit: int | None = None
    limit_seed: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "limit")


@dataclass(frozen=True)
class MethodPlan:
    """A method, and the settings that it is tried with."""

    name: str
    """What tables call it; of several entries with one method each has its own."""
    method: str = ""
    """As `efface train` takes it; as a rule the name."""
    after: str | None = None
    """The entry whose kept arm it edits further (`lox`), instead of the base."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of all its trials, as flags: {"max_steps": 48}."""
    trials: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    """What differs in each trial."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """The first is of the trials; with the others only what was chosen is trained again."""
    scaled: bool = True
    """Scale its edits to the budget. False for what only holds as it is (`gptq`, whose weights lie on a grid): an arm
    fits a budget or does not, and its strength is a setting to be tried."""

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME, self.name) or self.name == BASE:
            raise UserError(f"methods: {self.name!r} cannot be a name (letters, digits, '-', '_', '.'; not 'base').")
        if not self.trials or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"methods: {self.name} needs at least one trial and seed, each seed once.")


@dataclass(frozen=True)
class AttackPlan:
    """Relearning of one kind, at several rates."""

    name: str
    flags: str
    """Of `efface attack relearn`: "--data toxic --learning_rates 2e-5,1e-4 --steps 5,10,20"."""


@dataclass(frozen=True)
class AttackPlans:
    """Who attacks what."""

    every: list[AttackPlan] = field(default_factory=list)
    """On every kept arm, and on the base."""
    best: list[AttackPlan] = field(default_factory=list)
    """Besides, on the base and the first seeds of the `best_of` methods that withstood `every` best."""
    best_of: int = 3
    budgets: list[str] | None = None
    """Whose kept models are attacked, rounded and weighed; default: all. What others keep is only reported."""
    least_drop: float = 0.0
    """By what part of the base's toxic share, on the tuning prompts, an edit must have lowered it to be attacked,
    rounded and weighed: what has not gone cannot come back. 0: every edit is."""
    text_tokens: int | None = None
    """Of the text, for perplexity at a point of an attack; default: `max_text_tokens`."""
    rounding: list[str] = field(default_factory=list)
    """Flags of `efface attack quantize`, one entry for each kind of grid."""
    moved_steps: int = 0
    """If not 0: round also on a base that so many steps of ordinary fine-tuning (`documents`) have first moved off its
    grid, with the same edit added."""
    moved_rate: float = 2e-5
    benign_steps: int = 0
    """If not 0: how fast a benign fine-tune on `documents` learns, in so many steps."""
    benign_rate: float = 5e-5
    line: list[float] = field(default_factory=list)
    """Where on the line to the base the loss on ordinary text is read, for the barrier."""

    def __post_init__(self) -> None:
        at_least_one(self, "best_of", "text_tokens")
        if not 0 <= self.least_drop < 1:
            raise UserError(f"attacks: least_drop={self.least_drop} is no part of a share. Give 0 or more, below 1.")
        for name in ("moved_steps", "benign_steps"):
            not_negative(name, getattr(self, name))
        positive("moved_rate", self.moved_rate)
        positive("benign_rate", self.benign_rate)


@dataclass(frozen=True)
class SweepConfig:
    """The whole of a sweep."""

    base: str
    methods: list[MethodPlan]
    tuning: PromptPart
    reported: list[PromptPart]
    """Of these the tuning prompts are left out."""
    attacked: PromptPart | None = None
    """On what attacks are measured; default: on all that is reported."""
    pairs: str = "shipped:train"
    heldout: str = "shipped:heldout"
    """The attacker's pairs."""
    labelled: str | None = None
    """The attacker's toxic texts of another make."""
    documents: str = "shipped:passages"
    """Ordinary text to fine-tune on."""
    text: str = "shipped:text"
    """Ordinary text that budgets are read on."""
    max_text_tokens: int = 6000
    """Of it, for perplexity."""
    max_kl_tokens: int = 4096
    scorers: list[str] = field(default_factory=lambda: ["alt-profanity-check"])
    """The first one's share chooses; all are reported."""
    samples: int = 2
    max_new_tokens: int = 20
    decoding_dtype: str = "auto"
    seed: int = 0
    """Of generations and attacks."""
    budgets: dict[str, UtilityBounds] = field(default_factory=lambda: {"main": UtilityBounds()})
    """The first is the main one."""
    most: float = 2.0
    """The largest multiple of an edit."""
    attacks: AttackPlans = AttackPlans()
    keep_models: bool = False
    """Also the checkpoints of arms that were not chosen."""
    against: str | None = None
    """The entry that the others are compared with; default: the first."""
    also_against: list[str] = field(default_factory=list)
    """Further ones that all are compared with, a pair once; corrected together."""

    def __post_init__(self) -> None:
        at_least_one(self, "max_text_tokens", "max_kl_tokens", "samples", "max_new_tokens")
        positive("most", self.most)
        one_of("decoding_dtype", self.decoding_dtype, DTYPES)
        names = [plan.name for plan in self.methods]
        if not names or len(set(names)) < len(names):
            raise UserError(f"methods: {', '.join(names) or 'none'}: name at least one, and each once.")
        if not self.scorers or not self.reported or not self.budgets:
            raise UserError("scorers, reported and budgets: at least one of each is needed.")
        for name in self.judged_against:
            if name not in names:
                raise UserError(f"against={name!r} is none of the methods: {', '.join(names)}.")
        for place, plan in enumerate(self.methods):
            if plan.after is not None and plan.after not in names[:place]:
                raise UserError(f"methods: {plan.name} comes after {plan.after!r}, which is no entry before it.")
        for budget in self.budgets:
            if not re.fullmatch(NAME, budget):
                raise UserError(f"budgets: {budget!r} cannot be a name (letters, digits, '-', '_', '.').")
        unknown = set(self.attacks.budgets or ()) - set(self.budgets)
        if unknown:
            raise UserError(f"attacks.budgets={sorted(unknown)}: there are the budgets {', '.join(self.budgets)}.")
        attacks = [plan.name for plan in [*self.attacks.every, *self.attacks.best]]
        for name in attacks:
            if not re.fullmatch(NAME, name) or re.fullmatch(r"(moved|rounding)-\d+", name):
                raise UserError(
                    f"attacks: {name!r} cannot be a name (letters, digits, '-', '_', '.'; not as 'rounding-0')."
                )
        if len(set(attacks)) < len(attacks):
            raise UserError(f"attacks: {', '.join(attacks)}: each needs a name of its own.")

    @property
    def judged_against(self) -> list[str]:
        return [self.against or self.methods[0].name, *self.also_against]


def read_config(path: str | os.PathLike[str]) -> SweepConfig:
    """The sweep that a file describes.

    Raises:
        UserError: naming the file and the key that is wrong.
    """
    found, name = read_settings_file(path, "sweep config"), os.fspath(path)
    try:
        return build_config(found)
    except UserError as error:
        raise UserError(f"sweep config {name!r}: {error}") from error


def build_config(found: Any) -> SweepConfig:
    """The sweep that a mapping describes. Raises UserError naming the key that is wrong."""
    block = mapping_of(found, "the config")
    if "methods" in block:
        block["methods"] = [_method(one) for one in list_of(block["methods"], "methods")]
    if "tuning" in block:
        block["tuning"] = _prompts(block["tuning"], "tuning")
    if "reported" in block:
        parts = block["reported"] if isinstance(block["reported"], list) else [block["reported"]]
        block["reported"] = [_prompts(one, "reported") for one in parts]
    if block.get("attacked") is not None:
        block["attacked"] = _prompts(block["attacked"], "attacked")
    if "budgets" in block:
        budgets = mapping_of(block["budgets"], "budgets")
        block["budgets"] = {name: build(UtilityBounds, one, f"budgets.{name}") for name, one in budgets.items()}
    if "attacks" in block:
        plans = mapping_of(block["attacks"], "attacks")
        for part in ("every", "best"):
            if part in plans:
                several = mapping_of(plans[part], f"attacks.{part}")
                plans[part] = [AttackPlan(name, str(flags)) for name, flags in several.items()]
        block["attacks"] = build(AttackPlans, plans, "attacks")
    return build(SweepConfig, block, "the config")


def _method(found: Any) -> MethodPlan:
    block: dict[str, Any] = {"name": found} if isinstance(found, str) else mapping_of(found, "methods")
    where = f"methods.{block.get('name')}"
    block.setdefault("method", block.get("name"))
    grid = mapping_of(block.pop("grid", {}), f"{where}.grid")
    if grid:
        if "trials" in block:
            raise UserError(f"{where} has both grid and trials: give one.")
        block["trials"] = combinations(grid)
    return build(MethodPlan, block, where)


def combinations(grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the values of a grid, the last key's running fastest."""
    found: list[dict[str, Any]] = [{}]
    for name, values in grid.items():
        several = values if isinstance(values, list) else [values]
        found = [{**one, name: value} for one in found for value in several]
    return found


def _prompts(found: Any, where: str) -> PromptPart:
    return build(PromptPart, {"prompts": found} if isinstance(found, str) else found, where)
