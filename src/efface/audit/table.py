"""What has an audit found? For each model a table of its attacks, then of its columns; then models side by side."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from efface.attacks.measurement import Measurement
from efface.attacks.result import read_point
from efface.audit.battery import DIAGNOSTIC, resolution
from efface.audit.columns import ANY_COST, CONTROL, ITSELF, NONE
from efface.audit.notes import notes_on, reason_of_row
from efface.audit.rows import nothing_counts
from efface.evaluation.proportions import count_of
from efface.files.jsonl import Row
from efface.terminal.table import Notes, Page, Table

HEAD = ("attack", "toxic\nof {}", "share [95 %]", "more than before", "control", "inv.", "clean", "2nd judge", "p")
MORE = ("perplexity", "min")
WRECKED = "every point wrecks"
EVIDENCE = {CONTROL: "rises", ITSELF: "itself", NONE: "no evidence"}


def audit_page(results: Mapping[str, Any]) -> Page:
    """What `results.json` says."""
    models = results["models"]
    made = [model for model in models if model["error"] is None]
    blocks: list[Table | str] = ["\n".join(_head(results, made))] if made else []
    of_base = _base_columns(results)
    for model in made:
        blocks.append(_block(model, results["base"], of_base, model["name"] if len(models) > 1 else ""))
    if len(made) > 1:
        blocks += [_side_by_side(made), *(_differences(one) for one in results["comparisons"])]
    notes = [note for model in models for note in _remarks(model, titled=len(models) > 1)]
    for one in results["controls"].values():
        notes += [f"control {one['name']} was not made: {one['error']}"] if one["error"] else []
        notes += [
            f"control {one['name']}, {row['attack']} failed: {row['error']}" for row in one["attacks"] if row["error"]
        ]
    return Page([*blocks, "\n".join(notes)] if notes else blocks)


def _head(results: Mapping[str, Any], made: Sequence[Row]) -> Iterator[str]:
    toxicity = read_point(made[0]["evaluation"]).measured.toxicity
    n = toxicity.n_prompts
    yield (
        f"{n} prompts: a share is known to within ±{resolution(n):.2f}. toxic: at the point (or, in a column, "
        "attack and point) that an attacker chooses "
        f"on other prompts, by {toxicity.scorer}; inv.: no text, and not toxic; p: corrected after Holm."
    )
    trained = [f"{one['name']} {one['training_seed']}" for one in made if one.get("training_seed") is not None]
    seeds = results["seeds"]
    yield (
        f"seeds: of training {', '.join(trained) or 'unknown'}; of attacks {seeds['attack']}; of generations "
        f"{seeds['generations']}. Intervals are over prompts, not over seeds."
    )
    if results["cannot_show"]:
        yield f"{results['budget']} cannot show: {', '.join(results['cannot_show'])}"
    if not results["controls"]:
        yield "no controls were made: no row is known to be evidence"


def _block(model: Row, base: Row | None, of_base: Row, title: str) -> Table:
    notes = Notes()
    before = read_point(model["evaluation"])
    of = _continuations(before)
    lines: list[tuple[str, ...]] = []
    for name, figures in (("base", base), ("before attacks", model["evaluation"])):
        if figures is not None:
            lines.append(_measured_line(name, read_point(figures), of))
    for row in model["attacks"]:
        lines += [_line(row, of, before.measured.toxicity.n_prompts, notes), *_any_cost(row, of)]
    for access, column in model["columns"].items():
        if column["judged"] is not None:
            its = (of_base.get(access) or {}).get("judged")
            beside = "-" if its is None else f"base {its['share']:.2f}"
            lines.append((f"= {access}", *_judged_cells(column["judged"], column["p_holm"], beside, of), "", ""))
            if column.get("any_cost"):
                cells = _judged_cells(column["any_cost"], None, "", of)
                lines.append((f"= {access}{ANY_COST}", *cells, "", ""))
    return Table(lines, (*(name.format(of) for name in HEAD), *MORE), title=title, notes=notes)


def _continuations(point: Measurement) -> int:
    toxicity = point.measured.toxicity
    return toxicity.n_prompts * toxicity.samples


def _count(share: float, n: int, of: int) -> str:
    """How many are toxic, where that is not so many of the head's number with their own."""
    count = count_of(share, n)
    return "-" if count is None else f"{count}" if n == of else f"{count} of {n}"


def _measured_line(name: str, point: Measurement, of: int) -> tuple[str, ...]:
    toxicity = point.figures["toxicity"]
    cost = "-" if point.measured.perplexity is None else f"{point.measured.perplexity.value:.2f}"
    second = list(point.measured.judges.values())[1:2]
    share = _count(point.share, _continuations(point), of), _interval(point.share, toxicity["ci95"]["share"])
    parts = _part(toxicity.get("invalid")), _part(toxicity.get("clean"))
    return name, *share, "", "", *parts, _part(second[0].share if second else None), "", cost, ""


def _line(row: Row, of: int, whole: int, notes: Notes) -> tuple[str, ...]:
    """A row that is not of the `whole` number of prompts says of how many."""
    blank = ("",) * (len(HEAD) - 2)
    if row["judged"] is None:
        told = "skipped" if row["skipped"] else "failed"
        return f"{row['attack']} {notes.mark(str(reason_of_row(row)))}", "-", told, *blank, _minutes(row)
    before, after = read_point(row["before"]), read_point(row["after"])
    n = before.measured.toxicity.n_prompts
    name, cost = row["attack"] + ("" if n == whole else f" of {n}"), (_perplexity(before, after), _minutes(row))
    if nothing_counts(row):
        mark = notes.mark(f"{row['attack']}: every point wrecked the model")
        return f"{name} {mark}", "-", WRECKED, "", _control(row), *blank[3:], *cost
    return name, *_judged_cells(row["judged"], row["p_holm"], _control(row), of), *cost


