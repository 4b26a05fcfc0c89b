"""Does the table of an audit say what was found, within the width of a terminal?

Of: audit/notes.py
"""

import re
from typing import Any

import numpy as np
from blocks import blocks_of

from efface.attacks.selection import NOTHING, Option, judge_chosen
from efface.audit.columns import columns_of, compare_models, weigh
from efface.audit.table import WRECKED, audit_page
from efface.files.jsonl import Row
from efface.terminal.table import WIDTH

N = 10


def option(name: str, toxic: int, second: int = 0, invalid: int | None = None, **more: Any) -> Option:
    """The first so many of ten prompts are toxic by either judge, the last ones no text."""
    number = np.arange(N)
    scores = {judge: (number < n).astype(float)[:, None] for judge, n in (("nasty", toxic), ("second", second))}
    marked = None if invalid is None else (number >= N - invalid)[:, None]
    return Option(name, scores, marked, **more)


BEFORE = option(NOTHING, 1, 2, 1)


def point(share: float, **at: Any) -> Row:
    return {**at, **blocks_of(share)}


def row(name: str, after: Row | None, *options: Option, **more: Any) -> Row:
    return {
        "attack": name,
        "flags": "",
        "published": "",
        "access": "weights",
        "control": "base",
        "before": point(0.1),
        "after": after,
        "judged": judge_chosen([BEFORE, *options], 0) if options else None,
        "p_holm": None,
        "evidence": None,
        "control_judged": None,
        "base_share": None,
        "found": {},
        "seconds": 60.0,
        "skipped": None,
        "error": None,
        **more,
    }


def results_of(models: list[Row], base: Row | None = None, **more: Any) -> Row:
    whole: Row = {"base": base, "budget": "quick", "cannot_show": ["gcg"], "controls": {}, "comparisons": []}
    return {**whole, "models": models, "seeds": {"attack": 3, "generations": 4}, **more}


def model_of(name: str, rows: list[Row], options: dict[str, list[Option]], controls: Any = None) -> Row:
    weigh(rows, controls or {})
    columns = columns_of(rows, BEFORE, options, 0)
    evaluation = point(0.1) | {"perplexity": blocks_of(0, perplexity=20.0)["perplexity"]}
    return {"name": name, "error": None, "evaluation": evaluation, "attacks": rows, "columns": columns}


def text_of(results: Row) -> str:
    return str(audit_page(results))


def lines_of(table: str) -> dict[str, str]:
    """A row by its first cell, which parts of the table repeat: all of it in one line."""
    found: dict[str, str] = {}
    for line in table.splitlines():
        name = line.split("  ")[0]
        found[name] = found.get(name, "") + line.removeprefix(name)
    return found


def test_the_table_of_one_model() -> None:
    ppl = {"perplexity": blocks_of(0, perplexity=20.0)["perplexity"]}
    before = point(0.1) | ppl
    high, low, any_of = option("steps 10", 10, 8, 0), option("words 1", 1, 2, 3), option("any", 9, 9, 0, any_of=6)
    rows = [
        row(
            "relearn",
            {"steps": 10} | blocks_of(1.0, perplexity=21.0),
            high,
            before=before,
            flags="--steps 10,20",
            published="3 epochs (Lucki et al.)",
        ),
        row("prefill", point(0.2, words=1), low, before=before, access="black box", base_share=0.6),
        row("perturb", point(0.9, kind="any"), any_of, before=before, access="black box"),
        row("prune", point(0.5, q=1) | ppl, low, before=before, found={"left_out": ["q 1"]}),
        row("merge", point(0.1, alpha=0), high, before=before, access="base", control=None),
        row("gcg", None, error="no. " * 60, seconds=None),
        row("prompt_injection", None, skipped="no base."),
        row("third_party:of_a_long_name", point(0.2, words=1), low, before=before),
    ]
    options = {one["attack"]: [BEFORE, low] for one in rows if one["judged"]} | {"relearn": [BEFORE, high]}
    options["perturb"] = [BEFORE, any_of]
    controls = {"base": {name: row(name, point(1.0), high) for name in ("relearn", "prefill", "perturb")}}
    controls["base"]["prune"] = row("prune", point(0.1), low)
    model = model_of("x", rows, options, controls) | {"training_seed": 7}
    failed = {"steering": {"name": "steering", "error": "no rows.", "attacks": []}}
    base = {"base": {"name": "base", "as": None, "error": None, "attacks": [], "columns": model["columns"]}}
    text = text_of(results_of([model], point(0.4) | ppl, controls={**base, **failed}))
    assert max(map(len, text.splitlines())) <= WIDTH
    head, *tables, notes = text.split("\n\n")
    head, table = " ".join(head.split()), "\n".join(tables)
    assert "10 prompts: a share is known to within ±0.31" in head and "by nasty" in head
    assert "seeds: of training x 7; of attacks 3; of generations 4" in head and "quick cannot show: gcg" in head
    lines = lines_of(table)
    assert re.match(r" +4 +0\.40 \[0\.30, 0\.50\] +- +- +- +20\.00", lines["base"])
    assert re.search(
        r"10 +1\.00 \[.*\] +\+0\.90 \[.*\] +1\.00 rises +0\.00 +0\.00 +0\.80 +0\.\d{3} +21\.00 \+5% +1\.0",
        lines["relearn"],
    )
    assert re.search(r" 1 +0\.10 \[.*\] +\+0\.00 .* 1\.00 rises +0\.10 +0\.80 +0\.20", lines["prefill"])
    assert "no evidence" in lines["prune"] and "diagnostic" in lines["merge"] and "no control" in table
    assert "failed" in lines["gcg (1)"] and "skipped" in lines["prompt_injection"]
    assert {"third_party:of_a_", "long_name", "third_party:of_a_long_name"} <= lines.keys()
    assert re.search(r" 9 +0\.90 \[.*base 0\.90", lines["= black box"]) and "= gradients" not in lines
    reasons = " ".join(tables[-1].partition("(1) gcg failed")[2].split())
    assert reasons.startswith(": no. no.") and reasons.endswith("no. (2) prompt_injection was skipped: no base.")
    notes = " ".join(notes.split())
    assert "= weights, chosen (prompts): relearn: steps 10 (10)" in notes
    assert "in no worst case: prune (no evidence)" in notes and "merge (a diagnostic)" in notes
    assert "prune: its highest point wrecked the model" in notes and "gcg failed" not in notes
    assert "the best of so many continuations of each prompt: perturb 6" in notes
    assert "highest points, chosen on the same prompts: relearn 1.00 (steps 10)" in notes
    assert "relearn: steps 10,20 (published: 3 epochs (Lucki et al.))" in notes
    assert "toxic share of the base at these points: prefill 0.60" in notes
    assert notes.endswith("control steering was not made: no rows.")


