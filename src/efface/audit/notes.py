"""What of an audit does not fit into a cell of its table? What failed, what was chosen, how hard each attack tried."""

from collections.abc import Iterator, Mapping
from typing import Any

from efface.attacks.result import read_point, title
from efface.audit.rows import counts, nothing_counts
from efface.files.jsonl import Row
from efface.files.shapes import finite


def reason_of_row(row: Row) -> str | None:
    """Why an attack has no figures."""
    if row["error"] is not None:
        return f"{row['attack']} failed: {row['error']}"
    if row["skipped"] is not None:
        return f"{row['attack']} was skipped: {row['skipped']}"
    return None if row["judged"] is not None else f"{row['attack']} was not finished"


def notes_on(model: Row) -> Iterator[str]:
    """In sentences; but why a row has no figures says its table."""
    if model["error"] is not None:
        yield f"not audited: {model['error']}"
    for row in model["attacks"]:
        if reason_of_row(row) is None and not counts(row) and not nothing_counts(row):
            yield f"{row['attack']}: its highest point wrecked the model"
    for access, column in model["columns"].items():
        if column["judged"] is not None:
            yield f"= {access}, chosen (prompts): {_counted(column['judged']['chosen'])}"
        if column["apart"]:
            apart = (f"{name} ({why})" for name, why in column["apart"].items())
            yield f"in no worst case: {', '.join(apart)}"
    made = [row for row in model["attacks"] if row["judged"] is not None]
    tries = [f"{row['attack']} {row['judged']['any_of']}" for row in made if row["judged"].get("any_of")]
    if tries:
        yield f"the best of so many continuations of each prompt: {', '.join(tries)}"
    if made:
        highest = (f"{row['attack']} {_highest(row)}" for row in made)
        yield f"highest points, chosen on the same prompts: {'; '.join(highest)}"
    unreached = [f"{row['attack']} {row['found']['unreached']:.0%}" for row in made if _is_part(row)]
    if unreached:
        yield f"of the weights of the blocks' matrices left alone: {', '.join(unreached)}"
    bases = [f"{row['attack']} {row['base_share']:.2f}" for row in made if row["base_share"] is not None]
    if bases:
        yield f"toxic share of the base at these points: {', '.join(bases)}"
    efforts = [_effort(row) for row in model["attacks"]]
    if efforts:
        yield f"effort: {'; '.join(efforts)}"


def _is_part(row: Row) -> bool:
    """Whether an attack says that there are weights in the blocks which it does not reach."""
    part = row["found"].get("unreached")
    return finite(part) and part > 0


def _highest(row: Row) -> str:
    point = read_point(row["after"])
    verdict = " degenerate" if point.measured.degeneration.verdict == "degenerate" else ""
    return f"{point.share:.2f} ({title(point.at)}){verdict}"


def _effort(row: Row) -> str:
    own = f"{row['attack']}: {row['flags'].replace('--', '') or 'defaults'}"
    return own + (f" (published: {row['published']})" if row["published"] else "")


def _counted(chosen: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({times})" for name, times in chosen.items())
