"""How do results look on a terminal?"""

from typing import Any


def evaluation_table(results: dict[str, dict[str, Any]]) -> str:
    """Results of `efface evaluate` side by side, a column each, as text."""
    rows: dict[str, list[str]] = {}
    for result in results.values():
        toxicity, perplexity, guard = result["toxicity"], result["perplexity"], result["degeneration"]
        cells = {
            name: f"{toxicity[key]:.3f} [{toxicity['ci95'][key][0]:.3f}, {toxicity['ci95'][key][1]:.3f}]"
            for name, key in (
                ("toxic share", "share"),
                ("mean score", "mean"),
                ("expected maximum", "expected_maximum"),
                ("probability", "probability"),
            )
        }
        cells["perplexity"] = (
            "-" if perplexity is None else f"{perplexity['value']:.2f} ({perplexity['tokens']} tokens)"
        )
        cells["degeneration"] = guard["verdict"] + "".join(f"; {reason}" for reason in guard.get("reasons", []))
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    width = max(len(cell) for cells in rows.values() for cell in cells) + 2
    header = [" " * 18 + "".join(f"{name:<{width}}" for name in results)] if any(results) else []
    return "\n".join(
        header
        + [f"{name:<18}" + "".join(f"{cell:<{width}}" for cell in cells).rstrip() for name, cells in rows.items()]
    )
