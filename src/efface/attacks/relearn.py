"""How soon is toxicity back when someone fine-tunes the released weights? Relearning (Lucki et al. 2024).

k toxic rows (prompt + rejected continuation) of held-out pairs, next-token cross-entropy over all their tokens, AdamW
at a constant rate, full or LoRA; toxicity against steps. How many of the prompts it is measured on are among the rows
is counted: there should be none.
"""

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from efface.attacks.result import AttackResult, recorded
from efface.attacks.target import Target
from efface.data import tokenize_pair
from efface.errors import UserError
from efface.finetune import finetune
from efface.methods.config import positive

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class RelearnSettings:
    """Settings of `relearn`."""

    steps: str = field(
        default="10,20", metadata={"help": "Optimizer steps after which it is measured; 0, before, always is."}
    )
    k: int | None = field(default=None, metadata={"help": "Rows to train on, drawn under the seed; default: all."})
    batch_size: int = field(default=8, metadata={"help": "Rows in a step."})
    learning_rate: float = field(
        default=2e-5, metadata={"help": "Constant rate of AdamW; LoRA wants about ten times more."}
    )
    lora_r: int | None = field(
        default=None, metadata={"help": "Rank of a LoRA adapter on all linear maps; default: train all weights."}
    )
    max_prompt_length: int = field(default=128, metadata={"help": "Tokens; a longer prompt loses its beginning."})
    max_completion_length: int = field(default=128, metadata={"help": "Tokens; a longer continuation loses its end."})

    def __post_init__(self) -> None:
        if not self.points:
            raise UserError(f"steps={self.steps!r} trains nothing: name at least one step above 0, as in 10,20.")
        positive("learning_rate", self.learning_rate)
        for name in ("k", "batch_size", "lora_r", "max_prompt_length", "max_completion_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: it must be at least 1.")

    @property
    def points(self) -> list[int]:
        """The steps after which it is measured, ascending, without 0."""
        try:
            points = {int(part) for part in self.steps.split(",")}
        except ValueError:
            points = {-1}
        if min(points) < 0:
            raise UserError(f"steps={self.steps!r}: whole numbers are needed, separated by commas, as in 10,20.")
        return sorted(points - {0})


def relearn(target: Target, settings: RelearnSettings) -> AttackResult:
    """Fine-tune a copy of the model on toxic rows of the target; judged by the last point of the curve.

    `found` says how many `rows` there were, and how many of their prompts are among those it is measured on (none, or
    the figures are of what was learned by heart).

    Raises:
        UserError: if there are fewer rows than `k`, or conversations for a tokenizer without chat template.
        RunError: if the fine-tuning diverges.
    """
    rows = target.rows
    if settings.k is not None:
        if settings.k > len(rows):
            raise UserError(f"k={settings.k}, but there are only {len(rows)} rows. Lower it or give more rows.")
        rows = random.Random(target.seed).sample(rows, settings.k)
    pairs = [
        tokenize_pair(
            row,
            target.processing_class,
            max_prompt_length=settings.max_prompt_length,
            max_completion_length=settings.max_completion_length,
        )
        for row in rows
    ]
    points = settings.points
    with recorded(target, "relearn", settings) as record:
        record.start(steps=0)

        def on_step(step: int, model: "PreTrainedModel") -> None:
            if step in points:
                record.measure(model, {"steps": step})

        finetune(
            target.model,
            target.processing_class,
            [pair.prompt_ids + pair.rejected_ids for pair in pairs],
            steps=points[-1],
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            max_length=settings.max_prompt_length + settings.max_completion_length,
            lora_r=settings.lora_r,
            seed=target.seed,
            on_step=on_step,
            progress=target.progress,
        )
        seen = {row["prompt"] for row in rows if isinstance(row["prompt"], str)} & set(target.prompts)
        return record.result(record.curve[-1], rows=len(rows), prompts_among_rows=len(seen))
