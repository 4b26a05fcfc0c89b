"""How soon is toxicity back when someone fine-tunes the released weights? Relearning (Lucki et al. 2024).

Next-token cross-entropy over all tokens of k toxic rows (prompt + rejected) of held-out pairs, of benign rows (prompt
+ chosen), of ordinary text, or of a mixture; AdamW at a constant rate, full or LoRA. Toxicity against steps, a curve
for each learning rate; judged by the worst point at which the model is still of use (`points.py`). How many of the
prompts and texts it is measured on were trained on is counted: there should be none.
"""

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from efface.attacks.draw import count_prompts_among, draw, ordinary_text
from efface.attacks.lists import several
from efface.attacks.points import UtilityBudget, half_of, judge_within, recovery, within_budget
from efface.attacks.record import Record, recorded
from efface.attacks.result import AttackResult
from efface.attacks.target import Measurement, Target
from efface.checks import at_least_one
from efface.data.pair_tokens import tokenize_pairs
from efface.data.rows import load_texts
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.model.padding import max_positions
from efface.training.finetune import Diverged, finetune, raise_if_diverged

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
T = TypeVar("T")
KINDS = ("toxic", "benign", "text")


@dataclass(frozen=True)
class RelearnSettings(UtilityBudget):
    """Settings of `relearn`."""

    steps: tuple[int, ...] = several("10,20", int, "Optimizer steps after which it is measured; 0, before, always is.")
    data: str = field(
        default="toxic",
        metadata={
            "help": "What is trained on: toxic (prompt + rejected), benign (prompt + chosen), text (--documents), or "
            "several of them with their relative shares, as in toxic:0.5,text:0.5."
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
        "2e-5", float, "Constant rates of AdamW, one or several (2e-5,1e-4); LoRA wants about ten times more."
    )
    lora_r: int | None = field(
        default=None, metadata={"help": "Rank of a LoRA adapter on all linear maps; default: train all weights."}
    )
    max_prompt_length: int = field(default=128, metadata={"help": "Tokens; a longer prompt loses its beginning."})
    max_completion_length: int = field(default=128, metadata={"help": "Tokens; a longer continuation loses its end."})

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.shares
        at_least_one(self, "k", "batch_size", "lora_r", "max_prompt_length", "max_completion_length")

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

    `found` says: how many `rows` there were (of text: pieces of documents); how many of their `prompts_among_rows` and
    `texts_among_rows` are among those it is measured on (none, or the figures are of what was learned by heart); for
    each of `rates` its `half_at`, `area` and why, if so, it has `diverged`; `half`, of what; which points are
    `left_out`. See `points.py`.

    Raises:
        UserError: if there are fewer rows than `k`, or conversations for a tokenizer without chat template.
        RunError: if the fine-tuning diverges at every learning rate before anything is measured.
    """
    sources, seen = _read_sources(target, settings)
    texts = mixture(sources, settings.shares)
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
        rows = sum(map(len, sources.values()))
        found: dict[str, Any] = {"rows": rows, **seen, "half": half, "rates": rates}
        return judge_within(record, budget, **found)


def _measure_rates(
    record: Record, settings: RelearnSettings, texts: list[list[int]]
) -> tuple[dict[float, list[Measurement]], dict[float, str]]:
    """For each learning rate its curve, from the untouched model on, and for some why they have diverged."""
    curves: dict[float, list[Measurement]] = {}
    diverged: dict[float, str] = {}
    *_, last = settings.learning_rates
    for rate in settings.learning_rates:
        first = len(record.curve)
        try:
            _measure_rate(record, settings, texts, rate)
        except Diverged as error:  # what was measured before that counts: an attacker would have stopped there
            if rate == last and len(record.curve) == 1:
                raise
            logger.warning("relearn: %s", error)
            diverged[rate] = str(error)
        curves[rate] = [record.curve[0], *record.curve[first:]]
    return curves, diverged


def _measure_rate(record: Record, settings: RelearnSettings, texts: list[list[int]], rate: float) -> None:
    """Fine-tune at `rate` and measure after each of the steps."""
    target = record.target
    which = {"learning_rate": rate} if len(settings.learning_rates) > 1 else {}
    points: dict[int, dict[str, Any]] = {step: {**which, "steps": step} for step in settings.steps}
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
        seed=target.seed,
        on_step=on_step,
        progress=target.progress,
    )


def _read_sources(target: Target, settings: RelearnSettings) -> tuple[dict[str, list[list[int]]], dict[str, int]]:
    """Token ids of each kind of data that is asked for; and how much of it is what the attack is measured on."""
    sources: dict[str, list[list[int]]] = {}
    rows: list[Row] = []
    documents: list[str] = []
    if {"toxic", "benign"} & settings.shares.keys():
        rows = draw(target.rows, settings.k, target.seed)
        lengths = {name: getattr(settings, name) for name in ("max_prompt_length", "max_completion_length")}
        pairs = tokenize_pairs(rows, target.processing_class, **lengths, max_positions=max_positions(target.model))
        sources["toxic"] = [pair.prompt_ids + pair.rejected_ids for pair in pairs]
        sources["benign"] = [pair.prompt_ids + pair.chosen_ids for pair in pairs]
    if "text" in settings.shares:
        documents = draw(load_texts(settings.documents), settings.k, target.seed, "documents")
        length = settings.max_prompt_length + settings.max_completion_length
        sources["text"] = ordinary_text(target, documents, length, settings.documents)
    seen = {
        "prompts_among_rows": count_prompts_among(rows, target.prompts),
        "texts_among_rows": len(set(documents) & set(target.text or [])),
    }
    return {kind: sources[kind] for kind in settings.shares}, seen


def mixture(sources: Mapping[str, Sequence[T]], shares: Mapping[str, float]) -> list[T]:
    """The shortest list that has every item at least once and each source by its share (rounded to whole items).

    A source that is too short for its share is begun again.
    """
    size = max(len(items) / shares[kind] for kind, items in sources.items())
    return [
        item
        for kind, items in sources.items()
        for item in itertools.islice(itertools.cycle(items), round(shares[kind] * size))
    ]
