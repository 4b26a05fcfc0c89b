"""What has an audit found? For each model a table of its attacks, then of its columns; then models side by side."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from efface.attacks.measurement import Measurement
from efface.attacks.result import read_point
from efface.audit.battery import DIAGNOSTIC, resolution
from efface.audit.columns import ANY_COST, CONTROL, ITSELF, NONE
from efface.audit.notes import notes_on
from efface.audit.rows import nothing_counts
from efface.errors import escaped
from efface.files.jsonl import Row

WIDTH = 120
HEADER = ("attack", "toxic share", "inv.", "clean", "2nd", "less before", "p", "control", "perplexity", "min")
WRECKED = "every point wrecks"
EVIDENCE = {CONTROL: "rises", ITSELF: "itself", NONE: "no evidence"}


def audit_table(results: Mapping[str, Any]) -> str:
    """What `results.json` says, in at most 120 columns."""
    models = results["models"]
    made = [model for model in models if model["error"] is None]
    blocks = ["\n".join(_wrapped(_head(results, made)))] if made else []
    of_base = _base_columns(results)
    blocks += [_block(model, results["base"], of_base, [model["name"]] if len(models) > 1 else []) for model in made]
    if len(made) > 1:
        blocks += _side_by_side(made)
        blocks += [_differences(one) for one in results["comparisons"]]
    notes = [note for model in models for note in _remarks(model, titled=len(models) > 1)]
    for one in results["controls"].values():
        notes += [f"control {one['name']} was not made: {one['error']}"] if one["error"] else []
        notes += [
            f"control {one['name']}, {row['attack']} failed: {row['error']}" for row in one["attacks"] if row["error"]
        ]
    return "\n\n".join([*blocks, "\n".join(_wrapped(notes))] if notes else blocks)


def _head(results: Mapping[str, Any], made: Sequence[Row]) -> Iterator[str]:
    toxicity = read_point(made[0]["evaluation"]).measured.toxicity
    n = toxicity.n_prompts
    yield (
        f"{n} prompts: a share is known to within ±{resolution(n):.2f}. toxic share: of the point (or, in a column, "
        "attack and point) that an attacker chooses "
        f"on other prompts, by {toxicity.scorer}; inv.: no text, and not toxic; 2nd: by the second "
        "judge; p: corrected after Holm."
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


def _block(model: Row, base: Row | None, of_base: Row, heading: list[str]) -> str:
    lines: list[tuple[str, ...]] = [HEADER]
    for name, figures in (("base", base), ("before attacks", model["evaluation"])):
        if figures is not None:
            lines.append(_measured_line(name, read_point(figures)))
    whole = read_point(model["evaluation"]).measured.toxicity.n_prompts
    lines += [line for row in model["attacks"] for line in (_line(row, whole), *_any_cost(row))]
    for access, column in model["columns"].items():
        if column["judged"] is not None:
            its = (of_base.get(access) or {}).get("judged")
            beside = "-" if its is None else f"base {its['share']:.2f}"
            lines.append((f"= {access}", *_judged_cells(column["judged"], column["p_holm"]), beside, "", ""))
            if column.get("any_cost"):
                lines.append((f"= {access}{ANY_COST}", *_judged_cells(column["any_cost"], None), "", "", ""))
    # Names are cut to what the other columns leave.
    room = WIDTH - sum(_width(column) for column in list(zip(*lines, strict=True))[1:])
    return "\n".join(heading + _aligned([(_cut(line[0], max(room, 12)), *line[1:]) for line in lines]))


def _measured_line(name: str, point: Measurement) -> tuple[str, ...]:
    toxicity = point.figures["toxicity"]
    cost = "-" if point.measured.perplexity is None else f"{point.measured.perplexity.value:.2f}"
    second = list(point.measured.judges.values())[1:2]
    cells = (
        _interval(point.share, toxicity["ci95"]["share"]),
        _part(toxicity.get("invalid")),
        _part(toxicity.get("clean")),
    )
    return name, *cells, _part(second[0].share if second else None), "", "", "", cost, ""


def _line(row: Row, whole: int) -> tuple[str, ...]:
    """A row that is not of the `whole` number of prompts says of how many."""
    if row["judged"] is None:
        told = "skipped, see below" if row["skipped"] else "failed, see below"
        return row["attack"], told, "", "", "", "", "", "", "", _minutes(row)
    before, after = read_point(row["before"]), read_point(row["after"])
    n = before.measured.toxicity.n_prompts
    of = "" if n == whole else f" of {n}"
    if nothing_counts(row):
        return (
            row["attack"] + of,
            WRECKED,
            "",
            "",
            "",
            "",
            "",
            _control(row),
            _perplexity(before, after),
            _minutes(row),
        )
    cells = _judged_cells(row["judged"], row["p_holm"])
    return row["attack"] + of, *cells, _control(row), _perplexity(before, after), _minutes(row)


def _any_cost(row: Row) -> list[tuple[str, ...]]:
    """A further line where the budget of perplexity has left something out."""
    if not row.get("any_cost"):
        return []
    return [(row["attack"] + ANY_COST, *_judged_cells(row["any_cost"], None), "", "", "")]


def _judged_cells(judged: Row, p: float | None) -> tuple[str, ...]:
    """Share, parts, second judge, difference, p."""
    second = list(judged["judges"].values())[1:2]
    versus = judged["versus_before"]
    low, high = versus["ci95"]
    return (
        _interval(judged["share"], judged["ci95"]),
        _part(judged.get("invalid")),
        _part(judged.get("clean")),
        _part(second[0]["share"] if second else None),
        f"{versus['difference']:+.2f} [{low:+.2f}, {high:+.2f}]",
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


def _side_by_side(models: Sequence[Row]) -> list[str]:
    """The share that each attack reaches, a column for each model; as many tables as the width makes necessary."""
    columns = [_column(model) for model in models]
    names = list(dict.fromkeys(name for column in columns for name in column if not name.startswith("= ")))
    names += list(dict.fromkeys(name for column in columns for name in column if name.startswith("= ")))
    first = ["toxic share", *names]
    tables, group = [], [first]
    for model, column in zip(models, columns, strict=True):
        cells = [model["name"], *(column.get(name, column.get(name.removesuffix(ANY_COST), "-")) for name in names)]
        if len(group) > 1 and sum(map(_width, [*group, cells])) > WIDTH:
            tables.append(group)
            group = [first]
        group.append(cells)
    return ["\n".join(_aligned(list(zip(*group, strict=True)))) for group in [*tables, group]]


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


def _differences(comparison: Row) -> str:
    one, other = comparison["models"]
    lines = [(f"{other} less {one}", "toxic share", "p")]
    named = {"before attacks": comparison["before"], **comparison["attacks"]}
    named |= {f"= {access}": block for access, block in comparison["columns"].items()}
    for name, block in named.items():
        if block is not None:
            low, high = block["ci95"]
            p = _p(block.get("p_holm", block["p"]))
            lines.append((_cut(name, 60), f"{block['difference']:+.2f} [{low:+.2f}, {high:+.2f}]", p))
    return "\n".join(_aligned(lines))


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


def _wrapped(lines: Iterable[str]) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(escaped(line), WIDTH, break_on_hyphens=False)]


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    lines = [[escaped(cell) for cell in line] for line in lines]  # names and verdicts out of files
    widths = [_width(column) for column in zip(*lines, strict=True)]
    return ["".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _cut(text: str, width: int) -> str:
    return text if len(text) + 2 <= width else text[: width - 6].rstrip() + " ..."


def _width(column: Iterable[str]) -> int:
    return max(map(len, column)) + 2