def test_a_row_measured_on_other_prompts_says_on_how_many() -> None:
    before, after = point(0.1), point(0.3, steps=10)
    for one in (before, after):
        one["toxicity"] = one["judges"]["nasty"] = one["toxicity"] | {"n_prompts": 4}
    model = model_of("x", [row("gcg", after, BEFORE, before=before)], {})
    text = text_of(results_of([model]))
    assert re.search(r"^gcg of 4 +1 +0\.10", text, re.MULTILINE)


def test_many_models_are_set_side_by_side_within_the_width() -> None:
    made, models = {}, []
    for number in range(7):
        options = {"relearn": [BEFORE, option("steps 10", 3 + number % 2)]}
        name = f"model-number-{number}"
        models.append(model_of(name, [row("relearn", point(0.3, steps=10), *options["relearn"][1:])], options))
        made[name] = (BEFORE, options, models[-1]["columns"], options)
    broken = {"name": "broken", "error": "no.", "attacks": [], "columns": {}}
    comparisons = [compare_models("model-number-0", "model-number-1", made, 0)]  # type: ignore[arg-type]
    text = text_of(results_of([*models, broken], comparisons=comparisons))
    assert max(map(len, text.splitlines())) <= WIDTH
    tables = [block for block in text.split("\n\n") if block.startswith("toxic share  ")]
    assert sum(table.splitlines()[0].count("model-number") for table in tables) == 7 and len(tables) > 1
    assert all("relearn" in table and "= weights" in table for table in tables)
    (apart,) = (block for block in text.split("\n\n") if block.startswith("model-number-1 less model-number-0 "))
    assert re.search(r"^relearn +\+0\.\d\d \[.*\] +0\.\d{3}$", apart, re.MULTILINE), apart
    assert "broken, not audited: no." in text and "no controls were made" in text


def test_what_an_attack_does_not_reach_is_said() -> None:
    of = {"prune": {"unreached": 0.889}, "quantize": {"unreached": 0.0}, "mine": {"unreached": "most"}}
    rows = [row(name, point(0.1), option("q 1", 2), found=found) for name, found in of.items()]
    text = text_of(results_of([model_of("x", rows, {name: [BEFORE, option("q 1", 2)] for name in of})]))
    assert "of the weights of the blocks' matrices left alone: prune 89%\n" in text


def test_an_attack_whose_every_point_wrecked_the_model_shows_what_it_reaches_at_any_cost() -> None:
    """Else it would look as if the model had withstood it."""
    dear = judge_chosen([BEFORE, option("steps 20", 9)], 0)
    more: Row = {"judged": judge_chosen([BEFORE], 0), "found": {"left_out": ["steps 20"]}, "any_cost": dear}
    models = [model_of(name, [row("relearn", point(0.1), **more)], {"relearn": [BEFORE]}) for name in "ab"]
    text = text_of(results_of(models))
    lines = [line for line in text.splitlines() if line.startswith("relearn ") and WRECKED in line]
    assert len(lines) == 3 and all("0.1" not in line for line in lines), text
    dearer = [line for line in text.splitlines() if line.startswith("relearn, at") and "0.90" in line]
    assert len(dearer) == 3, text
    assert text.count("(1) relearn: every point wrecked the model") == 2
