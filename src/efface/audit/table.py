"""What has an audit found? One table, whose last rows are the worst case (`worst.py`) and the upper bound."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from efface.attacks.result import read_point
from efface.attacks.target import Measurement
from efface.audit.worst import counts
from efface.errors import escaped
from efface.files.jsonl import Row

WIDTH = 120
HEADER = ("attack", "settings", "toxic share before -> after", "perplexity", "writing", "min")
SETTINGS = HEADER.index("settings")
ENDS = {"worst case": "worst", "upper bound": "upper_bound"}


def audit_table(results: Row) -> str:
    """What `results.json` says, in at most 120 columns: a block for each model; of several, then all side by side."""
    models = results["models"]
    made = [model for model in models if model["error"] is None]
    blocks = [_block(model, results["base"], [model["name"]] if len(models) > 1 else []) for model in made]
    if len(made) > 1:
        blocks += _side_by_side(made)
    notes = _notes(models, titled=len(models) > 1)
    return "\n\n".join([*blocks, "\n".join(notes)] if notes else blocks)


def _block(model: Row, base: Row | None, heading: list[str]) -> str:
    lines: list[tuple[str, ...]] = [HEADER]
    for name, figures in (("base", base), ("before attacks", model["evaluation"])):
        if figures is not None:
            point = read_point(figures)
            cost = "-" if point.measured.perplexity is None else f"{point.measured.perplexity.value:.2f}"
            lines.append((name, "", _share(point), cost, point.measured.degeneration.verdict, ""))
    lines += [_line(row) for row in model["attacks"]]
    for name, key in ENDS.items():
        if (found := model[key]) is not None:
            lines.append((name, found["attack"], _interval(found["share"], found["ci95"]), "", found["verdict"], ""))
    # Settings are cut to what the other columns leave.
    room = WIDTH - sum(_width(column) for i, column in enumerate(zip(*lines, strict=True)) if i != SETTINGS)
    lines = [(name, _cut(settings, max(room, 12)), *others) for name, settings, *others in lines]
    return "\n".join(heading + _aligned(lines))


def _line(row: Row) -> tuple[str, ...]:
    first = row["attack"], row["flags"].replace("--", "") or "defaults"
    if row["after"] is None:
        return *first, "skipped, see below" if row["skipped"] else "failed, see below", "", "", _minutes(row)
    before, after = read_point(row["before"]), read_point(row["after"])
    shares = f"{_share(before)} -> {_share(after)}{'' if counts(row) else ' *'}"
    return *first, shares, _perplexity(before, after), after.measured.degeneration.verdict, _minutes(row)


def _share(point: Measurement) -> str:
    return _interval(point.share, point.measured.toxicity.ci95["share"])


def _interval(value: float, ci95: Sequence[float]) -> str:
    return f"{value:.2f} [{ci95[0]:.2f}, {ci95[1]:.2f}]"


def _perplexity(before: Measurement, after: Measurement) -> str:
    """Of the attacked model, and its change; an attack that leaves the weights alone has that of before."""
    start, end = before.measured.perplexity, after.measured.perplexity
    if start is None or not start.value:
        return "-"
    if end is None:
        return f"{start.value:.2f}"
    return f"{end.value:.2f} {100 * (end.value / start.value - 1):+.0f}%"


def _minutes(row: Row) -> str:
    return "" if row["seconds"] is None else f"{row['seconds'] / 60:.1f}"


def _side_by_side(models: Sequence[Row]) -> list[str]:
    """The share after each attack, a column for each model; as many tables as the width makes necessary."""
    columns = [_column(model) for model in models]
    names = list(dict.fromkeys(name for column in columns for name in column if name not in ENDS))
    names += [name for name in ENDS if any(name in column for column in columns)]
    first = ["toxic share after", *names]
    tables, group = [], [first]
    for model, column in zip(models, columns, strict=True):
        cells = [model["name"], *(column.get(name, "-") for name in names)]
        if len(group) > 1 and sum(map(_width, [*group, cells])) > WIDTH:
            tables.append(group)
            group = [first]
        group.append(cells)
    return ["\n".join(_aligned(list(zip(*group, strict=True)))) for group in [*tables, group]]


def _column(model: Row) -> dict[str, str]:
    column = {"before attacks": _marked(model["evaluation"])}
    for row in model["attacks"]:
        if row["after"] is not None:
            column[row["attack"]] = _marked(row["after"]) + ("" if counts(row) else " *")
        else:
            column[row["attack"]] = "skipped" if row["skipped"] else "failed"
    for name, key in ENDS.items():
        if (found := model[key]) is not None:
            column[name] = f"{_interval(found['share'], found['ci95'])} {found['attack']}"
    return column


def _marked(figures: Row) -> str:
    point = read_point(figures)
    return _share(point) + (" degenerate" if point.measured.degeneration.verdict == "degenerate" else "")


def _notes(models: Sequence[Row], *, titled: bool) -> list[str]:
    """What does not fit into a cell."""
    notes = [f"{model['name']}, {note}" if titled else note for model in models for note in _remarks(model)]
    return [line for note in notes for line in textwrap.wrap(escaped(note), WIDTH, break_on_hyphens=False)]


def _remarks(model: Row) -> Iterator[str]:
    if model["error"] is not None:
        yield f"not audited: {model['error']}"
    for row in model["attacks"]:
        name = row["attack"]
        if row["error"] is not None:
            yield f"{name} failed: {row['error']}"
        elif row["skipped"] is not None:
            yield f"{name} was skipped: {row['skipped']}"
        elif not counts(row):
            yield f"{name} (*) is not in the worst case: it wrecked the model"
        elif row["found"].get("left_out") and "versus_before" not in row["after"]:
            yield f"{name}: every point wrecked the model; shown is what was before"
    bases = [f"{row['attack']} {row['base_share']:.2f}" for row in model["attacks"] if row["base_share"] is not None]
    if bases:
        yield f"toxic share of the base under the same: {', '.join(bases)}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    lines = [[escaped(cell) for cell in line] for line in lines]  # names and verdicts out of files
    widths = [_width(column) for column in zip(*lines, strict=True)]
    return ["".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _cut(text: str, width: int) -> str:
    return text if len(text) + 2 <= width else text[: width - 6].rstrip() + " ..."


def _width(column: Iterable[str]) -> int:
    return max(map(len, column)) + 2
