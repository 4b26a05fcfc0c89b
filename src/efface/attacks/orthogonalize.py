"""Is toxicity back when one direction is taken out of the hidden states? Orthogonalisation (Lucki et al. 2024).

An edit that hides toxicity behind a direction of its own (RMU's random one, a refusal, a steering vector) is undone by
removing it (Arditi et al. 2024). Every variant is a point: which direction (`directions.py`), of which block, by hooks
or in the weights (`ablation.py`). Judged by the worst at which the model is still of use.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.analysis.states import TokenStates
from efface.attacks.ablation import Centre, ablate_, ablated, everywhere
from efface.attacks.directions import KINDS, centre, direction, rows_of, states_of
from efface.attacks.draw import count_prompts_among
from efface.attacks.lists import several
from efface.attacks.points import UtilityBudget, judge_within
from efface.attacks.record import Record, recorded
from efface.attacks.result import AttackResult, title
from efface.attacks.target import Target
from efface.checks import at_least_one, one_of
from efface.errors import UserError
from efface.model.blocks import decoder_blocks, parse_layers
from efface.model.copies import merged_copy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OWN = "own"
FORMS = ("hook", "affine", "weights")


@dataclass(frozen=True)
class OrthogonalizeSettings(UtilityBudget):
    """Settings of `orthogonalize`."""

    directions: tuple[str, ...] = several(
        "base,contrast,pca",
        str,
        "Which are tried: base (edited minus original model on toxic tokens; left out without --base), "
        "contrast (toxic minus benign tokens), pca (first principal component of the pairs' differences).",
    )
    layers: tuple[str, ...] = several(
        "own,0.25,0.5,0.75,last",
        str,
        "Blocks whose direction is taken out at every place, as in 8,16 or last; own: after each block "
        "its own direction.",
    )
    forms: tuple[str, ...] = several(
        "hook,affine,weights",
        str,
        "hook (hidden states, while the model runs), affine (the same, but put at the mean of benign text "
        "instead of zero, and sinks left alone), weights (all that writes there).",
    )
    outlier_limit: float = field(
        default=3.0, metadata={"help": "Tokens whose state is longer than so many times the median are left out."}
    )
    max_pairs: int = field(
        default=128, metadata={"help": "Pairs that directions are found from; if there are more, they are drawn."}
    )
    batch_size: int = field(default=16, metadata={"help": "Pairs whose hidden states are computed at once."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in self.directions:
            one_of("directions", part, KINDS)
        for part in self.forms:
            one_of("forms", part, FORMS)
        if not self.outlier_limit >= 1:
            raise UserError(
                f"outlier_limit={self.outlier_limit} leaves out ordinary tokens too: it must be at least 1."
            )
        at_least_one(self, "max_pairs", "batch_size")

    def places(self, n_layers: int) -> list[str | int]:
        """`own`, if asked for, then the blocks.

        Raises:
            UserError: for a block that the model does not have.
        """
        blocks = ",".join(part for part in self.layers if part != OWN)
        own: list[str | int] = [OWN] if OWN in self.layers else []
        return [*own, *(parse_layers(blocks, n_layers) if blocks else [])]


def orthogonalize(target: Target, settings: OrthogonalizeSettings) -> AttackResult:
    """Measure the model with each direction taken out, of hidden states or of a copy's weights.

    `found` says: the `directions` that were tried, and which were `not_tried` for want of a base; the variants that
    are `without_direction` (what is compared there is the same); the points that are `left_out`, among them those of
    blocks whose states are not finite; `prompts_among_rows`, which should be 0. An interrupted run finds the
    directions again, which is cheap, and goes on with what was not measured.

    Raises:
        UserError: if only "base" is asked for and there is no base, or for layers that the model does not have.
    """
    n_layers = len(decoder_blocks(target.model))
    places = settings.places(n_layers)
    of_all = OWN in places or "affine" in settings.forms
    layers = list(range(n_layers)) if of_all else [place for place in places if isinstance(place, int)]
    kinds = [kind for kind in settings.directions if kind != "base" or target.base is not None]
    if not kinds:
        raise UserError("orthogonalize needs the model that this one was made from: pass base=MODEL.")
    none: list[str] = []
    with recorded(target, "orthogonalize", settings) as record:
        record.start(direction="none")
        edited = states_of(target.model, target, layers, settings.max_pairs, settings.batch_size)
        base: dict[int, TokenStates] = {}
        if "base" in kinds and target.base is not None:
            base = states_of(target.base, target, layers, settings.max_pairs, settings.batch_size)
        for kind in kinds:
            known = [layer for layer in edited if kind != "base" or layer in base]
            found = {
                layer: direction(kind, edited[layer], base.get(layer), outlier_limit=settings.outlier_limit)
                for layer in known
            }
            ordinary = base if kind == "base" else edited
            centres = {
                layer: centre(edited[layer], ordinary[layer], outlier_limit=settings.outlier_limit) for layer in known
            }
            there = {layer: vector for layer, vector in found.items() if vector is not None}
            for place in places:
                vectors = there if isinstance(place, str) else _everywhere(there.get(place), target.model)
                for form in settings.forms:
                    at = {"direction": kind, "layer": place, "form": form}
                    if vectors:
                        _measure(record, at, vectors, centres)
                    elif place in known or (place == OWN and known):
                        none.append(title(at))
                    else:  # no state there is finite
                        record.broken.append(title(at))
        return judge_within(
            record,
            settings.max_perplexity_increase,
            directions=kinds,
            not_tried=[kind for kind in settings.directions if kind not in kinds],
            without_direction=none,
            prompts_among_rows=count_prompts_among(rows_of(target, settings.max_pairs), target.prompts),
        )


def _everywhere(vector: np.ndarray | None, model: "PreTrainedModel") -> dict[int, np.ndarray]:
    return {} if vector is None else everywhere(vector, model)


def _measure(
    record: Record, at: dict[str, Any], directions: Mapping[int, np.ndarray], centres: Mapping[int, Centre]
) -> None:
    model = record.target.model
    if at["form"] == "weights":
        if not record.has(at):
            model = merged_copy(model)
            ablate_(model, directions)
        record.measure_edited(model, at)
    elif at["form"] == "affine":  # what the embeddings write has no centre
        with ablated(model, {place: directions[place] for place in directions if place in centres}, centres):
            record.measure_edited(model, at)
    else:
        with ablated(model, directions):
            record.measure_edited(model, at)
