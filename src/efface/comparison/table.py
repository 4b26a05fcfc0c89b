"""How does a comparison look as a page? Tables, out of the results of one or several sweeps; and these in markdown."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from efface.comparison.curves import curves_of, steps_of
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.files.markdown import inert, inert_lines
from efface.files.shapes import check_shape
from efface.terminal.table import Notes, Page, Table

SWEEP = {"what": str, "config": dict, "main": str, "trials": dict, "arms": [dict], "kept": [dict], "figures": dict}
"""The shape of a sweep's results, as far as a table reads them."""


def comparison_page(results: Mapping[str, Row]) -> Page:
    """The page of several sweeps, a section each, in the order given."""
    blocks: list[Table | str] = []
    for name, found in results.items():
        blocks += [f"# {name}: {found['config']['base']}"] if len(results) > 1 else []
        for section in (kept_table, attack_table, rounding_table, failed_lines, comparison_lines, arms_table):
            blocks += section(found)
    return Page(blocks)


def markdown(blocks: Sequence[Table | str]) -> str:
    """The same as markdown."""
    return "\n\n".join(inert_lines(block) if isinstance(block, str) else _table(block) for block in blocks) + "\n"


def kept_table(results: Row) -> list[Table | str]:
    """Each kept model: cost, toxicity by every judge, worst attack, weights."""
    judges = list(results["config"]["scorers"])
    head = ["entry", "seed", "budget", "a", "bound by", "KL", "perplexity"]
    head += [*(f"share, {judge}" for judge in _judges(results, judges)), "invalid", "worst attack"]
    further = ["worst of all attacks"] if any(kept["worst_of_all"] for kept in results["kept"]) else []
    head += [*further, "ratio of drops", "trainability", "L2", "barrier", "steps", "tokens", "seconds"]
    rows = []
    for kept in results["kept"]:
        figures, reading = results["figures"].get(kept["place"], {}), kept["reading"] or {}
        blocks = (kept.get("reported") or {}).get("judges", {})
        cost = kept["cost"] or {}
        row = [
            kept["entry"],
            _text(kept["seed"]),
            kept["budget"] or "",
            _number(kept["a"]),
            ", ".join(kept["binding"]),
        ]
        row += [_number(reading.get("kl"), 3), _percent(reading.get("increase"))]
        row += [_share(blocks.get(judge)) for judge in _judges(results, judges)]
        first: Row = next(iter(blocks.values()), {})
        row += [
            _number(first.get("invalid"), 3),
            _share(kept["worst"]),
            *(_share(kept["worst_of_all"]) for _ in further),
        ]
        row += [_number(figures.get("worst_ratio")), _number(figures.get("trainability"))]
        row += [_number(figures.get("distance")), _number(figures.get("barrier"), 3)]
        row += [_text(cost.get("steps")), _text(cost.get("tokens")), _text(cost.get("seconds"))]
        rows.append(row)
    return ["## At the budget", _budget_lines(results), Table(rows, head, keys=3)]


def _judges(results: Row, names: Sequence[str]) -> list[str]:
    """As the results call them."""
    for kept in results["kept"]:
        if kept.get("reported"):
            return list(kept["reported"]["judges"])
    return list(names)


def _budget_lines(results: Row) -> str:
    lines = [
        f"{name}: KL to the base at most {one['kl']:g} nats a token and perplexity at most {one['perplexity']:+.1%}."
        for name, one in results["config"]["budgets"].items()
    ]
    counts = results["trials"]
    if len(set(counts.values())) == 1:
        lines.append(f"Each entry was tuned with {next(iter(counts.values()))} trial(s).")
    else:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        lines.append(f"**Not tuned alike**, trials: {said}.")
    if missing := results.get("unfinished"):
        lines.append(f"**Not whole yet**, no figures of: {', '.join(missing)}.")
    return " ".join(lines)


def attack_table(results: Row) -> list[Table | str]:
    """Shares along each attack and rate, and when the base and half-way are reached."""
    curves = {kept["place"]: curves_of(kept, results["config"].get("attacks", {})) for kept in results["kept"]}
    parts: list[Table | str] = []
    for (attack, rate), steps in steps_of(curves.values()).items():
        rows = []
        for kept in results["kept"]:
            points = curves[kept["place"]].get((attack, rate))
            if points is None:
                continue
            at = {point["steps"]: point for point in points}
            figures = results["figures"].get(kept["place"], {}).get("curves", {}).get(f"{attack} {rate}")
            row = [kept["entry"], _text(kept["seed"]), kept["budget"] or ""]
            row += [_counted(at.get(step)) for step in steps]
            row += ["", "", ""] if figures is None else [_reached(figures, "base"), _reached(figures, "half")]
            if figures is not None:
                ratios = [point["ratio"] for point in figures["points"] if point["ratio"] is not None]
                row += [_number(min(ratios, default=None))]
            rows.append(row)
        head = ["entry", "seed", "budget", *(f"{step} steps" for step in steps)]
        head += ["steps to base", "steps to half", "least ratio of drops"]
        parts += [f"### {attack}, rate {rate}", Table(rows, head, keys=3)]
    return ["## Relearned", *parts] if parts else []


