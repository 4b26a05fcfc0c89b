"""How does the trained model's forward go through a batch? The cheapest layout that fits is chosen once.

For a pair of P prompt, C chosen and R rejected tokens, a model of L blocks and the highest layer in use l, the blocks
work on

    plain    2 (P + max(C, R)) L                tokens, padding included
    shared   (P + C + R) L
    apart    (P + C) L + (P + R) (l + 1)        if no logits of rejected tokens are asked for

and a row of which nothing is asked is not computed at all: then plain is (P + C) L or (P + R) L.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from efface.data.batch import PairBatch
from efface.errors import UserError, reason_of
from efface.model.blocks import decoder_blocks, unwrap
from efface.model.copies import eval_mode
from efface.model.forward import Forward, forward
from efface.model.layout import plain_layout, shared_layout, why_not_shared
from efface.model.padding import most_columns

logger = logging.getLogger(__name__)

LAYOUTS = ("plain", "shared", "apart")


def policy_forward(
    model: nn.Module,
    batch: PairBatch,
    project: Tensor,
    layers: Sequence[int],
    capture: Tensor,
    layout: str,
    exact: bool = False,
    whole: bool = False,
) -> Forward:
    """What `loss` gets of the trained model; the same in every layout.

    Args:
        project: (2B + R, T) bool, whose final hidden states are wanted.
        capture: (2B + R, T) bool, the tokens whose residuals after `layers` are wanted; of chosen and rejected rows.
        exact: see `shared_layout`; for half precision, in which other roundings are seen.
        whole: see `forward`.
    """
    if layout == "shared":
        arranged = shared_layout(batch, unwrap(model), exact=exact)
        return forward(model, arranged, project, layers, capture, whole=whole)

    def part(rows: Tensor) -> Forward:
        arranged = plain_layout(
            batch["input_ids"][rows], batch["attention_mask"][rows], masked=True, widest=most_columns(model)
        )
        return forward(model, arranged, project[rows], layers, capture[rows], whole=whole)

    if layout == "plain":
        return part(project.any(1) | capture.any(1) if layers else project.any(1))
    n = batch["n_pairs"]
    rejected = torch.zeros(len(project), dtype=torch.bool, device=project.device)
    rejected[n : 2 * n] = True
    benign, toxic = part(~rejected), part(rejected)
    both = {layer: torch.cat([benign.residuals[layer], toxic.residuals[layer]]) for layer in layers}
    return Forward(benign.hidden, both)


def of_pairs(batch: PairBatch) -> Tensor:
    """(2B + R, T) bool: the tokens that are a pair's continuations, not those of passages."""
    mask = batch["continuation_mask"].clone()
    mask[2 * batch["n_pairs"] :] = False
    return mask


def choose_layout(
    wanted: str,
    model: Any,
    lengths: np.ndarray,
    layers: Sequence[int],
    *,
    sides: Sequence[str],
    distributed: bool,
    example: PairBatch,
) -> str:
    """The layout to use, which is `wanted` unless that is `auto`; why is said in the log.

    Args:
        lengths: (n, 3) tokens of the prompt, of chosen and of rejected.
        sides: the continuations whose logits are wanted, so that these rows must run to the end.
        distributed: a wrapped model is to be called once a step.
        example: a small batch on which `shared` must give what `plain` gives.

    Raises:
        UserError: if what is wanted does not fit.
    """
    blocks = len(decoder_blocks(model))
    one_side = not layers and len(sides) < 2
    refused = {
        "shared": "only one continuation of a pair is computed" if one_side else why_not_shared(model),
        "apart": "rejected rows must run to the end"
        if "rejected" in sides or not layers or max(layers) == blocks - 1
        else "under several processes the model can be called only once a step"
        if distributed
        else None,
    }
    if refused["shared"] is None and wanted in ("auto", "shared"):
        refused["shared"] = _differs(model, example)
    if refused.get(wanted):
        raise UserError(f"layout={wanted!r} does not fit: {refused[wanted]}. Use layout=auto.")
    prompt, chosen, rejected = np.asarray(lengths, dtype=np.int64).T
    both, last = prompt + chosen + rejected, max(layers, default=0) + 1
    plain = sum((chosen if side == "chosen" else rejected) + prompt for side in sides)
    if not one_side:
        plain = 2 * (prompt + np.maximum(chosen, rejected))
    work = {
        "plain": int(np.sum(plain)) * blocks,
        "shared": int(both.sum()) * blocks,
        "apart": int((prompt + chosen).sum()) * blocks + int((prompt + rejected).sum()) * last,
    }
    layout = wanted
    if wanted == "auto":
        layout = min((name for name in LAYOUTS if not refused.get(name)), key=lambda name: work[name])
    logger.info(
        "layout %s: %.2f of the plain layout's work%s",
        layout,
        work[layout] / max(work["plain"], 1),
        "".join(f"; not {name}, as {reason}" for name, reason in refused.items() if reason and wanted == "auto"),
    )
    return layout


@torch.no_grad()
def _differs(model: Any, example: PairBatch) -> str | None:
    """Why the shared layout cannot be trusted with this model, judged by what it computes, or that it refuses to."""
    mask = of_pairs(example)
    layers = [len(decoder_blocks(model)) - 1]
    with eval_mode(model):
        plain = policy_forward(model, example, mask, layers, mask, "plain")
        try:
            shared = policy_forward(model, example, mask, layers, mask, "shared")
        except Exception as error:  # whatever a family's own code makes of a mask that it does not know
            return f"it does not take such a mask ({reason_of(error, named=True)})"
    a, b = (states.residuals[layers[0]].float() for states in (plain, shared))
    difference = ((a - b).norm() / a.norm()).item()
    tolerance = 1e-4 if model.dtype == torch.float32 else 3e-2
    if difference < tolerance:
        return None
    return f"it gives other hidden states with it (relative difference {difference:.1e})"
