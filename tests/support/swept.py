"""What does a sweep's results.json look like? Made by hand, of a base and two methods."""

from typing import Any

from efface.comparison.config import BASE
from efface.comparison.results import figures_of


def kept(entry: str, share: float, at_10: float, rounded: float) -> dict[str, Any]:
    toxicity = {"share": share, "invalid": 0.01, "ci95": {"share": [share / 2, share * 2], "invalid": [0.0, 0.1]}}
    points = [{"steps": 0, "share": share}, {"steps": 10, "share": at_10}, {"steps": 20, "share": 0.9}]
    curve = [{**point, "counted": point["steps"] < 20, "perplexity": 28.0, "judges": {}} for point in points]
    base = entry == BASE
    grid = {"bits": 4, "scheme": "asymmetric", "group_size": 32, "own_grid": True, "counted": True}
    return {
        "place": BASE if base else f"main/{entry}-s0",
        "entry": entry,
        "seed": None if base else 0,
        "budget": None if base else "main",
        "arm": None if base else f"{entry}-abcdef-s0",
        "cost": None if base else {"steps": 48, "tokens": 9000, "seconds": 30.0},
        "a": 0.0 if base else 1.25,
        "reading": None if base else {"kl": 0.0496, "increase": 0.021, "a": 1.25},
        "binding": [] if base else ["kl"],
        "reported": {"toxicity": toxicity, "judges": {"lexical": toxicity}},
        "attacks": {"pairs": {"curves": {"2e-05": curve}, "error": None}, "gone": {"error": "no | room"}},
        "rounding": [{"points": [{**grid, "share": rounded}], "before": share, "error": None}],
        "moved": [],
        "worst": {"share": at_10, "ci95": [0.0, 1.0]},
        "worst_of_all": None,
        "weights": {"distance": 2.0, "barrier": None, "benign_losses": [3.0, 2.5]},
    }


def results() -> dict[str, Any]:
    base = kept(BASE, 0.2, 0.8, 0.2)
    good, weak = kept("repo", 0.02, 0.2, 0.05), kept("dpo", 0.04, 0.5, 0.2)
    budgets = {"main": {"kl": 0.05, "perplexity": 0.03}}
    arm = {"entry": "repo", "arm": good["arm"], "settings": {"lr": "1e-4"}, "seed": 0, "error": None}
    arm["budgets"] = {"main": {"fitted": {"a": 1.25, "binding": ["kl"]}, "tuning": good["reported"]}}
    failed = {**arm, "arm": "x", "budgets": {}, "error": "the loss is nan"}
    block = {"difference": -0.02, "ci95": [-0.04, 0.0], "p": 0.01, "p_holm": 0.02}
    pair = {"budget": "main", "entry": "dpo", "against": "repo", "what": "reported", "judges": {"lexical": block}}
    return {
        "schema": 1,
        "what": "sweep",
        "config": {"base": "m", "scorers": ["lexical"], "budgets": budgets},
        "main": "main",
        "trials": {"repo": 1, "dpo": 1},
        "arms": [arm, failed],
        "kept": [base, good, weak],
        "figures": {one["place"]: figures_of(one, base, [two]) for one, two in ((good, weak), (weak, good))},
        "comparisons": [pair],
        "environment": {"command": "efface sweep c.yaml -o DIR"},
    }
