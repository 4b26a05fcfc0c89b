"""Which reference does a training run have: a model in memory, the trained one without its adapter, or a cache?"""

import copy
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from efface.data.batch import Item
from efface.data.dataset import PairDataset
from efface.errors import RunError, UserError
from efface.files.results import cache_dir
from efface.model.chunked import weighted_kl
from efface.model.forward import Forward, Head
from efface.model.layout import Layout
from efface.model.load import load_model
from efface.training.config import PairConfig
from efface.training.reference import Reference, ReferenceCache, compute_states, open_cache

logger = logging.getLogger(__name__)


def precomputes(args: PairConfig, n_pairs: int, *, states_only: bool = True) -> bool:
    """Is the reference asked once, before training? It pays if every pair is seen, and is not done in half precision.

    Raises:
        UserError: if that is wanted of a method that needs more of the reference than is cached (not `states_only`).
    """
    if not states_only:
        if args.precompute_reference == "on":
            raise UserError(
                "precompute_reference=on: this method compares hidden states of inner layers with the reference's, "
                "which are not cached. Leave it at auto."
            )
        return False
    if args.precompute_reference != "auto":
        return args.precompute_reference == "on"
    if args.bf16:  # what other batches round otherwise would be a KL at the start; see Reference.layout
        return False
    if args.max_steps < 0:
        return args.num_train_epochs >= 1
    seen = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps
    return seen * args.world_size >= n_pairs


def given_reference(ref_model: Any, model: Any, *, use_cpu: bool) -> PreTrainedModel | None:
    """The reference that the caller gives, loaded if it is named; None if it is to be the initial policy.

    Raises:
        UserError: if it is the policy itself, or cannot be compared with it.
    """
    if isinstance(ref_model, str | os.PathLike):
        ref_model, _ = load_model(ref_model, device="cpu" if use_cpu else None)
    if ref_model is None:
        return None
    if ref_model is model:
        raise UserError(
            "model and ref_model are the same object, which would be trained and frozen at once. Leave ref_model out: "
            "the reference then is the model as it is now."
        )
    sizes = [one.config.get_text_config(decoder=True).vocab_size for one in (model, ref_model)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"ref_model has a vocabulary of {sizes[1]} and model one of {sizes[0]}: there is no KL between them. Pass "
            "a reference with the model's own tokenizer."
        )
    return ref_model


def set_up_reference(
    model: PreTrainedModel,
    ref_model: PreTrainedModel | None,
    *,
    adapted: bool,
    datasets: Sequence[PairDataset],
    layers: Sequence[int],
    args: PairConfig,
    fingerprint: str | None,
    autocast: Callable[[], AbstractContextManager[None]],
    layout: str,
) -> tuple[Reference | None, Head]:
    """A live reference, or None once its cache is filled for `datasets`; and its head. A given `ref_model` stays as it
    is, but for the device it is on.

    Args:
        model: what will be trained, not yet trained.
        ref_model: the reference; None means the untrained `model`.
        adapted: `model` gets an adapter, without which it is its own reference.
        fingerprint: of the reference's weights if a cache is wanted, otherwise None.
        autocast: the precision of the policy's forward, which must be the reference's too: rounding that only one of
            them does is a KL that nobody asked for.
        layout: the policy's.
    """
    # In half precision only the very same forward rounds the same way; another model says something else anyhow.
    like = layout if args.bf16 and ref_model is None else None
    # Before training the model itself is the reference; only one that must outlive the first step is copied.
    reference = Reference(ref_model if ref_model is not None else model, adapted and ref_model is None, autocast, like)
    if fingerprint is not None:
        head = Head.of(reference.model).frozen()
        if fill_caches(datasets, reference, head, layers, args, fingerprint):
            return None, head
    if not reference.adapter_off and ref_model is None:
        reference = Reference(copy.deepcopy(model).requires_grad_(False), False, autocast, like)
    return reference, Head.of(reference.model).frozen()


