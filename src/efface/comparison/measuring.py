"""What is measured of a kept model? How toxic it is, under attack too, and what has become of its weights.

    DIR/kept/PLACE/NAME/result.json    an attack, as `efface attack` writes it, its generations beside it
    DIR/kept/PLACE/weights.json        distance to the base, barrier on the way there, how a benign fine-tune learns
    DIR/untouched/                     what models write before any attack, measured once

PLACE is base, or BUDGET/ARM. What one part dies of is written into its row; the others are made.
"""

import dataclasses
import logging
import math
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.attacks.finished import MadeOtherwise, finished_result
from efface.attacks.quantize import OWN_GRID, QuantizeSettings, quantize
from efface.attacks.relearn import RelearnSettings, relearn
from efface.attacks.result import AttackResult, title
from efface.attacks.target import Target
from efface.comparison.config import AttackPlan, SweepConfig
from efface.comparison.figures import barrier
from efface.data.rows import load_texts
from efface.errors import RunError, UserError, described, reason_of
from efface.evaluation.perplexity import perplexity
from efface.files.digests import digest
from efface.files.events import Journal
from efface.files.jsonl import Row
from efface.files.results import read_json, remove, write_json
from efface.model.copies import without_adapter
from efface.model.edit import edit_squares, scaled_copy, transplanted
from efface.model.fingerprint import fingerprint_of
from efface.training.finetune import finetune

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
KEPT, RESULT = "kept", "result.json"
HINT = "`efface attack relearn --list-flags` prints every setting."
MADE_AGAIN = frozenset({"weights", "base"})
"""In which a measurement may differ, and is made anew: an arm was trained or scaled again, or the moved base was."""
HELD_OUT = 4
"""Of the documents every fourth is not fine-tuned on, but measured."""
READINGS = 4
"""Of the loss of the benign fine-tune, after its start."""


@dataclass
class Bench:
    """On what all kept models of a sweep are measured."""

    config: SweepConfig
    directory: Path
    reported: Target
    """Of the base, with the reported prompts."""
    attacked: Target
    """Of the base, with the prompts that attacks are measured on."""
    say: Journal
    moved: "PreTrainedModel | None" = field(default=None, repr=False)

    @property
    def base(self) -> "PreTrainedModel":
        return self.reported.model

    def folder(self, place: str) -> Path:
        return self.directory / KEPT / place

    def moved_base(self) -> "PreTrainedModel":
        """The base after a short ordinary fine-tune; made once, the same every time."""
        if self.moved is None:
            plans, documents = self.config.attacks, load_texts(self.config.documents)
            self.moved = finetune(
                self.base,
                self.reported.processing_class,
                documents,
                steps=plans.moved_steps,
                learning_rate=plans.moved_rate,
                max_length=128,
                batch_size=8,
                seed=self.config.seed,
            ).requires_grad_(False)
        return self.moved


def report_model(bench: Bench, model: "PreTrainedModel") -> Row:
    """The `figures` of a model on the reported prompts, and by which `key` the target knows them."""
    target = dataclasses.replace(bench.reported, model=model)
    described = target.described()
    return {"figures": target.untouched("model", described).to_dict(), "key": target.key_of("model", described)}


def relearn_model(bench: Bench, place: str, model: "PreTrainedModel", plan: AttackPlan) -> Row:
    """Relearn a model: a row of its curves, rate by rate."""
    settings = relearn_settings(plan, bench.config.documents)
    target = dataclasses.replace(bench.attacked, model=model)

    def curves(result: AttackResult) -> Row:
        rates: dict[str, list[Row]] = {f"{rate:g}": [] for rate in settings.learning_rates}
        out = result.found["left_out"]
        for point in result.curve[1:]:
            rate = point.at.get("learning_rate", settings.learning_rates[0])
            rates[f"{rate:g}"].append(_point(point, out, steps=point.at["steps"]))
        start = _point(result.curve[0], out, steps=0)
        return {"curves": {rate: [start, *points] for rate, points in rates.items()}}

    return _attack(bench, place, plan.name, relearn, settings, target, curves)


def relearn_settings(plan: AttackPlan, documents: str = "shipped:passages") -> RelearnSettings:
    """Raises UserError for flags that `efface attack relearn` does not know.

    Args:
        documents: ordinary text, unless the plan names another.
    """
    found = _flags(RelearnSettings, plan.flags, f"attacks.{plan.name}")
    return RelearnSettings(**{"documents": documents, **found})


def round_settings(flags: str) -> QuantizeSettings:
    """Raises UserError for flags that `efface attack quantize` does not know."""
    return QuantizeSettings(**_flags(QuantizeSettings, flags, "attacks.rounding"))


def _flags(kind: Any, flags: str, where: str) -> dict[str, Any]:
    from efface.flags import FlagParser  # on use: transformers costs a second

    try:
        return FlagParser(kind, HINT).given(shlex.split(flags))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def round_model(bench: Bench, place: str, model: "PreTrainedModel", number: int, *, moved: bool) -> Row:
    """Round a model to the grids of an entry of `rounding`: a row of points, those on the base's own grid named.

    Args:
        moved: its edit on the moved base instead of the base.
    """
    settings = round_settings(bench.config.attacks.rounding[number])
    base = bench.moved_base() if moved else bench.base
    if moved:
        model = base if model is bench.base else transplanted(model, bench.base, base)
    target = dataclasses.replace(bench.attacked, model=model, base=base)

    def points(result: AttackResult) -> Row:
        names = ("bits", "scheme", "group_size")
        found = []
        for point in result.curve[1:]:
            at = {name: point.at[name] for name in names}
            own = point.at.get("grid") == OWN_GRID
            found.append({**at, "own_grid": own, **_point(point, result.found["left_out"])})
        return {"points": found, "before": result.before.share}

    return _attack(bench, place, rounding_name(number, moved=moved), quantize, settings, target, points)


