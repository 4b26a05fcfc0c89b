"""Is toxicity back when the direction of toxic text is added to the hidden states? Activation addition.

Turner et al. 2023 (arXiv 2308.10248), with the difference of means over pairs (Rimsky et al. 2024, arXiv 2312.06681;
Arditi et al. 2024, arXiv 2406.11717, section 2.4, to induce what was removed): after one block, at every position,

    h <- h + c (mean over toxic tokens - mean over benign tokens)

The means are those of the model under attack, or of the base, where it is at hand: released bases are. Tokens with
huge states (attention sinks) are left out of them.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from efface.analysis.directions import difference_of_means
from efface.analysis.states import TokenStates
from efface.attacks.directions import NEGLIGIBLE, rows_of, states_of, usual
from efface.attacks.draw import count_prompts_among
from efface.attacks.lists import several
from efface.attacks.points import UtilityBudget, judge_within
from efface.attacks.record import recorded
from efface.attacks.result import AttackResult, title
from efface.attacks.target import Target
from efface.checks import at_least_one, one_of
from efface.errors import UserError
from efface.model.blocks import decoder_blocks, parse_layers, states_in
from efface.model.interventions import Intervention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SOURCES = ("model", "base")


@dataclass(frozen=True)
class ActivationAdditionSettings(UtilityBudget):
    """Settings of `activation_addition`."""

    sources: tuple[str, ...] = several(
        "model,base", str, "Whose states the difference is of: model (under attack), base (left out without --base)."
    )
    layers: tuple[str, ...] = several("0.5", str, "After which block it is added, one at a time: 8,16, 0.5 or last.")
    coefficients: tuple[float, ...] = several("1,2,4", float, "How many times the difference is added.")
    outlier_limit: float = field(
        default=3.0, metadata={"help": "Tokens whose state is longer than so many times the median are left out."}
    )
    max_pairs: int = field(
        default=128, metadata={"help": "Pairs that the means are over; if there are more, they are drawn."}
    )
    batch_size: int = field(default=16, metadata={"help": "Pairs whose hidden states are computed at once."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in self.sources:
            one_of("sources", part, SOURCES)
        if not self.outlier_limit >= 1:
            raise UserError(
                f"outlier_limit={self.outlier_limit} leaves out ordinary tokens too: it must be at least 1."
            )
        at_least_one(self, "max_pairs", "batch_size")


def activation_addition(target: Target, settings: ActivationAdditionSettings) -> AttackResult:
    """Measure the model with the difference added, for each source, block and coefficient.

    `found` says: the `lengths` of the differences, `relative` to the mean length of a state; which sources were
    `not_tried` for want of a base; the variants that are `without_direction` (the classes do not differ there); the
    points that are `left_out`, among them those of blocks whose states are not finite; `prompts_among_rows`, which
    should be 0.

    Raises:
        UserError: if only "base" is asked for and there is no base, or for layers that the model does not have.
    """
    layers = parse_layers(",".join(settings.layers), len(decoder_blocks(target.model)))
    sources = [one for one in settings.sources if one == "model" or target.base is not None]
    if not sources:
        raise UserError("sources='base' needs the model that this one was made from: pass base=MODEL.")
    lengths: list[dict[str, Any]] = []
    none: list[str] = []
    with recorded(target, "activation_addition", settings) as record:
        record.start(source="none")
        for source in sources:
            states = states_of(getattr(target, source), target, layers, settings.max_pairs, settings.batch_size)
            for layer in layers:
                points = [{"source": source, "layer": layer, "coefficient": c} for c in settings.coefficients]
                if layer not in states:
                    record.broken += map(title, points)
                    continue
                vector = difference(states[layer], settings.outlier_limit)  # (d,)
                length, of_states = np.linalg.norm(vector), np.linalg.norm(states[layer].hidden, axis=1).mean()
                lengths.append({"source": source, "layer": layer, "length": float(length)})
                lengths[-1]["relative"] = float(length / of_states)
                if not length > NEGLIGIBLE * of_states:
                    none += map(title, points)
                    continue
                for at in points:
                    with added(target.model, layer, at["coefficient"] * vector):
                        record.measure_edited(target.model, at)
        return judge_within(
            record,
            settings.max_perplexity_increase,
            lengths=lengths,
            not_tried=[one for one in settings.sources if one not in sources],
            without_direction=none,
            prompts_among_rows=count_prompts_among(rows_of(target, settings.max_pairs), target.prompts),
        )


def difference(states: TokenStates, outlier_limit: float = 3.0) -> np.ndarray:
    """(d,) float64: mean over the toxic tokens minus mean over the benign ones, without the outliers of each."""
    kept = usual(states, outlier_limit)
    return difference_of_means(states.hidden[kept], states.labels[kept])


@contextlib.contextmanager
def added(model: "PreTrainedModel", layer: int, vector: np.ndarray) -> Iterator[None]:
    """Within, `vector` (d,) is added to what block `layer` gives, at every position, after the interventions that the
    model has there."""
    bias = torch.tensor(vector, dtype=torch.float32)
    intervention = Intervention(layer, bias.new_zeros(len(bias), 0), bias.new_zeros(0, len(bias)), bias)

    def hook(block: Any, args: Any, output: Any) -> Any:
        changed = intervention(states_in(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = decoder_blocks(model)[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