def rounding_table(results: Row) -> list[Table | str]:
    """What of each drop survives rounding."""
    rows = []
    for kept in results["kept"]:
        figures = results["figures"].get(kept["place"], {})
        for kind, said in (("surviving", "the base"), ("surviving_moved", "the base moved off its grid")):
            for one in figures.get(kind, []):
                grid = f"{one['bits']} bits, {one['scheme']}/{one['group_size']}"
                own = " (the base's own)" if one["own_grid"] else ""
                row = [kept["entry"], _text(kept["seed"]), kept["budget"] or "", said, grid + own]
                drop = _number(one["drop"], 3) + ("" if one["counted"] else "*")
                rows.append([*row, drop, _percent(one["part"], "")])
    head = ["entry", "seed", "budget", "on", "grid", "drop", "of the drop"]
    return ["## Rounded", Table(rows, head, keys=3, prose=(0, 3, 4))] if rows else []


def failed_lines(results: Row) -> list[Table | str]:
    """What could not be made, or was not, and so is in no table; a model of which an attack failed has no worst
    attack."""
    failed = []
    for kept in results["kept"]:
        parts = dict(kept["attacks"]) | {"weights": kept.get("weights") or {}}
        for kind in ("rounding", "moved"):
            parts |= {f"{kind} {number}": one for number, one in enumerate(kept[kind])}
        failed += [f"- {kept['place']}, {name}: {one['error']}" for name, one in parts.items() if one.get("error")]
    spared = [f"- {kept['place']}: {kept['spared']}" for kept in results["kept"] if kept.get("spared")]
    found: list[Table | str] = ["## Failed", "\n".join(failed)] if failed else []
    return [*found, "## Not attacked", "\n".join(spared)] if spared else found


def comparison_lines(results: Row) -> list[Table | str]:
    """The paired tests, their p corrected for their number."""
    rows = []
    for one in results["comparisons"]:
        for judge, block in one["judges"].items():
            low, high = block["ci95"]
            said = [one["budget"], one["what"], f"{one['entry']} - {one['against']}", judge]
            rows.append([*said, f"{block['difference']:+.3f} [{low:+.3f}, {high:+.3f}]", f"{block['p_holm']:.2g}"])
    head = ["budget", "what", "difference of", "judge", "share", "p (Holm)"]
    return ["## Paired differences", Table(rows, head, keys=3, prose=(1, 2, 3))] if rows else []


def arms_table(results: Row) -> list[Table | str]:
    """Every arm, the failed ones and those beyond the budget among them."""
    kept, rows, notes = {(one["arm"], one["budget"]) for one in results["kept"]}, [], Notes()
    for arm in results["arms"]:
        settings = ", ".join(f"{name}={value}" for name, value in arm["settings"].items())
        start = [arm["entry"], settings, _text(arm["seed"])]
        for budget, found in arm["budgets"].items():
            fitted = found["fitted"]
            share = "" if found["tuning"] is None else _number(found["tuning"]["toxicity"]["share"], 3)
            a = "beyond it" if fitted["a"] is None else _number(fitted["a"])
            mark = "kept" if (arm["arm"], budget) in kept else ""
            rows.append([*start, budget, a, ", ".join(fitted["binding"]), share, mark])
        if arm["error"]:
            rows.append([*start, "", "failed", notes.mark(arm["error"]), "", ""])
    head = ["entry", "settings", "seed", "budget", "a", "bound by", "share, tuning prompts", ""]
    return ["## All arms", Table(rows, head, notes=notes, keys=3, prose=(0, 1, 5, 6))] if rows else []


def read_sweep(results: Row, name: str) -> Row:
    """The results of a sweep. Raises UserError if they are of something else."""
    if results.get("what") != "sweep":
        raise UserError(f"{name} holds no results of a sweep. Pass the directory of `efface sweep`.")
    check_shape(results, SWEEP, name)
    return results


def _table(table: Table) -> str:
    """Here a cell that is nothing but the number of a note is the note."""
    notes = {f"({number})": note for number, note in enumerate(table.notes, 1)}
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join("| " + " | ".join(inert(notes.get(cell, cell)) for cell in row) + " |" for row in lines)


def _reached(figures: Row, which: str) -> str:
    found = figures[f"steps_to_{which}"]
    if not figures["moves_base"]:
        return "the base stays"
    return f"> {figures['last']}" if found is None else f"{found:.1f}"


def _counted(point: Row | None) -> str:
    if point is None:
        return ""
    return _number(point["share"], 3) + ("" if point["counted"] else "*")


def _share(block: Row | None) -> str:
    if not block:
        return ""
    low, high = block["ci95"] if isinstance(block["ci95"], list | tuple) else block["ci95"]["share"]
    return f"{block['share']:.3f} [{low:.3f}, {high:.3f}]"


def _number(value: Any, digits: int = 2) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _percent(value: Any, sign: str = "+") -> str:
    return "" if value is None else f"{value:{sign}.1%}"


def _text(value: Any) -> str:
    return "" if value is None else str(value)
