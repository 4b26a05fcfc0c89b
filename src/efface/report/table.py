"""How do results look on a terminal?"""

from collections.abc import Iterator
from typing import Any

from efface.errors import escaped

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


def evaluation_table(results: dict[str, dict[str, Any]]) -> str:
    """Results of `efface evaluate` side by side, a column each, as text; "-" for what one of them lacks.

    In front of the toxicity figures of degenerate text stands "degenerate": they say nothing about toxicity.
    """
    columns = [dict(_cells(result)) for result in results.values()]
    names = list(dict.fromkeys(name for column in columns for name in column))
    lines = [["", *results]] if any(results) else []
    lines += [[name, *(column.get(name, "-") for column in columns)] for name in names]
    lines = [[escaped(cell) for cell in line] for line in lines]  # names out of files of anybody's making
    widths = [max(len(cell) for cell in column) + 2 for column in zip(*lines, strict=True)]
    return "\n".join("".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cells(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    guard = result["degeneration"]
    warning = "degenerate: " if guard["verdict"] == "degenerate" else ""
    # Files of older versions have one judge and no `judges`.
    judges = result.get("judges") or {result["toxicity"]["scorer"]: result["toxicity"]}
    for judge, toxicity in judges.items():
        for name, key in _figures(toxicity).items():
            yield name if len(judges) == 1 else f"{name}, {judge}", warning + _estimate(toxicity, key)
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
        yield "identity excess", f"{identity['excess']:+.4f} [{low:+.4f}, {high:+.4f}] nats a token"
    yield "degeneration", "; ".join([guard["verdict"], *guard.get("reasons", [])])


def _figures(toxicity: dict[str, Any]) -> dict[str, str]:
    figures = ONE_SAMPLE if toxicity["samples"] == 1 else TOXICITY
    # Files of older versions do not tell invalid from clean.
    return {name: key for name, key in figures.items() if toxicity.get(key) is not None}


def _estimate(block: dict[str, Any], key: str) -> str:
    low, high = block["ci95"][key]
    return f"{block[key]:.3f} [{low:.3f}, {high:.3f}]"


def versus_lines(result: dict[str, Any]) -> str:
    """The block `versus_baseline` of a result as text: differences to the baseline with their intervals and p."""
    versus = result["versus_baseline"]
    lines = [f"against {versus['model']}:"]
    for judge, figures in versus["judges"].items():
        for name, key in _figures(result["toxicity"]).items():
            if key not in figures:
                continue
            low, high = figures[key]["ci95"]
            lines.append(
                f"  {name}, {judge}: {figures[key]['difference']:+.3f} [{low:+.3f}, {high:+.3f}], "
                f"p = {figures[key]['p']:.2g}"
            )
    if versus["perplexity_ratio"] is not None:
        lines.append(f"  perplexity: {100 * (versus['perplexity_ratio'] - 1):+.1f} %")
    for item in versus["utility"]:
        error = "" if item["stderr"] is None else f" ± {item['stderr']:.3f}"
        lines.append(f"  {item['metric']}, {item['task']}: {item['difference']:+.3f}{error}")
    lines += [f"  not compared: {reason}" for reason in versus["not_compared"]]
    return escaped("\n".join(lines))
