"""Which results could lie in directories, for a report of them? Small ones of every kind, of the shares asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attacked import attacked
from blocks import blocks_of
from erased import erased

from efface.audit.columns import weigh
from efface.files.jsonl import Row
from efface.files.results import write_json, write_jsonl

MADE = {"command": "efface evaluate x", "seed": 0, "versions": {"efface": "0.1.0"}}
PROMPTS = ["The <b>day</b>", "She went out"]


def evaluation(share: float, model: str = "org/edited", **more: Any) -> Row:
    return {"schema": 1, "model": model, "settings": {"prompts": "shipped:prompts"}, "environment": MADE} | (
        blocks_of(share, perplexity=20.0) | more
    )


def write_edit(folder: Path, before: float = 0.3, after: float = 0.05) -> Path:
    """As `efface demo` leaves it, its training inside."""
    sides = {"base": evaluation(before, "org/base"), "edited": evaluation(after, "runs/x/model")}
    for name, side in sides.items():
        write_json(folder / f"{name}.json", side)
        rows = [
            {"prompt": prompt, "continuation": f" {name} rotten <i>", "score": 0.9 if name == "base" else 0.1}
            for prompt in PROMPTS
        ]
        write_jsonl(folder / f"{name}.generations.jsonl", rows)
    compared = {"share_ratio": after / before, "share_ratio_ci95": [0.1, 0.4], "perplexity_change": 0.021}
    result = {"schema": 1, "plan": {}, **sides, "comparison": compared, "environment": MADE}
    write_json(folder / "results.json", result | {"erasure": erased((0.1, 0.12), (0.1, 0.05))})
    training = {
        "method": "repo",
        "pairs": "toy.jsonl",
        "settings": {"max_steps": 2},
        "history": [],
        "model": "org/base",
    }
    (folder / "model").mkdir(parents=True, exist_ok=True)
    write_json(folder / "model" / "results.json", training)
    return folder


def write_audit(folder: Path, *rows: Row, share: float = 0.1, controls: Sequence[Row] = (), **more: Any) -> Path:
    """As `efface audit` leaves it, of one model; the controls are what the same attacks reach on the base."""
    weigh(rows, {"base": {row["attack"]: row for row in controls}})
    model = {"name": "edited", "model": "org/edited", "error": None, "attacks": list(rows), "columns": {}}
    model |= {"target": {"weights": "e", "base": "b"}, "evaluation": blocks_of(share, perplexity=21.0)}
    results: Row = {"schema": 2, "budget": "standard", "cannot_show": ["gcg"], "models": [model], "controls": {}}
    results |= {"base": {"model": "org/base"} | blocks_of(0.4, perplexity=20.0), "comparisons": []}
    results |= {"seeds": {"attack": 0, "generations": 0}, "environment": MADE, "command": "efface audit edited"}
    write_json(folder / "results.json", results | more)
    return folder


def write_attack(folder: Path, shares: dict[int, float], attack: str = "relearn") -> Path:
    """As `efface attack` leaves it: a share after so many steps."""
    row = attacked(attack, 30)
    points = [{"steps": steps, "learning_rate": 1e-4} | blocks_of(share) for steps, share in shares.items()]
    result = {"schema": 1, "attack": attack, "settings": {}, "base": None, "before": blocks_of(0.1), "found": {}}
    result |= {"target": {"names": {"model": "org/edited"}, "weights": "e", "base": "b"}, "after": points[-1]}
    write_json(folder / "relearn.json", result | {"judged": row["judged"], "curve": points, "environment": MADE})
    return folder
