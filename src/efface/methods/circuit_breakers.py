"""How do circuit breakers reroute? They turn the states of y- away from what they were and keep those of y+.

Representation rerouting (Zou et al. 2024, arXiv 2406.04313, algorithm 1), with a LoRA adapter; h is the residual
stream after a layer, h0 the same with the adapter off, p = step / steps the progress:

    L = alpha * (1 - p/2) * mean over reroute_layers and tokens of y- of relu( cos( h(t), h0(t) ) )
      + alpha * p/2 * w_retain * mean over retain_layers and tokens of y+ of || h(t) - h0(t) ||_2 / || h0(t) ||_2
      + w_retain_text * mean over tokens of ordinary passages of KL( f0 || f )                          (optional)

The paper does not divide by || h0(t) ||. But norms differ between models and grow with depth: its retain term weighs
something else in every model, and the last layers most. The cosine knows no norm, and so now neither term does;
w_retain gives back the weight that a large norm would lend.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from efface.checks import not_negative, positive
from efface.data.pairs import PairsLike
from efface.data.preferences import SIDES
from efface.errors import UserError
from efface.model.blocks import decoder_blocks, parse_layers
from efface.training.config import PairConfig, check_config
from efface.training.inputs import model_and_tokenizer
from efface.training.prepare import lora_config
from efface.training.step import Loss, Needs, Step
from efface.training.trainer import PairTrainer

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass
class CircuitBreakersConfig(PairConfig):
    """Settings of circuit breakers. Numbers of the authors are named as such; the others are ours and not tuned."""

    learning_rate: float = field(
        # The authors: 1e-4, held for 150 steps. At the start the cosine is at its maximum and the gain of rerouting of
        # second order, so less than this leaves the model where it is. Chosen by a sweep (benchmarks/rates.py).
        default=1e-3,
        metadata={"help": "Peak learning rate of the adapter."},
    )
    lora_r: int | None = field(default=16, metadata={"help": "Rank of the LoRA adapter (authors: 16)."})
    lora_alpha: int | None = field(default=16, metadata={"help": "LoRA scale (authors: 16)."})
    alpha: float = field(
        default=10.0, metadata={"help": "Weight of both terms against the KL of --retain_text (authors: 5 or 10)."}
    )
    w_retain: float = field(
        default=5.0, metadata={"help": "Weight of the relative change of y+ against the rerouting of y-."}
    )
    reroute_layers: str = field(
        default="0.3,0.6", metadata={"help": "Layers whose states of y- are turned away (authors: 10,20 of 32)."}
    )
    retain_layers: str | None = field(
        default=None,
        metadata={"help": "Layers whose states of y+ are kept; default all up to the highest of reroute_layers."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("alpha", self.alpha)
        not_negative("w_retain", self.w_retain)


class CircuitBreakersTrainer(PairTrainer):
    """Train with circuit breakers. Arguments as `PairTrainer`; settings as `CircuitBreakersConfig`.

    The adapter that `lora_r` asks for ends at the highest of the rerouted layers, as the authors'; a `peft_config` of
    your own is taken as it is.
    """

    config_class = CircuitBreakersConfig
    args: CircuitBreakersConfig

    def __init__(
        self,
        model: str | os.PathLike[str] | PreTrainedModel,
        args: CircuitBreakersConfig | None = None,
        train_dataset: PairsLike | None = None,
        eval_dataset: PairsLike | Mapping[str, PairsLike] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        ref_model: str | os.PathLike[str] | PreTrainedModel | None = None,
        peft_config: "PeftConfig | None" = None,
        **kwargs: Any,
    ):
        args = args if args is not None else self.config_class("efface-output")
        check_config(self, args)
        if peft_config is None:
            if args.lora_r is None:
                raise UserError(
                    "circuit_breakers trains a LoRA adapter, but lora_r is None and there is no peft_config. "
                    "Set lora_r=16 or pass peft_config=."
                )
            model, processing_class = model_and_tokenizer(model, processing_class, use_cpu=args.use_cpu)
            peft_config = adapter = lora_config(args)
            adapter.exclude_modules = _above(model, args.reroute_layers)
        super().__init__(model, args, train_dataset, eval_dataset, processing_class, ref_model, peft_config, **kwargs)
        self.reroute_layers, self.retain_layers = rerouted_and_retained(args, len(decoder_blocks(self.model)))  # type: ignore[arg-type]

    @classmethod
    def needs(cls, args: Any, n_blocks: int) -> Needs:
        layers = sorted({layer for each in rerouted_and_retained(args, n_blocks) for layer in each})
        return Needs(sides=(), layers=layers, residuals=SIDES)

    def loss(self, step: Step) -> Loss:
        text, metrics = step.retain()
        overlap = mean_over_layers(cosine_overlap, step, self.reroute_layers, "rejected")
        change = mean_over_layers(relative_change, step, self.retain_layers, "chosen")
        reroute, retain = step.mean(overlap, over="rejected"), step.mean(change, over="chosen")
        metrics |= {"reroute_loss": reroute.item(), "retain_loss": retain.item()}
        c_reroute, c_retain = coefficients(self.state.global_step / max(self.state.max_steps, 1))
        return text + self.args.alpha * (c_reroute * reroute + c_retain * self.args.w_retain * retain), metrics


def rerouted_and_retained(args: CircuitBreakersConfig, n_blocks: int) -> tuple[list[int], list[int]]:
    """`reroute_layers` and `retain_layers` in a model of so many blocks."""
    rerouted = parse_layers(args.reroute_layers, n_blocks)
    kept = args.retain_layers
    return rerouted, list(range(rerouted[-1] + 1)) if kept is None else parse_layers(kept, n_blocks)


def _above(model: PreTrainedModel, layers: str) -> str | None:
    """The pattern of what lies in the blocks above the highest of `layers`, as PEFT names it; None if there are none.

    PEFT's own `layers_to_transform` is not heeded by modules that all-linear has found.
    """
    blocks = decoder_blocks(model)
    first = parse_layers(layers, len(blocks))[-1] + 1
    path = next(name for name, module in model.named_modules() if module is blocks)
    numbers = "|".join(map(str, range(first, len(blocks))))
    return rf"{re.escape(path)}\.({numbers})\..*" if numbers else None


def mean_over_layers(
    compare: Callable[[Tensor, Tensor], Tensor], step: Step, layers: Sequence[int], side: str
) -> Tensor:
    """(tokens,) what `compare` says of the states and the reference's, at the tokens of a side; the mean of layers."""
    found = [compare(step.states(layer, side), step.reference_states(layer, side)) for layer in layers]
    return torch.stack(found).mean(0)


def coefficients(progress: float) -> tuple[float, float]:
    """Of the rerouting and of the retain term at a progress in [0, 1]: from (1, 0) to (1/2, 1/2)."""
    return 1 - progress / 2, progress / 2


def cosine_overlap(states: Tensor, before: Tensor) -> Tensor:
    """(M,) cosine of `states` (M, d) with what they were, `before` (M, d), where it is positive; otherwise 0."""
    return F.cosine_similarity(states.float(), before.float(), dim=-1).relu()


def relative_change(states: Tensor, before: Tensor) -> Tensor:
    """(M,) distance of `states` (M, d) from what they were, `before` (M, d), in lengths of the latter."""
    before = before.float()
    return (states.float() - before).norm(dim=-1) / before.norm(dim=-1)
