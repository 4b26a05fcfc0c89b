"""What does `results.json` say of an attack of an audit, and of the model that it was made on?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from efface.attacks.lists import describe_settings
from efface.attacks.result import AttackResult, read_point, title
from efface.attacks.selection import Option, judge_chosen
from efface.audit.battery import Trial, folder_of
from efface.errors import RunError, UserError, reason_of
from efface.files.io import is_regular_file
from efface.files.jsonl import Row
from efface.files.results import RESULTS, read_json
from efface.files.shapes import finite

RESULT = "result.json"
"""Of an attack on a model, in a folder that has its name."""


class AttackRow(TypedDict):
    """Of one attack on one model; all but the first six are None until it is made."""

    attack: str
    flags: str
    settings: dict[str, Any]
    published: str
    """The effort of the paper, beside which that of the budget stands."""
    access: str
    """A key of `efface.attacks.ACCESS`."""
    control: str | None
    before: Row | None
    """The figures of the model before the attack (`toxicity`, `perplexity`, `degeneration`), and `after`: at its
    highest point that counts."""
    after: Row | None
    any_cost: Row | None
    judged: Row | None
    """The `share` that an attacker reaches who chooses the point on other prompts, with `ci95` and `versus_before`."""
    p_holm: float | None
    evidence: str | None
    """What makes the row evidence: the `control` rises, the model `itself` does, or `none`."""
    control_judged: Row | None
    base_share: float | None
    found: Row | None
    seconds: float | None
    skipped: str | None
    """Why it was not made."""
    error: str | None
    """Why it failed."""


class ModelReport(TypedDict):
    """Of one model."""

    name: str
    error: str | None
    """Why it could not be measured; what is not required is then missing."""
    attacks: list[AttackRow]
    columns: dict[str, Row]
    """Access -> the worst case there, `judged` as that of an attack."""
    model: NotRequired[str | None]
    target: NotRequired[Row]
    evaluation: NotRequired[Row]
    """The figures before any attack."""
    training_seed: NotRequired[int | None]


class AuditResults(TypedDict):
    """`results.json` of an audit."""

    schema: int
    budget: str
    cannot_show: list[str]
    """Attacks that the budget leaves out."""
    base: Row | None
    """The figures of the untouched model."""
    models: list[ModelReport]
    controls: dict[str, Row]
    """By name, each a `ModelReport`; or, `as`, the audited model that it is."""
    comparisons: list[Row]
    """Of each two models, attack by attack."""
    seeds: Row
    environment: Row | None
    command: str | None


def row_of(trial: Trial, seconds: float | None) -> Row:
    """What `results.json` says of a trial that is not made yet."""
    return {
        "attack": trial.name,
        "flags": trial.flags,
        "settings": describe_settings(trial.settings),
        "published": trial.entry.published,
        "access": trial.entry.access,
        "control": trial.control,
        "before": None,
        "after": None,
        "any_cost": None,
        "judged": None,
        "p_holm": None,
        "evidence": None,
        "control_judged": None,
        "base_share": None,
        "found": None,
        "seconds": seconds,
        "skipped": None,
        "error": None,
    }


def figures_of(result: AttackResult, options: Sequence[Option], at_any_cost: Sequence[Option], seed: int) -> Row:
    """What `results.json` says of a trial besides, once it is made.

    Args:
        options: what counts.
        at_any_cost: the same with what costs too much perplexity.
    """
    return {
        "before": result.before.to_dict(),
        "after": result.after.to_dict(),
        "any_cost": judge_chosen(at_any_cost, seed) if len(at_any_cost) > len(options) else None,
        "judged": result.judged or judge_chosen(options, seed),
        "found": result.found,
        "base_share": base_share(result.found, result.after.at),
    }


def counts(row: Row) -> bool:
    """Whether the highest point of an attack is not among those that wreck the model."""
    return title(read_point(row["after"]).at) not in row["found"].get("left_out", [])


def too_dear(result: AttackResult) -> list[str]:
    """The points that do not count since they cost more perplexity than the attacker's budget. Whoever wants toxic
    text hardly minds a quarter more of it on an encyclopedia, so it is said too what they reach."""
    limit, before = result.settings.get("max_perplexity_increase"), result.before.measured.perplexity
    if limit is None or not finite(limit) or before is None or not before.value:
        return []
    return [
        title(point.at)
        for point in result.curve
        if (cost := point.measured.perplexity) is not None and cost.value > (1 + limit) * before.value
    ]


def nothing_counts(row: Row) -> bool:
    """Whether every point of an attack wrecked the model, so that it says what was before, and nothing of the
    attack."""
    return bool(row["found"].get("left_out")) and not row["judged"]["among"]


def base_share(found: dict[str, Any], at: dict[str, Any]) -> float | None:
    """What the same prompts, or the same sampling, do to the base, for an attack that says so.

    Args:
        found: what the attack has to say.
        at: the point that it is judged by.
    """
    points = found.get("points")
    points = points if isinstance(points, list) else []
    at_this = [point for point in points if isinstance(point, dict) and at.items() <= point.items()]
    share = (at_this or [found])[0].get("base_share")
    return share if finite(share) else None


def attack_file(folder: Path, model: str, attack: str) -> Path | None:
    """Where an audit has an attack of its own; None where there is none, or where a changed name leads elsewhere."""
    file = folder / model / folder_of(attack) / RESULT
    inside = is_regular_file(file) and file.resolve().is_relative_to(folder.resolve())
    return file if inside else None


def is_base(report: Row) -> bool:
    """Whether the model that was attacked is the base itself."""
    return bool(report["target"]["weights"] == report["target"]["base"])


def training_seed(model: str | None) -> int | None:
    """What the run directory of a model says of the seed that it was trained under, if it is one."""
    try:
        seed = read_json(Path(str(model)) / RESULTS)["environment"]["seed"]
    except (UserError, KeyError, TypeError):
        return None
    return seed if isinstance(seed, int) else None


def told(error: BaseException) -> str:
    """An error in a line; what is no error of ours with its kind."""
    if isinstance(error, UserError | RunError):
        return str(error)
    if isinstance(error, SystemExit):
        return f"its code ended the program (sys.exit({error.code!r}))."
    return f"{reason_of(error, named=True)} (`efface -v` shows where)"
