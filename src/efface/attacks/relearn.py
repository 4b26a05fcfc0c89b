"""How soon is toxicity back when someone fine-tunes the released weights? Relearning (Lucki et al. 2024).

Next-token cross-entropy over all tokens of k toxic rows, polite rows, the model's own answers, labelled or ordinary
text, or a mixture (`relearn_data.py`); AdamW or SGD on all weights, the last blocks, or an adapter. Toxicity against
steps, a curve for each learning rate: every (rate, steps) is a point, and which of them the attacker would choose is
decided on other prompts than it is judged on (`audit`). Judged by the worst point at which the model is still of use
(`points.py`). How many of the prompts and texts it is measured on were trained on is counted: there should be none.
"""

import logging
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from efface.attacks.lists import several
from efface.attacks.measurement import Measurement
from efface.attacks.points import UtilityBudget, half_of, judge_within, recovery, within_budget
from efface.attacks.record import Record, recorded
from efface.attacks.relearn_data import KINDS, mixture, read_sources
from efface.attacks.result import AttackResult, title
from efface.attacks.target import Target
from efface.checks import at_least_one, one_of
from efface.errors import UserError
from efface.training.finetune import OPTIMIZERS, SCHEDULES, Diverged, finetune, raise_if_diverged

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RelearnSettings(UtilityBudget):
    """Settings of `relearn`."""

    NAMES_FILES: ClassVar[dict[str, tuple[str, ...]]] = {"documents": ()}
    """Settings that name a file, and words that each may be instead: see `describe_settings`."""
    steps: tuple[int, ...] = several("10,20", int, "Optimizer steps after which it is measured; 0, before, always is.")
    data: str = field(
        default="toxic",
        metadata={
            "help": "What is trained on: toxic (prompt + rejected), benign (prompt + chosen), own (prompt + what the "
            "model itself answers), labelled (--labelled), text (--documents), or several of them with their relative "
            "shares, as in toxic:0.5,text:0.5."
        },
    )
    documents: str = field(
        default="shipped:passages",
        metadata={"help": "JSON lines with `text`: ordinary text to train on. Not the text of --text."},
    )
    k: int | None = field(
        default=None,
        metadata={"help": "Rows, and documents, to train on, drawn under the seed; default: all."},
    )
    batch_size: int = field(default=8, metadata={"help": "Rows in a step."})
    learning_rates: tuple[float, ...] = several(
        "1e-4", float, "Rates, one or several (3e-5,1e-4); LoRA wants about ten times more."
    )
    schedule: str = field(
        default="constant",
        metadata={"help": "Of the rate: constant, or linear, which falls to zero over the steps."},
    )
    optimizer: str = field(
        default="adamw",
        metadata={"help": "adamw, or sgd with a momentum of 0.9, which wants far higher rates."},
    )
    bf16: bool = field(
        default=False,
        metadata={
            "help": "Multiply in bfloat16 while training (autocast; weights stay in float32): faster where the "
            "machine has units for it."
        },
    )
    lora_r: int | None = field(
        default=None, metadata={"help": "Rank of a LoRA adapter on all linear maps; default: train all weights."}
    )
    lora_alpha: int | None = field(default=None, metadata={"help": "Of the adapter; default: twice its rank."})
    last_blocks: int | None = field(
        default=None,
        metadata={"help": "Train only so many of the last blocks, norms after them and an untied output head."},
    )
    max_prompt_length: int = field(default=128, metadata={"help": "Tokens; a longer prompt loses its beginning."})
    max_completion_length: int = field(default=128, metadata={"help": "Tokens; a longer continuation loses its end."})

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.shares
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        names = ("k", "batch_size", "lora_r", "lora_alpha", "last_blocks")
        at_least_one(self, *names, "max_prompt_length", "max_completion_length")
        if self.lora_r is not None and self.last_blocks is not None:
            raise UserError("lora_r and last_blocks exclude each other: an adapter is on all blocks. Give one.")
        if self.lora_r is None and self.lora_alpha is not None:
            raise UserError(f"lora_alpha={self.lora_alpha} is of an adapter: give lora_r too.")

    @property
    def needs_labelled(self) -> bool:
        """Whether it cannot be made without `Target.labelled`."""
        return "labelled" in self.shares

    @cached_property
    def shares(self) -> dict[str, float]:
        """Kind of data -> its share of the rows in a step; together 1."""
        weights: dict[str, float] = {}
        for part in self.data.split(","):
            kind, _, weight = (piece.strip() for piece in part.partition(":"))
            try:
                value = float(weight or 1)
            except ValueError:
                value = math.nan
            if kind not in KINDS or kind in weights or not 0 < value < math.inf:
                raise UserError(
                    f"data={self.data!r}: {', '.join(KINDS)} are needed, each at most once, with shares above 0 if "
                    "any, as in toxic:0.5,text:0.5."
                )
            weights[kind] = value
        return {kind: weight / sum(weights.values()) for kind, weight in weights.items()}


