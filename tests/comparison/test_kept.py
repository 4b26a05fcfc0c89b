"""Is what a sweep keeps told in one order, whoever measured it first?"""

from typing import Any

from efface.comparison.config import build_config
from efface.comparison.kept import Kept

BUDGETS = {"main": {"kl": 0.05, "perplexity": 0.03}, "tight": {"kl": 0.02, "perplexity": 0.03}}


def kept_of(*rows: dict[str, Any], **attacks: Any) -> Kept:
    """With these rows, in the order in which they were measured."""
    methods = [{"name": "sft", "seeds": [7, 0]}, {"name": "dpo"}]
    files = {name: f"{name}.jsonl" for name in ("tuning", "reported", "attacked", "text")}
    config = build_config({"base": "some/model", "methods": methods, "attacks": attacks, "budgets": BUDGETS} | files)
    kept: Any = Kept(config, None, None)  # type: ignore[arg-type]  # nothing is measured here
    kept.rows = {row["place"]: row for row in rows}
    return kept


def row(entry: str, seed: int | None, budget: str | None = "main", worst: float = 0.5) -> dict[str, Any]:
    place = f"{budget}/{entry}-s{seed}"
    return {"place": place, "entry": entry, "seed": seed, "budget": budget, "worst": {"share": worst}}


def test_rows_stand_in_the_order_of_the_config() -> None:
    """Another process may have measured a later seed, or a later entry, first: of an entry the first row is its first
    seed's, which is compared with others."""
    rows = [row("dpo", 0), row("base", None, None), row("dpo", 0, "tight"), row("sft", 0), row("sft", 7)]
    assert list(kept_of(*rows).in_order()) == [rows[i]["place"] for i in (1, 4, 3, 0, 2)]


def test_the_best_are_of_first_seeds() -> None:
    rows = [row("sft", 0, worst=0.1), row("sft", 7, worst=0.6), row("dpo", 0, worst=0.5), row("dpo", 0, "tight", 0.0)]
    assert kept_of(*rows, best_of=1).best("main") == ["main/dpo-s0"]
    assert kept_of(*rows, best_of=2).best("main") == ["main/dpo-s0", "main/sft-s7"]
