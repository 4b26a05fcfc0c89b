"""What does more of the same edit do? LoX, low-rank extrapolation (Perin et al. 2025, arXiv 2506.15606, equation 3).

    edit = theta - theta0            theta0: the base; theta: what any method has made of it
    theta <- theta + strength * Proj_k(edit)          Proj_k: of each matrix the top-k singular part

No training. Against fine-tuning the authors extrapolate what alignment has changed, k = 6 and strength 1.25. Here k
may also be left out: then the whole edit is extrapolated, base + (1 + strength) edit. Without a strength it is the
largest that a utility budget allows (`evaluation/budget.py`), which is below 0 for an edit that has spent more.
"""

import os
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from efface.checks import at_least_one, not_negative, positive
from efface.data.pairs import PairsLike
from efface.data.rows import load_texts
from efface.errors import RunError
from efface.evaluation.budget import Cost, FittedScale, UtilityBounds, fit_scale
from efface.evaluation.ordinary_cost import OrdinaryCost
from efface.model.copies import merged, merged_copy, without_adapter
from efface.model.edit import add_, check_same_parameters, move_, top_parts
from efface.training.editor import EditConfig, PairEditor
from efface.training.inputs import base_of, model_and_tokenizer


@dataclass
class LoxConfig(EditConfig):
    """Settings of LoX."""

    base: str | None = field(
        default=None,
        metadata={
            "help": "The model that MODEL was made from; default: the one that the results beside MODEL name, if "
            "`efface train` made it."
        },
    )
    top_k: int | None = field(
        default=None, metadata={"help": "Singular parts of each matrix's edit that are added again; default: all."}
    )
    strength: float | None = field(
        default=None,
        metadata={"help": "How often they are added (the authors: 1.25); default: what the budget allows."},
    )
    max_strength: float = field(default=1.0, metadata={"help": "The most that is tried, without --strength."})
    max_kl: float = field(default=0.05, metadata={"help": "Budget: KL to the base, in nats a token."})
    max_perplexity_increase: float = field(
        default=0.03, metadata={"help": "Budget: by what share perplexity may rise over the base's."}
    )
    retain_text: str = field(
        default="shipped:passages",
        metadata={"help": "JSON lines with `text`: ordinary passages that the budget is read on."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "top_k")
        positive("max_strength", self.max_strength)
        not_negative("max_kl", self.max_kl)
        not_negative("max_perplexity_increase", self.max_perplexity_increase)


class LoxEditor(PairEditor):
    """Extrapolate an edit. Arguments as `PairEditor`, `model` being what was edited; settings as `LoxConfig`.

    The pairs are not looked at. An adapter is merged first. Beside the model it holds its base and, for a top-k part
    or without a strength, a copy of the model and that part.
    """

    config_class = LoxConfig
    args: LoxConfig
    of_an_edit = True

    def __init__(
        self,
        model: str | os.PathLike[str] | PreTrainedModel,
        args: LoxConfig | None = None,
        train_dataset: PairsLike | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
    ):
        super().__init__(model, args, train_dataset, processing_class)
        self.edited_from = name = self.args.base or base_of(model)
        base, _ = model_and_tokenizer(name, self.processing_class, use_cpu=self.args.use_cpu)
        self.model, self.base = merged(self.model), without_adapter(base)
        check_same_parameters(self.model, self.base, "compared")
        self.passages = load_texts(self.args.retain_text, "text") if self.args.strength is None else []

    def edit_(self) -> dict[str, Any]:
        """Returns the strength that was taken and, where the budget has decided it, all readings.

        Raises:
            RunError: if no strength fits the budget; the model is then as it was.
        """
        if self.args.strength is not None:
            self._extrapolate(self.args.strength)
            return {"strength": self.args.strength, "base": self.edited_from}
        fitted = self._fit()
        if fitted.a is None:
            raise RunError(
                f"no strength up to {self.args.max_strength:g} keeps within the budget ({', '.join(fitted.binding)}). "
                "The model is as it was. Give a larger max_kl or max_perplexity_increase, or edit less."
            )
        return {"strength": fitted.a - 1, "base": self.edited_from, "fitted": fitted.to_dict()}

    def _fit(self) -> FittedScale:
        """Leaves the model extrapolated as far as fits, or as it was."""
        args, show = self.args, not self.args.disable_tqdm
        start, parts = merged_copy(self.model), self._parts()
        bounds = UtilityBounds(args.max_kl, args.max_perplexity_increase)

        ordinary = OrdinaryCost(self.base, self.processing_class, self.passages, progress=show)

        def set_(a: float) -> None:
            self._set(start, parts, a - 1)

        def cost(a: float) -> Cost:
            set_(a)
            return ordinary.of(self.model)

        taken = 1.0
        try:
            fitted = fit_scale(cost, ordinary.base_perplexity, bounds, most=1 + args.max_strength)
            taken = taken if fitted.a is None else fitted.a
        finally:
            set_(taken)
        return fitted

    def _extrapolate(self, strength: float) -> None:
        parts = self._parts()
        self._set(self.model if parts is None else merged_copy(self.model), parts, strength)

    def _parts(self) -> Any:
        return None if self.args.top_k is None else top_parts(self.model, self.base, self.args.top_k)

    def _set(self, start: Any, parts: Any, strength: float) -> None:
        """The model <- start + strength * its edit, or the parts of it."""
        if parts is not None:
            add_(self.model, parts, strength, start)
            return
        if start is not self.model:
            move_(self.model, start, 1.0)
        move_(self.model, self.base, -strength)

    def describe(self) -> list[str]:
        what = "the whole edit" if self.args.top_k is None else f"the top {self.args.top_k} singular parts of the edit"
        strength = "as often as the budget allows" if self.args.strength is None else f"{self.args.strength:g} times"
        return [f"no training steps, no pairs are looked at; {what} added again, {strength}"]
