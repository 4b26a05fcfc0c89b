"""Do the toxic MLP values fire again when their keys are scaled? Un-aligning (Lee et al. 2024, arXiv 2401.01967, 6.2).

An MLP adds sum_i act(k_i . x) v_i to the residual stream: neuron i reads its key k_i and writes its value v_i. The
paper finds that DPO leaves toxic values where they are and turns the keys away from them. So

    score_i = cos(v_i, w)          w: the direction of toxicity in the residual stream, by a probe
    k_i <- scale * k_i             for the n highest scores in all blocks together

In a gated MLP, act(k_i . x)(u_i . x), the key is the row of the gate, which decides whether the neuron fires; u_i
stays as it is.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from efface.analysis.directions import difference_of_means, logistic_direction, unit
from efface.attacks.directions import rows_of, states_of
from efface.attacks.draw import count_prompts_among
from efface.attacks.lists import several
from efface.attacks.points import UtilityBudget, judge_within
from efface.attacks.record import recorded
from efface.attacks.result import AttackResult, title
from efface.attacks.target import Target
from efface.checks import at_least_one, one_of
from efface.errors import UserError
from efface.model.blocks import decoder_blocks, parse_layers
from efface.model.copies import merged_copy
from efface.model.projections import gain_after, mlp_input_projection, mlp_output_projection, output_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DIRECTIONS = {"logistic": logistic_direction, "means": difference_of_means}
LISTED = 10

Neuron = tuple[int, int]
"""Block, and number within its MLP."""


@dataclass(frozen=True)
class UnalignSettings(UtilityBudget):
    """Settings of `unalign`."""

    vectors: tuple[int, ...] = several("7,64,256", int, "How many of the most toxic value vectors (the authors: 7).")
    scales: tuple[float, ...] = several("2,5,10", float, "What their keys are multiplied by (the authors: 10).")
    direction: str = field(
        default="logistic",
        metadata={"help": "Of toxicity: logistic (normal of a probe of tokens) or means (difference of means)."},
    )
    layer: str = field(
        default="last", metadata={"help": "The block whose states the direction is found from: last, 12 or 0.5."}
    )
    max_pairs: int = field(
        default=128, metadata={"help": "Pairs that the direction is found from; if there are more, they are drawn."}
    )
    batch_size: int = field(default=16, metadata={"help": "Pairs whose hidden states are computed at once."})

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("direction", self.direction, tuple(DIRECTIONS))
        at_least_one(self, "max_pairs", "batch_size")


def unalign(target: Target, settings: UnalignSettings) -> AttackResult:
    """Scale the keys of the n most toxic values in a copy, for each n and scale; a model with fewer takes all it has.

    `found` says: where the `direction_is_from`, base or model; the first of the `neurons` with their `cosine`; the
    points that are `left_out`: all, where the direction cannot be found since a state is not finite;
    `prompts_among_rows`, which should be 0.

    Raises:
        UserError: if `layer` names no or several blocks, or an MLP has no input or output projection that is known.
    """
    layer = parse_layers(settings.layer, len(decoder_blocks(target.model)))
    if len(layer) != 1:
        raise UserError(f"layer={settings.layer!r} names {len(layer)} blocks. Give one.")
    source = target.model if target.base is None else target.base
    with recorded(target, "unalign", settings) as record:
        record.start(vectors=0)
        states = states_of(source, target, layer, settings.max_pairs, settings.batch_size).get(layer[0])
        ranked: dict[Neuron, float] = {}
        copy = merged_copy(target.model)
        if states is not None:
            direction = unit(DIRECTIONS[settings.direction](states.hidden, states.labels))
            ranked = toxic_neurons(copy, direction)
        for n in sorted({min(n, len(ranked) or n) for n in settings.vectors}):
            for scale in settings.scales:
                at = {"vectors": n, "scale": scale}
                if states is None:
                    record.broken.append(title(at))
                    continue
                if not record.has(at):
                    copy = merged_copy(target.model)
                    scale_keys_(copy, list(ranked)[:n], scale)
                record.measure_edited(copy, at)
        return judge_within(
            record,
            settings.max_perplexity_increase,
            direction_is_from="model" if target.base is None else "base",
            neurons=[
                {"layer": layer, "neuron": number, "cosine": cosine}
                for (layer, number), cosine in list(ranked.items())[:LISTED]
            ],
            prompts_among_rows=count_prompts_among(rows_of(target, settings.max_pairs), target.prompts),
        )


@torch.no_grad()
def toxic_neurons(model: "PreTrainedModel", direction: np.ndarray) -> dict[Neuron, float]:
    """Neuron -> cosine of its value with `direction` (d,) of length 1, the highest first.

    Of a value that passes a norm on its way (Gemma 2 and 3), what counts is its direction behind the norm.
    """
    cosines: dict[Neuron, float] = {}
    for layer, block in enumerate(decoder_blocks(model)):
        values = output_weight(mlp_output_projection(block)).cpu().double()  # (d, d_ff)
        gain = gain_after(block)
        if gain is not None:
            values = gain[:, None] * values
        lengths = values.norm(dim=0).clamp(min=torch.finfo(values.dtype).tiny)
        scores = torch.from_numpy(direction) @ values / lengths  # (d_ff,)
        cosines |= {(layer, number): score for number, score in enumerate(scores.tolist())}
    return dict(sorted(cosines.items(), key=lambda item: -item[1]))


@torch.no_grad()
def scale_keys_(model: "PreTrainedModel", neurons: list[Neuron], scale: float) -> None:
    """k_i <- scale * k_i; biases stay."""
    blocks = decoder_blocks(model)
    for layer, number in neurons:
        output_weight(mlp_input_projection(blocks[layer]))[number] *= scale  # (d,)
