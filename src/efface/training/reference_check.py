"""Does a reference say what it must? A cache what the live one says, and the untrained model what both say.

What attends by blocks of the padded batch (BigBird) says something else in every batch: it would be trained to imitate
another model. Whatever else can make a reference another one (a cache, a precision, a layout) shows here as well.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from efface.data.batch import Item, PairBatch
from efface.errors import UserError
from efface.model.blocks import unwrap
from efface.model.copies import eval_mode
from efface.model.forward import Head
from efface.training.config import PairConfig
from efface.training.passes import policy_forward
from efface.training.reference import LiveReference, Reference, mean_kl
from efface.training.reference_cache import ReferenceCache, compute_states

logger = logging.getLogger(__name__)

# Nats a token by which cached states may differ from live ones: batches of other shapes round otherwise.
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 1e-3}
HALF = 1e-2  # where the forward itself computes in half precision
TRIED = 4  # sequences that are asked of the live reference again


def tolerance(dtype: str, *, half: bool) -> float:
    """Nats a token by which a reference kept in `dtype` may differ from itself, asked again in another batch."""
    return max(TOLERANCE[dtype], HALF) if half else TOLERANCE[dtype]


@torch.no_grad()
def cache_error(
    states: ReferenceCache,
    reference: LiveReference,
    items: Sequence[Item],
    layers: Sequence[int],
    device: torch.device | str,
) -> float:
    """Mean KL of the live reference from its cache over the tokens of the first sequences, in nats.

    The key of a cache holds what is known to decide its content; this catches what is not known.
    """
    numbers, head = range(min(TRIED, len(items))), reference.head
    if not numbers:
        return 0.0
    live = compute_states(reference, items, numbers, layers, device, TRIED)["hidden"].to(head.weight)
    cached = torch.cat([states[number]["hidden"] for number in numbers]).to(head.weight)
    return mean_kl(cached, head, live, head)


@torch.no_grad()
def check_first_batch(
    model: Any,
    head: Head,
    reference: Reference,
    batch: PairBatch,
    project: Tensor,
    *,
    layout: str,
    half: bool,
    args: PairConfig,
    autocast: Callable[[], AbstractContextManager[None]],
) -> None:
    """Raise a `UserError` if there is a KL between `model`, as long as it is untrained, and its reference.

    Args:
        batch: of the run's own making.
        project: (rows, T) bool, the positions whose logits the loss will ask for.
        layout: the policy's.
        half: its forward rounds to half precision.
        args: say whether dropout is off.
        autocast: the precision of its forward.
    """
    if reference.head is None or not project.any():
        return
    with eval_mode(model), autocast():
        model.train(args.disable_dropout)  # as it will run: some families then do otherwise
        policy = policy_forward(model, batch, project, [], torch.zeros_like(project), layout, exact=half)
    hidden = policy.hidden.to(head.weight.dtype)
    off = mean_kl(hidden, head, reference.states(batch, project, [])["hidden"].to(hidden), reference.head)
    if half and reference.kept_in is not None and off > 0:
        logger.warning(
            "the reference from its cache rounds otherwise than the run's own batches: a KL of %.1e nats a token at "
            "the start, which training will chase. precompute_reference=off has none",
            off,
        )
    if off > tolerance(reference.kept_in or "float32", half=half):
        raise UserError(
            f"the untrained {type(unwrap(model)).__name__} differs from its own reference by a KL of {off:.1e} nats a "
            "token in the run's batches: what it says of a text depends on the batch, so nothing could be retained. "
            "Use another model or attention implementation."
        )