def rounding_name(number: int, *, moved: bool) -> str:
    """What the folder of an entry of `rounding` is called."""
    return f"{'moved' if moved else 'rounding'}-{number}"


def _point(point: Any, left_out: Any, **more: Any) -> Row:
    figures = point.measured
    value = None if figures.perplexity is None else figures.perplexity.value
    toxicity = figures.toxicity
    judges = {name: one.share for name, one in figures.judges.items()}
    counted = title(point.at) not in left_out
    return {**more, "share": toxicity.share, "judges": judges, "perplexity": value, "counted": counted}


def _attack(
    bench: Bench,
    place: str,
    name: str,
    attack: Callable[[Target, Any], AttackResult],
    settings: Any,
    target: Target,
    row: Callable[[AttackResult], Row],
) -> Row:
    """Make an attack, or take it as it was made; a row that has an `error` if it failed."""
    file = bench.folder(place) / name / RESULT
    start = time.monotonic()
    try:
        try:
            result = finished_result(file, name, settings, target.described())
        except MadeOtherwise as error:
            if not MADE_AGAIN.issuperset(error.differing):
                raise
            remove(file.parent)
            result = None
        if result is None:
            bench.say(f"{place}: {name}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            with bench.say.during("attack", model=place, attack=name):
                result = attack(dataclasses.replace(target, output=file, resume=True), settings)
            write_json(file.with_name("seconds.json"), {"seconds": round(time.monotonic() - start, 1)})
        spent = file.with_name("seconds.json")
        seconds = read_json(spent)["seconds"] if spent.exists() else None
        return {**row(result), "error": None, "seconds": seconds}
    except Exception as error:  # whatever it is, the others are made
        log.info("%s, %s failed", place, name, exc_info=True)
        bench.say(f"{place}: {name} failed: {reason_of(error)}")
        return {"error": told(error), "seconds": None}


def weigh_edit(bench: Bench, place: str, model: "PreTrainedModel", *, whole: bool = True) -> Row:
    """Where the weights went: distance to the base, barrier on the way, how a benign fine-tune learns from here.

    Args:
        whole: False for the distance alone.
    """
    plans, file = bench.config.attacks, bench.folder(place) / "weights.json"
    plans = plans if whole else dataclasses.replace(plans, line=[], benign_steps=0)
    how = {"line": plans.line, "steps": plans.benign_steps, "rate": plans.benign_rate, "seed": bench.config.seed}
    texts = digest([bench.reported.text, load_texts(bench.config.documents)])
    weights = [fingerprint_of(one) for one in (model, bench.base)]
    made_by = digest([*weights, how, texts, bench.config.max_text_tokens])
    if file.exists() and (found := read_json(file)).get("made_by") == made_by:
        return found
    bench.say(f"{place}: its weights")
    squares, norm = edit_squares(without_adapter(model), without_adapter(bench.base))
    row: Row = {"made_by": made_by, "distance": math.sqrt(squares), "base_norm": math.sqrt(norm), "error": None}
    row |= {"barrier": None, "benign_losses": None}
    try:
        if plans.line and model is not bench.base:
            places = [0.0, *plans.line, 1.0]
            losses = [_text_loss(bench, scaled_copy(model, bench.base, place)) for place in places]
            row |= {"barrier": barrier(places, losses)}
        if plans.benign_steps:
            row |= {"benign_losses": _benign_losses(bench, model)}
    except Exception as error:  # whatever it is, the others are made
        log.info("%s: its weights failed", place, exc_info=True)
        return row | {"error": told(error)}
    write_json(file, row)
    return row


def told(error: Exception) -> str:
    """An error in a line; what is no error of ours with its kind."""
    return str(error) if isinstance(error, UserError | RunError) else described(error)


def _text_loss(bench: Bench, model: "PreTrainedModel") -> float:
    tokenizer, text = bench.reported.processing_class, bench.reported.text or []
    return math.log(perplexity(model, tokenizer, text, max_tokens=bench.config.max_text_tokens).value)


def _benign_losses(bench: Bench, model: "PreTrainedModel") -> list[float]:
    """On held-out documents, before the first step and after each quarter of them."""
    plans, documents = bench.config.attacks, load_texts(bench.config.documents)
    held_out = documents[::HELD_OUT]
    tokenizer, found = bench.reported.processing_class, []
    steps = {round(plans.benign_steps * part / READINGS) for part in range(1, READINGS + 1)}

    def loss(one: "PreTrainedModel") -> float:
        return math.log(perplexity(one, tokenizer, held_out, max_tokens=bench.config.max_text_tokens).value)

    def on_step(step: int, student: "PreTrainedModel") -> None:
        if step in steps:
            found.append(loss(student))

    before = loss(model)
    finetune(
        model,
        tokenizer,
        [text for i, text in enumerate(documents) if i % HELD_OUT],
        steps=plans.benign_steps,
        learning_rate=plans.benign_rate,
        batch_size=8,
        max_length=128,
        seed=bench.config.seed,
        on_step=on_step,
    )
    return [before, *found]