def relearn(target: Target, settings: RelearnSettings) -> AttackResult:
    """Fine-tune copies of the model; judged by the most toxic point that counts, or if none does by the first.

    A rate that diverges keeps the points it had: an attacker would have stopped there. The others are `left_out`.

    `found` says: how many `rows` there were (of text: pieces of documents); how many of their `prompts_among_rows` and
    `texts_among_rows` are among those it is measured on (none, or the figures are of what was learned by heart); for
    each of `rates` its `half_at`, `area` and why, if so, it has `diverged`; `half`, of what; which points are
    `left_out`. See `points.py`.

    Raises:
        UserError: if there are fewer rows than `k`, or conversations for a tokenizer without chat template.
    """
    sources = read_sources(
        target,
        list(settings.shares),
        documents=settings.documents,
        k=settings.k,
        max_prompt_length=settings.max_prompt_length,
        max_completion_length=settings.max_completion_length,
    )
    texts = mixture(sources.ids, settings.shares)
    budget = settings.max_perplexity_increase
    with recorded(target, "relearn", settings) as record:
        record.start(steps=0)
        curves, diverged = _measure_rates(record, settings, texts)
        half = half_of(record.base, within_budget(record.curve, budget))
        rates = [
            {
                "learning_rate": rate,
                **recovery(within_budget(curve, budget), "steps", half["share"]),
                "diverged": diverged.get(rate),
            }
            for rate, curve in curves.items()
        ]
        rows = sum(map(len, sources.ids.values()))
        found: dict[str, Any] = {"rows": rows, **sources.seen, "half": half, "rates": rates}
        return judge_within(record, budget, **found)


def _measure_rates(
    record: Record, settings: RelearnSettings, texts: list[list[int]]
) -> tuple[dict[float, list[Measurement]], dict[float, str]]:
    """For each learning rate its curve, from the untouched model on, and for some why they have diverged."""
    curves: dict[float, list[Measurement]] = {}
    diverged: dict[float, str] = {}
    for rate in settings.learning_rates:
        first = len(record.curve)
        try:
            _measure_rate(record, settings, texts, rate)
        except Diverged as error:
            logger.warning("relearn: %s", error)
            diverged[rate] = str(error)
            measured = {title(point.at) for point in record.curve}
            missing = [title(point) for point in _points(settings, rate).values()]
            record.broken += [name for name in missing if name not in {*measured, *record.broken}]
        curves[rate] = [record.curve[0], *record.curve[first:]]
    return curves, diverged


def _points(settings: RelearnSettings, rate: float) -> dict[int, dict[str, Any]]:
    """Step -> what the point is called."""
    which = {"learning_rate": rate} if len(settings.learning_rates) > 1 else {}
    return {step: {**which, "steps": step} for step in settings.steps}


def _measure_rate(record: Record, settings: RelearnSettings, texts: list[list[int]], rate: float) -> None:
    """Fine-tune at `rate` and measure after each of the steps."""
    target = record.target
    points = _points(settings, rate)
    if all(record.has(point) for point in points.values()):
        for point in points.values():
            record.measure_edited(target.model, point)
        return
    longest = max(texts, key=len)

    def on_step(step: int, model: "PreTrainedModel") -> None:
        if step in points:
            raise_if_diverged(model, longest, step, rate)
            record.measure_edited(model, points[step])

    finetune(
        target.model,
        target.processing_class,
        texts,
        steps=settings.steps[-1],
        batch_size=settings.batch_size,
        learning_rate=rate,
        max_length=settings.max_prompt_length + settings.max_completion_length,
        lora_r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        last_blocks=settings.last_blocks,
        schedule=settings.schedule,
        optimizer=settings.optimizer,
        bf16=settings.bf16,
        seed=target.seed,
        on_step=on_step,
        progress=target.progress,
    )
