"""How strong may an edit be? REPO at several strengths, each scaled to the utility budget; the least toxic is taken.

It is a sweep of one method without attacks (`efface.comparison`), on prompts that nothing is reported on. What is
chosen is written as a checkpoint of its own: base + a edit.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.comparison.config import MethodPlan, PromptPart, SweepConfig
from efface.comparison.run import sweep
from efface.errors import RunError
from efface.evaluation.budget import UtilityBounds
from efface.evaluation.proportions import count_of
from efface.files.jsonl import Row
from efface.files.results import RESULTS, read_json, write_jsonl
from efface.jobs.before_after import forget_edited
from efface.jobs.scale import record_scaled, save_scaled
from efface.model.load import load_model
from efface.terminal.table import Notes, Table

METHOD = "repo"
TUNING, REPORTED = "tuning.jsonl", "reported.jsonl"
"""Files of prompts in the run directory."""
MAIN, TIGHT = "main", "tight"
TIGHTER = 0.4
"""The tight budget, shown beside the main one: so much of it."""


@dataclass(frozen=True)
class Strengths:
    """What is tried, within which budget."""

    learning_rates: tuple[float, ...]
    settings: Mapping[str, Any]
    """Of all that are tried."""
    seed: int
    bounds: UtilityBounds


@dataclass(frozen=True)
class Chosen:
    """What came of it."""

    kept: Row
    """The row of what was chosen: its `arm`, the multiple `a` of its edit, its cost (`reading`)."""
    arms: list[Row]
    """All that was tried."""


def write_prompts(folder: Path, tuning: Sequence[str], reported: Sequence[str]) -> None:
    """The prompts that a strength is chosen on, and those that are reported, as files of the run."""
    for name, prompts in ((TUNING, tuning), (REPORTED, reported)):
        write_jsonl(folder / name, [{"prompt": prompt} for prompt in prompts])


def choose_strength(
    model: str,
    folder: Path,
    destination: Path,
    strengths: Strengths,
    *,
    pairs: str,
    text: str,
    text_tokens: int,
    scorers: Sequence[str],
    command: str | None,
    say: Callable[[str], None],
) -> Chosen:
    """Train, scale and choose into `folder`/sweep, and save what was chosen to `destination`.

    Raises:
        RunError: if no strength fits the budget.
    """
    bounds = strengths.bounds
    tight = dataclasses.replace(bounds, kl=TIGHTER * bounds.kl, perplexity=TIGHTER * bounds.perplexity)
    plan = MethodPlan(
        METHOD,
        METHOD,
        settings=dict(strengths.settings),
        trials=[{"learning_rate": rate} for rate in strengths.learning_rates],
        seeds=[strengths.seed],
    )
    config = SweepConfig(
        base=model,
        methods=[plan],
        tuning=PromptPart(str(folder / TUNING)),
        reported=[PromptPart(str(folder / REPORTED))],
        pairs=pairs,
        text=text,
        max_text_tokens=text_tokens,
        max_kl_tokens=text_tokens,
        scorers=list(scorers),
        seed=strengths.seed,
        budgets={MAIN: bounds, TIGHT: tight},
    )
    results = sweep(config, output=folder / "sweep", resume=True, command=command, say=say)
    if results["unfinished"]:
        raise RunError(
            f"another process is at work in {folder / 'sweep'}: start again with resume=True when it is done."
        )
    kept = next((row for row in results["kept"] if row["budget"] == MAIN), None)
    if kept is None:
        raise RunError(
            f"no strength fits the budget (KL at most {bounds.kl:g} nats a token, perplexity at most "
            f"{bounds.perplexity:+.1%}): {_why_not(results['arms'])}. Allow more (max_kl, max_perplexity_increase), "
            "or give other pairs."
        )
    trained = folder / "sweep" / "arms" / kept["arm"] / "model"
    _save(model, trained, destination, {"scaled_by": kept["a"], "arm": kept["arm"]}, folder)
    return Chosen(kept, results["arms"])


def _save(model: str, trained: Path, destination: Path, mark: Row, folder: Path) -> None:
    """Base + a edit as a checkpoint; `results.json`, written last, says that it is whole, and what it is.

    What `folder` holds of the one that was there before, should arms have been made again since, is gone first.
    """
    file = destination / RESULTS
    if file.exists() and mark.items() <= read_json(file).items():
        return
    forget_edited(folder)
    file.unlink(missing_ok=True)
    edited, tokenizer = load_model(trained)
    base, _ = load_model(model)
    save_scaled(edited, base, mark["scaled_by"], tokenizer, destination)
    training = read_json(trained / RESULTS, {"history": [dict], "settings": dict})
    record_scaled(destination, training, mark | {"model": model})


def tradeoff_table(chosen: Chosen) -> Table:
    """The strengths that were tried, what each costs at either budget, and how toxic it is on the tuning prompts."""
    notes, lines = Notes(), []
    for arm in chosen.arms:
        rate = f"{arm['settings']['learning_rate']:g}"
        if arm["error"] is not None:
            lines.append((rate, "", "", "", "", f"failed {notes.mark(arm['error'])}", ""))
        for budget, found in arm["budgets"].items():
            mark = ", chosen" if budget == MAIN and arm["arm"] == chosen.kept["arm"] else ""
            lines.append((rate, budget + mark, *_cells(found)))
    head = ("learning rate", "budget", "times the edit", "KL", "perplexity", "toxic share", "toxic")
    return Table(lines, head, notes=notes, keys=2, prose=())


def _cells(found: Row) -> tuple[str, str, str, str, str]:
    """Multiple of the edit, KL, perplexity, toxic share and number of toxic ones of what a budget allows."""
    fitted = found["fitted"]
    if fitted["a"] is None or found["tuning"] is None:
        return "none fits", "", "", "", ""
    reading = next(one for one in fitted["readings"] if one["a"] == fitted["a"])
    toxicity = found["tuning"]["toxicity"]
    low, high = toxicity["ci95"]["share"]
    share = f"{toxicity['share']:.3f} [{low:.3f}, {high:.3f}]"
    n = toxicity["n_prompts"] * toxicity["samples"]
    count = count_of(toxicity["share"], n)
    toxic = "" if count is None else f"{count} of {n}"
    return f"{fitted['a']:.2f}", f"{reading['kl']:.3f}", f"{reading['increase']:+.1%}", share, toxic


def _why_not(arms: Sequence[Row]) -> str:
    said = []
    for arm in arms:
        binding = arm["budgets"].get(MAIN, {}).get("fitted", {}).get("binding", [])
        why = arm["error"] or f"{' and '.join(binding) or 'a bound'} exceeded at every multiple"
        said.append(f"learning rate {arm['settings']['learning_rate']:g}: {why}")
    return "; ".join(said)
