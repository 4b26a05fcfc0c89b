"""Which models do several results speak of? Each kind of results read, and what is one model put together.

A model that several sources speak of, by the same name of a checkpoint, is one, unless their hashes of its weights say
otherwise; its figures are those of the first, and those of the others stand behind them.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from efface.attacks import ATTACKS
from efface.attacks.finished import read_result
from efface.attacks.result import AttackResult, read_options, title
from efface.attacks.selection import judge_chosen
from efface.audit.notes import reason_of_row
from efface.audit.rows import attack_file, is_base, nothing_counts, too_dear
from efface.comparison.config import BASE as SWEEP_BASE
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.report.evidence import Attempt, Column, Known, Point
from efface.report.sources import ATTACKED, AUDITED, EDIT, EVALUATED, SWEPT, TRAINING, Source

BASE, EDITED, UNNAMED = "base", "edited", "unnamed"
LASTING = 0.7
"""Of an edit's effect, at least: what of it is lost beyond that is said."""


def gather(sources: Sequence[Source]) -> list[Known]:
    """The models of all sources; bases first, then as they come."""
    found: list[Known] = []
    methods = {source.folder.parent: source.result["method"] for source in sources if source.kind == TRAINING}
    for source in sources:
        if source.inside and source.kind == SWEPT:  # in which the edit was chosen: it is told with the edit
            continue
        for one in READERS.get(source.kind, _nothing)(source):
            if source.kind == EDIT and not one.base:
                one.method = methods.get(source.folder, "")
            same = next((other for other in found if _is_same(other, one)), None)
            if same is None:
                found.append(one)
            else:
                _join(same, one)
    _name_apart(found)
    return sorted(found, key=lambda one: not one.base)


def unmeasured(sources: Sequence[Source]) -> dict[str, str]:
    """The models that results were to measure and have not, and why: audited ones, and of sweeps the entry that others
    are judged against."""
    found = {}
    for source in sources:
        if source.kind == AUDITED:
            for report in source.result["models"]:
                if not _was_measured(report):
                    found[report["name"]] = report.get("error") or "it was not finished"
        if source.kind == SWEPT and not source.inside:
            against = judged_against(source)
            if not any(one.method == against for one in _of_sweep(source)):
                found[against] = f"no edit of it is kept at the budget {source.result['main']!r} of {source.name}"
    return found


def judged_against(sweep: Source) -> str:
    """The entry of a sweep that others are judged against: the first, unless its config names one."""
    return str(sweep.result["config"].get("against") or next(iter(sweep.result["trials"]), ""))


def _was_measured(report: Row) -> bool:
    return report.get("error") is None and "evaluation" in report


def _is_same(known: Known, other: Known) -> bool:
    """Whether two sources speak of one checkpoint."""
    if not other.model or other.swept or known.model != other.model:
        return False
    return None in (known.weights, other.weights) or known.weights == other.weights


def _join(known: Known, more: Known) -> None:
    known.more.append(more)
    known.weights, known.bases = known.weights or more.weights, known.bases | more.bases
    known.base |= more.base
    known.change = more.change if known.change is None else known.change
    known.attempts += more.attempts
    known.columns += more.columns
    known.method = known.method or more.method


def _name_apart(models: Sequence[Known]) -> None:
    """Names that are there twice have their source behind them, then a number."""
    for again in (lambda one, number: one.source.name, lambda one, number: str(number)):
        names = [one.name for one in models]
        for number, one in enumerate(models):
            if names.count(one.name) > 1:
                one.name = f"{one.name} ({again(one, number)})"


def _nothing(source: Source) -> Iterator[Known]:
    yield from ()


def _of_edit(source: Source) -> Iterator[Known]:
    result = source.result
    base, change = result["base"].get("model"), result["comparison"].get("perplexity_change")
    yield Known(BASE, base, True, source, result["base"])
    yield Known(EDITED, result["edited"].get("model"), False, source, result["edited"], change, bases=_named(base))


def _of_evaluation(source: Source) -> Iterator[Known]:
    result, versus = source.result, source.result.get("versus_baseline") or {}
    ratio = versus.get("perplexity_ratio")
    name = Path(str(result.get("model") or UNNAMED)).name.replace("pypi:", "")
    # What was compared with a baseline is an edit; what stands alone may be either, and is taken for a model to judge
    # unless another source says that it is a base.
    change = None if ratio is None else ratio - 1
    yield Known(name, result.get("model"), False, source, result, change, bases=_named(versus.get("model")))


def _named(*names: str | None) -> set[str]:
    return {name for name in names if name is not None}


def _of_attack(source: Source) -> Iterator[Known]:
    result = AttackResult.from_dict(source.result, str(source.file))
    target, before = result.target, result.before
    model = (target.get("names") or {}).get("model")
    entry = ATTACKS.get(result.attack)
    judged = result.judged if result.judged and len(result.judged["among"]) else None
    attempt = Attempt(
        result.attack or source.name,
        entry.access if entry is not None else "",
        judged,
        "" if judged is not None else "no point of it counts",
        curve=_curve(result),
        any_cost=_at_any_cost(result, source.file) if entry is not None else None,
    )
    weights, base = target.get("weights"), target.get("base")
    yield Known(
        Path(str(model or UNNAMED)).name,
        model,
        weights is not None and weights == base,
        source,
        before.figures,
        attempts=[attempt],
        weights=weights,
        bases=_named(base, (target.get("names") or {}).get("base")),
    )