def _any_cost(row: Row, of: int) -> list[tuple[str, ...]]:
    """A further line where the budget of perplexity has left something out."""
    if not row.get("any_cost"):
        return []
    return [(row["attack"] + ANY_COST, *_judged_cells(row["any_cost"], None, "", of), "", "")]


def _judged_cells(judged: Row, p: float | None, beside: str, of: int) -> tuple[str, ...]:
    """Count, share, difference, what stands `beside` it, parts, second judge, p."""
    second = list(judged["judges"].values())[1:2]
    versus = judged["versus_before"]
    low, high = versus["ci95"]
    return (
        _count(judged["share"], judged.get("of") or 0, of),
        _interval(judged["share"], judged["ci95"]),
        f"{versus['difference']:+.2f} [{low:+.2f}, {high:+.2f}]",
        beside,
        _part(judged.get("invalid")),
        _part(judged.get("clean")),
        _part(second[0]["share"] if second else None),
        _p(p),
    )


def _control(row: Row) -> str:
    if row["access"] == DIAGNOSTIC:
        return "diagnostic"
    share = "" if row["control_judged"] is None else f"{row['control_judged']['share']:.2f} "
    return f"{share}{EVIDENCE.get(row['evidence'], 'no control')}" if row["evidence"] != NONE else EVIDENCE[NONE]


def _p(p: float | None) -> str:
    return "" if p is None else "<.001" if p < 0.001 else f"{p:.3f}"


def _part(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _interval(value: float, ci95: Sequence[float]) -> str:
    return f"{value:.2f} [{ci95[0]:.2f}, {ci95[1]:.2f}]"


def _perplexity(before: Measurement, after: Measurement) -> str:
    """Of the attacked model at its highest point, and its change; an attack that leaves the weights alone has that of
    before."""
    start, end = before.measured.perplexity, after.measured.perplexity
    if start is None or not start.value:
        return "-"
    if end is None:
        return f"{start.value:.2f}"
    return f"{end.value:.2f} {100 * (end.value / start.value - 1):+.0f}%"


def _minutes(row: Row) -> str:
    return "" if row["seconds"] is None else f"{row['seconds'] / 60:.1f}"


def _side_by_side(models: Sequence[Row]) -> Table:
    """The share that each attack reaches, a column for each model."""
    columns = [_column(model) for model in models]
    names = list(dict.fromkeys(name for column in columns for name in column if not name.startswith("= ")))
    names += list(dict.fromkeys(name for column in columns for name in column if name.startswith("= ")))
    lines = [
        [name, *(column.get(name, column.get(name.removesuffix(ANY_COST), "-")) for column in columns)]
        for name in names
    ]
    return Table(lines, ["toxic share", *(model["name"] for model in models)])


def _column(model: Row) -> dict[str, str]:
    column = {"before attacks": _marked(model["evaluation"])}
    for row in model["attacks"]:
        if (judged := row["judged"]) is not None and nothing_counts(row):
            column[row["attack"]] = WRECKED
        elif judged is not None:
            column[row["attack"]] = _interval(judged["share"], judged["ci95"])
            column[row["attack"]] += " no evidence" if row["evidence"] == NONE else ""
        else:
            column[row["attack"]] = "skipped" if row["skipped"] else "failed"
        if dear := row.get("any_cost"):
            column[row["attack"] + ANY_COST] = _interval(dear["share"], dear["ci95"])
    for access, found in model["columns"].items():
        if found["judged"] is not None:
            column[f"= {access}"] = _interval(found["judged"]["share"], found["judged"]["ci95"])
            if dear := found.get("any_cost"):
                column[f"= {access}{ANY_COST}"] = _interval(dear["share"], dear["ci95"])
    return column


def _marked(figures: Row) -> str:
    point = read_point(figures)
    share = _interval(point.share, point.measured.toxicity.ci95["share"])
    return share + (" degenerate" if point.measured.degeneration.verdict == "degenerate" else "")


def _differences(comparison: Row) -> Table:
    one, other = comparison["models"]
    lines = []
    named = {"before attacks": comparison["before"], **comparison["attacks"]}
    named |= {f"= {access}": block for access, block in comparison["columns"].items()}
    for name, block in named.items():
        if block is not None:
            low, high = block["ci95"]
            p = _p(block.get("p_holm", block["p"]))
            lines.append((name, f"{block['difference']:+.2f} [{low:+.2f}, {high:+.2f}]", p))
    return Table(lines, (f"{other} less {one}", "toxic share", "p"))


def _base_columns(results: Mapping[str, Any]) -> Row:
    """The columns of the undefended base, if it was attacked too."""
    control = results["controls"].get("base") or {}
    if control.get("as") is not None:
        control = next(model for model in results["models"] if model["name"] == control["as"])
    columns: Row = control.get("columns") or {}
    return columns


def _remarks(model: Row, *, titled: bool) -> Iterator[str]:
    """What does not fit into a cell."""
    for note in notes_on(model):
        yield f"{model['name']}, {note}" if titled else note
