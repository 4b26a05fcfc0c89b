"""Which reference does a training run have: a model in memory, the trained one without its adapter, or a cache?"""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from efface.dataset import PairDataset
from efface.errors import RunError, UserError
from efface.evaluation.batching import eval_mode
from efface.forward import Head
from efface.methods.config import PairConfig
from efface.methods.reference import Reference, open_cache
from efface.sources import cache_dir

logger = logging.getLogger(__name__)


def precomputes(args: PairConfig, n_pairs: int, *, states_only: bool = True) -> bool:
    """Is the reference asked once, before training? It pays if every pair is seen.

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
    if args.max_steps < 0:
        return args.num_train_epochs >= 1
    seen = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps
    return seen * args.world_size >= n_pairs


def set_up_reference(
    model: PreTrainedModel,
    ref_model: PreTrainedModel | None,
    *,
    adapted: bool,
    datasets: Sequence[Any],
    layers: Sequence[int],
    args: PairConfig,
    fingerprint: str | None,
) -> tuple[Reference | None, Head]:
    """A live reference, or None once its cache is filled for `datasets`; and its head.

    Args:
        model: what will be trained, not yet trained.
        ref_model: the reference; None means the untrained `model`.
        adapted: `model` has an adapter, without which it is its own reference.
        fingerprint: of the reference's weights if a cache is wanted, otherwise None.
    """
    # Before training the model itself is the reference; only one that must outlive the first step is copied.
    reference = Reference(ref_model if ref_model is not None else model, adapter_off=adapted and ref_model is None)
    if fingerprint is not None:
        head = Head.of(reference.model).frozen()
        if fill_caches(reference, head, datasets, layers, args, fingerprint):
            return None, head
    if not reference.adapter_off:
        frozen = copy.deepcopy(model) if ref_model is None else ref_model
        reference = Reference(frozen.requires_grad_(False).eval(), adapter_off=False)
    return reference, Head.of(reference.model).frozen()


def fill_caches(
    reference: Reference,
    head: Head,
    datasets: Sequence[Any],
    layers: Sequence[int],
    args: PairConfig,
    fingerprint: str,
) -> bool:
    """Give each dataset what the reference says of it, from the cache on disk. False: run the reference live instead.

    Raises:
        RunError: if the cache cannot be written and precompute_reference=on asks for it.
    """
    failure: Exception | None = None
    sets = [dataset for dataset in datasets if isinstance(dataset, PairDataset)]
    try:
        cache_dir()
    except (UserError, RuntimeError) as error:  # nobody's home
        failure = error
    for dataset in sets:  # all of them in every process, which wait for each other at each
        with args.main_process_first(desc="reference cache"), eval_mode(reference.model):
            try:
                if failure is not None:
                    continue
                dataset.states = open_cache(
                    reference,
                    head,
                    dataset.items,
                    layers,
                    fingerprint=fingerprint,
                    dtype=args.reference_dtype,
                    device=args.device,
                    progress=not args.disable_tqdm,
                )
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
    for dataset in sets:
        dataset.states = None
    return False


def _in_any_process(failed: bool) -> bool:
    """Whether it failed in this process or another one of the run: all of them must go on in the same way."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return failed
    everywhere: list[bool | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, failed)
    return any(everywhere)
