"""How do results look as tables? Evaluations beside each other, and one against its baseline."""

from collections.abc import Iterator
from typing import Any

from efface.evaluation.proportions import count_of
from efface.evaluation.result import judges_of
from efface.terminal.table import Notes, Table

TOXICITY = {
    "toxic share": "share",
    "invalid share": "invalid",
    "clean share": "clean",
    "mean score": "mean",
    "expected maximum": "expected_maximum",
    "probability": "probability",
}
ONE_SAMPLE = {name: key for name, key in TOXICITY.items() if key not in ("expected_maximum", "probability")}
"""These two repeat others where there is one continuation of each prompt."""
BESIDE = 2
"""So many results stand in columns beside each other; more of them in rows below each other."""


def evaluation_table(results: dict[str, dict[str, Any]]) -> Table:
    """Results of `efface evaluate` side by side; "-" for what one of them lacks.

    In front of the toxicity figures of degenerate text stands the number of a note: they say nothing about toxicity.
    """
    notes = Notes()
    columns = [dict(_cells(result, notes)) for result in results.values()]
    names = list(dict.fromkeys(name for column in columns for name in column))
    lines = [[name, *(column.get(name, "-") for column in columns)] for name in names]
    head = ["", *results]
    if len(results) > BESIDE:
        head, *lines = map(list, zip(head, *lines, strict=True))
    return Table(lines, head if any(head) else (), notes=notes)


def counted(share: float, n: int, ci95: list[float]) -> str | None:
    """A share of `n` in words, "13 of 512, at most 4.3 %" (by its interval); None if it is none of so many."""
    count = count_of(share, n)
    return None if count is None else f"{count} of {n}, at most {100 * ci95[1]:.1f} %"


def _cells(result: dict[str, Any], notes: Notes) -> Iterator[tuple[str, str]]:
    guard = result["degeneration"]
    degenerate = guard["verdict"] == "degenerate"
    why = "; ".join(["degenerate text, whose toxicity says nothing", *guard.get("reasons", [])])
    mark = notes.mark(why) if degenerate else ""
    front = f"{mark} " if degenerate else ""
    judges = judges_of(result)
    for judge, toxicity in judges.items():
        by = "" if len(judges) == 1 else f", {judge}"
        said = counted(toxicity["share"], toxicity["n_prompts"] * toxicity["samples"], toxicity["ci95"]["share"])
        if said is not None:
            yield f"toxic{by}", front + said
        for name, key in _figures(toxicity).items():
            yield f"{name}{by}", front + _estimate(toxicity, key)
    cost = result.get("perplexity")
    yield "perplexity", "-" if cost is None else f"{cost['value']:.2f} ({cost['tokens']} tokens)"
    if result.get("f1") is not None:
        yield "F1", _estimate(result["f1"], "f1")
    for item in result.get("utility") or []:
        error = "" if item.get("stderr") is None else f" ± {item['stderr']:.3f}"
        yield f"{item['metric']}, {item['task']}", f"{item['value']:.3f}{error} ({item['n']} rows)"
    identity = (result.get("identity") or {}).get("identity") or {}
    if identity.get("excess") is not None and identity.get("ci95") is not None:
        low, high = identity["ci95"]
        yield "identity excess, nats a token", f"{identity['excess']:+.4f} [{low:+.4f}, {high:+.4f}]"
    yield "degeneration", f"{guard['verdict']} {mark}".rstrip()


def _figures(toxicity: dict[str, Any]) -> dict[str, str]:
    figures = ONE_SAMPLE if toxicity["samples"] == 1 else TOXICITY
    # Files of older versions do not tell invalid from clean.
    return {name: key for name, key in figures.items() if toxicity.get(key) is not None}


def _estimate(block: dict[str, Any], key: str) -> str:
    low, high = block["ci95"][key]
    return f"{block[key]:.3f} [{low:.3f}, {high:.3f}]"


def versus_table(result: dict[str, Any]) -> Table:
    """The block `versus_baseline` of a result: differences to the baseline with their intervals and p."""
    versus = result["versus_baseline"]
    rows = []
    for judge, figures in versus["judges"].items():
        for name, key in _figures(result["toxicity"]).items():
            if key in figures:
                low, high = figures[key]["ci95"]
                difference = f"{figures[key]['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
                rows.append((f"{name}, {judge}", difference, f"{figures[key]['p']:.2g}"))
    if versus["perplexity_ratio"] is not None:
        rows.append(("perplexity", f"{100 * (versus['perplexity_ratio'] - 1):+.1f} %", ""))
    for item in versus["utility"]:
        error = "" if item["stderr"] is None else f" ± {item['stderr']:.3f}"
        rows.append((f"{item['metric']}, {item['task']}", f"{item['difference']:+.3f}{error}", ""))
    notes = [f"not compared: {reason}" for reason in versus["not_compared"]]
    head = ("", "difference", "p")
    return Table(rows, head if rows else (), title=f"against {versus['model']}:", notes=notes)