def fill_caches(
    datasets: Sequence[PairDataset],
    reference: Reference,
    head: Head,
    layers: Sequence[int],
    args: PairConfig,
    fingerprint: str,
) -> bool:
    """Give each dataset what the reference says of it, from the cache on disk. False: run the reference live instead.

    Raises:
        RunError: if the cache cannot be written and precompute_reference=on asks for it.
    """
    failure: Exception | None = None
    try:
        cache_dir()
    except (UserError, RuntimeError) as error:  # nobody's home
        failure = error
    for dataset in datasets:  # all of them in every process, which wait for each other at each
        with args.main_process_first(desc="reference cache"):
            try:
                if failure is None:
                    dataset.states = _tried_cache(dataset.items, reference, head, layers, args, fingerprint)
            except RunError as error:
                failure = error
    if not _in_any_process(failure is not None):
        return True
    what = failure or "Another process could not write the reference cache."
    if args.precompute_reference == "on":
        raise RunError(
            f"{what} Set EFFACE_CACHE to a folder that can be written, or pass --precompute_reference off, which runs "
            "the reference beside the model instead."
        ) from failure
    logger.warning(
        "%s So the reference runs live instead, at the cost of its forward in every step: set EFFACE_CACHE to a "
        "folder that can be written to have it computed once",
        what,
    )
    for dataset in datasets:
        dataset.states = None
    return False


def _in_any_process(failed: bool) -> bool:
    """Whether it failed in this process or another one of the run: all of them must go on in the same way."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return failed
    everywhere: list[bool | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, failed)
    return any(everywhere)


def _tried_cache(
    items: Sequence[Item],
    reference: Reference,
    head: Head,
    layers: Sequence[int],
    args: PairConfig,
    fingerprint: str,
) -> ReferenceCache:
    """The cache of the reference's states of `items`, of which the reference itself has been asked a few again."""

    def opened(*, anew: bool) -> ReferenceCache:
        return open_cache(
            reference,
            head,
            items,
            layers,
            fingerprint=fingerprint,
            autocast=_precision(reference, args.device),
            dtype=args.reference_dtype,
            device=args.device,
            progress=not args.disable_tqdm,
            anew=anew,
        )

    limit = tolerance(args.reference_dtype, half=_precision(reference, args.device) is not None)
    states = opened(anew=False)
    off = cache_error(states, reference, head, items, layers, args.device)
    if off > limit:
        logger.warning(
            "the cached reference in %s is not this one (KL %.1e nats a token from it): made again",
            states.directory,
            off,
        )
        states = opened(anew=True)
        off = cache_error(states, reference, head, items, layers, args.device)
        if off > limit:
            raise UserError(
                f"the reference says one thing of a sequence in one batch and another in the next (KL {off:.1e} nats "
                "a token): its hidden states depend on the padding, so none can be kept. Pass "
                "--precompute_reference off."
            )
    return states


class Gone(Reference):
    """A reference that was asked before training and is no more: what it said then is all there is."""

    def forward(self, layout: Layout, project: Tensor, layers: Sequence[int], capture: Tensor) -> Forward:
        raise UserError(
            "the reference was asked of the pairs that the trainer was made with, and is gone since. Pass these to "
            "the trainer as eval_dataset, or keep it with precompute_reference=off."
        )


def states_kept(
    dataset: PairDataset, model: PreTrainedModel, head: Head, layers: Sequence[int], args: PairConfig, *, of: str
) -> ReferenceCache:
    """What a reference that is gone, whose fingerprint is `of`, has said of `dataset`, if it was asked.

    Raises:
        UserError: if it was not.
    """
    half = torch.bfloat16 if args.bf16 else None
    gone = Gone(model, False)
    return open_cache(
        gone,
        head,
        dataset.items,
        layers,
        fingerprint=of,
        autocast=half,
        dtype=args.reference_dtype,
        device=args.device,
    )


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
    reference: Reference,
    head: Head,
    items: Sequence[Item],
    layers: Sequence[int],
    device: torch.device | str,
) -> float:
    """Mean KL of the live reference from its cache over the tokens of the first sequences, in nats.

    The key of a cache holds what is known to decide its content; this catches what is not known.
    """
    numbers = range(min(TRIED, len(items)))
    if not numbers:
        return 0.0
    live = compute_states(reference, items, numbers, layers, device, TRIED)["hidden"].to(head.weight)
    cached = torch.cat([states[number]["hidden"] for number in numbers]).to(head.weight)
    _, kl = weighted_kl(cached, head, live, head, live.new_ones(len(live)))
    return float(kl.mean())


def _precision(reference: Reference, device: torch.device | str) -> torch.dtype | None:
    """What the autocast of the reference's forward rounds to, if there is one; for the key of its cache."""
    kind = torch.device(device).type
    with reference.autocast():
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