def _of_audit(source: Source) -> Iterator[Known]:
    base = source.result.get("base")
    name = None if base is None else base.get("model")
    hashes = [one["target"].get("base") for one in source.result["models"] if _was_measured(one)]
    for report in source.result["models"]:
        if not _was_measured(report):
            continue
        columns, target = _columns(report, source), report["target"]
        yield Known(
            report["name"],
            report.get("model"),
            is_base(report),
            source,
            report["evaluation"],
            _change(report["evaluation"], base),
            attempts=[_attempt(row, source.folder, report["name"], columns) for row in report["attacks"]],
            columns=columns,
            weights=target.get("weights"),
            bases=_named(target.get("base"), name),
        )
    if base is not None and not any(is_base(one) for one in source.result["models"] if "target" in one):
        control = source.result["controls"].get(BASE) or {}
        columns, place = _columns(control, source), f"controls/{BASE}"
        attempts = [_attempt(row, source.folder, place, columns) for row in control.get("attacks", [])]
        weights = next(iter(hashes), None)
        yield Known(BASE, name, True, source, base, attempts=attempts, columns=columns, weights=weights)


def _columns(report: Row, source: Source) -> list[Column]:
    columns = report.get("columns") or {}
    return [Column(access, found, source) for access, found in columns.items() if found["judged"] is not None]


def _attempt(row: Row, folder: Path, place: str, columns: Sequence[Column]) -> Attempt:
    wrecked = row["judged"] is not None and nothing_counts(row)
    why = str(reason_of_row(row) or "") if row["judged"] is None else "every point wrecked the model" * wrecked
    file = attack_file(folder, place, row["attack"])
    try:
        curve = _curve(read_result(file)) if row["judged"] is not None and file is not None else []
    except UserError:  # the table is whole without it
        curve = []
    return Attempt(
        row["attack"],
        row["access"],
        None if wrecked else row["judged"],
        why,
        row["error"] is not None or (row["judged"] is None and row["skipped"] is None),  # or not finished
        row["p_holm"],
        row["control_judged"],
        row["evidence"],
        curve,
        row["any_cost"],
        row["access"] in [column.access for column in columns],
    )


def _at_any_cost(result: AttackResult, file: Path) -> Row | None:
    """What an attacker reaches with points too that cost too much perplexity to count, if there are any."""
    dear = too_dear(result)
    try:
        return judge_chosen(read_options(result, file, dear), int(result.target.get("seed") or 0)) if dear else None
    except UserError:  # the generations are not beside it
        return None


def _of_sweep(source: Source) -> Iterator[Known]:
    result = source.result
    for kept in result["kept"]:
        if kept["budget"] not in (None, result["main"]) or not kept.get("reported"):
            continue
        base, seed = kept["entry"] == SWEEP_BASE, kept["seed"]
        reading = kept["reading"] or {}
        yield Known(
            BASE if base else kept["entry"] + (f", seed {seed}" if seed else ""),
            result["config"]["base"] if base else None,
            base,
            source,
            kept["reported"],
            None if base else reading.get("increase"),
            None if base else reading.get("kl"),
            kept["entry"],
            remarks=_lost_by_rounding(kept["entry"], result["figures"].get(kept["place"], {})),
            worst=kept.get("worst"),
            worst_of_all=kept.get("worst_of_all"),
            attempts=[
                Attempt(  # sweeps make no other attack
                    f"relearn-{name}",
                    "weights",
                    None,
                    found["error"] or "",
                    failed=found["error"] is not None,
                    curve=_swept_curve(found.get("curves", {})),
                )
                for name, found in kept["attacks"].items()
            ],
        )


def _lost_by_rounding(name: str, figures: Row) -> list[str]:
    """The grid that takes most of the edit away, if less than LASTING of its effect is left there."""
    rounded = [one for one in figures.get("surviving", []) if one["part"] is not None]
    if not rounded or (least := min(rounded, key=lambda one: one["part"]))["part"] >= LASTING:
        return []
    grid = f"{least['bits']} bits, {least['scheme']} in groups of {least['group_size']}"
    return [f"{name}: rounding to {grid} leaves {100 * least['part']:.0f} % of what it lowers the toxic share by."]


def _curve(result: AttackResult) -> list[Point]:
    left_out = result.found.get("left_out", [])
    points = []
    for point in result.curve:
        steps, rate = point.at.get("steps"), point.at.get("learning_rate")
        rate = rate if rate is not None else _only(result.settings.get("learning_rates"))
        if isinstance(steps, int) and title(point.at) not in left_out:
            points.append(Point(steps, point.share, rate))
    return points


def _only(rates: Any) -> float | None:
    return float(rates[0]) if isinstance(rates, list | tuple) and len(rates) == 1 else None


def _swept_curve(curves: Mapping[str, Sequence[Row]]) -> list[Point]:
    return [
        Point(point["steps"], point["share"], float(rate))
        for rate, points in curves.items()
        for point in points
        if point["counted"]
    ]


def _change(figures: Row, base: Row | None) -> float | None:
    costs = [None if one is None else one.get("perplexity") for one in (figures, base)]
    if costs[0] is None or costs[1] is None or not costs[1]["value"]:
        return None
    return float(costs[0]["value"] / costs[1]["value"] - 1)


READERS = {EDIT: _of_edit, EVALUATED: _of_evaluation, ATTACKED: _of_attack, AUDITED: _of_audit, SWEPT: _of_sweep}
