"""What does subtracting a toxic fine-tune do? Task-vector negation (Ilharco et al. 2023, arXiv 2212.04089).

    tau = theta_toxic - theta_0          theta_toxic: theta_0 fine-tuned on prompt + toxic continuation
    theta = theta_0 - scale * tau        (section 3, "forgetting via negation")

The scale is the largest of `scales` that keeps the perplexity of ordinary text near that of theta_0.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from efface.checks import not_negative, positive
from efface.data.pair_tokens import tokenize_pairs
from efface.data.rows import load_texts
from efface.errors import RunError, UserError
from efface.evaluation.perplexity import perplexity
from efface.model.copies import merged
from efface.model.padding import max_positions
from efface.training.editor import EditConfig, PairEditor
from efface.training.finetune import finetune


@dataclass
class TaskVectorConfig(EditConfig):
    """Settings of task-vector negation. Those of the toxic copy are the anti-expert's of `efface pairs`."""

    scales: str = field(
        default="0.25,0.5,1,2",
        metadata={"help": "Multiples of the task vector to try, separated by commas; a single one is used as it is."},
    )
    max_perplexity_increase: float = field(
        default=0.05, metadata={"help": "By what share a scale may raise the perplexity of --retain_text."}
    )
    retain_text: str = field(
        default="shipped:passages",
        metadata={"help": "JSON lines with `text`: ordinary passages that the scales are judged by."},
    )
    max_steps: int = field(default=24, metadata={"help": "Steps of the toxic fine-tuning."})
    batch_size: int = field(default=16, metadata={"help": "Pairs in a step of the toxic fine-tuning."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Constant rate of the toxic fine-tuning."})
    max_prompt_length: int = field(default=128, metadata={"help": "Tokens; a longer prompt loses its beginning."})
    max_completion_length: int = field(default=128, metadata={"help": "Tokens; a longer continuation loses its end."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for scale in self.multiples:
            positive("scales", scale)
        not_negative("max_perplexity_increase", self.max_perplexity_increase)
        positive("max_steps", self.max_steps)
        positive("learning_rate", self.learning_rate)
        positive("max_prompt_length", self.max_prompt_length)
        positive("max_completion_length", self.max_completion_length)

    @cached_property
    def multiples(self) -> tuple[float, ...]:
        """`scales` as numbers, ascending."""
        return parse_scales(self.scales)


class TaskVectorEditor(PairEditor):
    """Subtract a task vector of toxicity. Arguments as `PairEditor`; settings as `TaskVectorConfig`.

    All parameters are changed, tied ones once; an adapter is merged first. Beside the model it holds the toxic copy
    with its gradients and AdamW (4 times the weights in float32), then that copy and one of the original weights.
    """

    config_class = TaskVectorConfig
    args: TaskVectorConfig

    def set_up_(self) -> None:
        self.model = merged(self.model)
        self.scales = self.args.multiples
        self.passages = load_texts(self.args.retain_text) if len(self.scales) > 1 else []
        pairs = tokenize_pairs(
            self.train_dataset, self.processing_class, **self.lengths, max_positions=max_positions(self.model)
        )
        self.toxic_ids = [pair.prompt_ids + pair.rejected_ids for pair in pairs]

    def edit_(self) -> dict[str, Any]:
        """Returns the scale that was taken and, of a sweep, the perplexity before and at every scale.

        Raises:
            RunError: if the toxic copy is broken, or no scale of the sweep fits; the model is then as it was.
        """
        toxic = finetune(
            self.model,
            self.processing_class,
            self.toxic_ids,
            steps=self.args.max_steps,
            batch_size=self.args.batch_size,
            learning_rate=self.args.learning_rate,
            max_length=self.args.max_prompt_length + self.args.max_completion_length,
            seed=self.args.seed,
            progress=not self.args.disable_tqdm,
        )
        target = {name: parameter.detach() for name, parameter in toxic.named_parameters()}
        if not all(parameter.isfinite().all() for parameter in target.values()):
            raise RunError("the toxic copy's weights are not finite: lower learning_rate. The model is as it was.")
        original = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}

        def move_(scale: float) -> None:  # always from the original: nothing adds up over a sweep
            _set_(self.model, lambda name: negated(original[name], target[name], scale))

        if len(self.scales) == 1:
            move_(self.scales[0])
            return {"scale": self.scales[0]}
        try:
            base = self._perplexity()
            sweep = {scale: self._perplexity_at(scale, move_) for scale in self.scales}
        finally:
            _set_(self.model, original.__getitem__)
        scale = largest_fitting(sweep, base, self.args.max_perplexity_increase)
        move_(scale)
        rows = [{"scale": key, "perplexity": value if math.isfinite(value) else None} for key, value in sweep.items()]
        return {"scale": scale, "base_perplexity": base, "sweep": rows}

    def _perplexity(self) -> float:
        show = not self.args.disable_tqdm
        return perplexity(self.model, self.processing_class, self.passages, progress=show).value

    def _perplexity_at(self, scale: float, move_: Callable[[float], None]) -> float:
        move_(scale)
        try:
            return self._perplexity()
        except RunError:  # the scale broke the model, which is an answer
            return math.inf

    def describe(self) -> list[str]:
        return [
            f"{len(self.train_dataset)} pairs, {self.args.max_steps} steps on a toxic copy, "
            f"then {' or '.join(f'{scale:g}' for scale in self.scales)} times its change subtracted"
        ]

    def record(self) -> dict[str, Any]:
        return super().record() | {"steps": self.args.max_steps}


def negated(original: Tensor, toxic: Tensor, scale: float) -> Tensor:
    """original - scale * (toxic - original), any shape; computed in float32 or better, returned as `original`."""
    dtype = torch.promote_types(original.dtype, torch.float32)
    start = original.to(dtype)
    return (start - scale * (toxic.to(dtype) - start)).to(original.dtype)


def largest_fitting(sweep: dict[float, float], base: float, max_increase: float) -> float:
    """The largest scale whose perplexity is at most (1 + max_increase) * base.

    Args:
        sweep: scale -> perplexity.

    Raises:
        RunError: if there is none; it names the sweep.
    """
    fitting = [scale for scale, value in sweep.items() if value <= (1 + max_increase) * base]
    if not fitting:
        found = ", ".join(f"{scale:g}: {value:.4g}" for scale, value in sweep.items())
        raise RunError(
            f"no scale raises the perplexity, {base:.4g}, by at most {max_increase:.0%} (scale: perplexity, {found}). "
            "The model is as it was. Give smaller scales or a higher max_perplexity_increase, or fine-tune the toxic "
            "copy less (max_steps, learning_rate)."
        )
    return max(fitting)


def parse_scales(spec: str | float | Iterable[float]) -> tuple[float, ...]:
    """Ascending scales from such as `0.25,0.5,1` or `1`, or in Python from numbers.

    Raises:
        UserError: for what is no number.
    """
    parts = spec if isinstance(spec, Iterable) and not isinstance(spec, str) else str(spec).split(",")
    try:
        return tuple(sorted({float(part) for part in parts}))
    except (TypeError, ValueError):
        raise UserError(f"scales={spec!r}: give numbers above 0 separated by commas, as in 0.25,0.5,1.") from None


@torch.no_grad()
def _set_(model: PreTrainedModel, value: Callable[[str], Tensor]) -> None:
    for name, parameter in model.named_parameters():  # one at a time: there is no further copy of all weights
        parameter.copy_(value(name))
