"""Which reference does a training run have: a model in memory, the trained one without its adapter, or a cache?

A run that needs none has a `NoReference`; then nothing here is asked.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from efface.data.batch import Item, PairBatch, ReferenceStates
from efface.data.dataset import PairDataset
from efface.errors import RunError, UserError
from efface.files.results import cache_dir
from efface.model.fingerprint import fingerprint_of
from efface.model.forward import Forward, Head
from efface.model.layout import Layout
from efface.model.precision import is_half
from efface.training.config import PairConfig
from efface.training.reference import LiveReference, Reference
from efface.training.reference_cache import ReferenceCache, open_cache
from efface.training.reference_check import cache_error, tolerance

logger = logging.getLogger(__name__)


def precomputes(args: PairConfig, n_pairs: int, *, half: bool, states_only: bool = True) -> bool:
    """Is the reference asked once, before training? It pays if every pair is seen, and is not done in half precision.

    Args:
        args: `precompute_reference`, and how much is trained.
        n_pairs: that there are.
        half: the policy's forward rounds to half precision.
        states_only: what a cache holds is all that the method asks of the reference.

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
    if half:  # what other batches round otherwise would be a KL at the start; see LiveReference.layout
        return False
    if args.max_steps < 0:
        return args.num_train_epochs >= 1
    seen = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps
    return seen * args.world_size >= n_pairs


def set_up_reference(
    model: PreTrainedModel,
    ref_model: PreTrainedModel | None,
    *,
    head: Head,
    adapted: bool,
    datasets: Sequence[PairDataset],
    layers: Sequence[int],
    args: PairConfig,
    fingerprint: str | None,
    autocast: Callable[[], AbstractContextManager[None]],
    layout: str,
    half: bool,
) -> Reference:
    """A live reference, or one whose cache is filled for `datasets`. A given `ref_model` stays as it is, but for the
    device it is on.

    Args:
        model: what will be trained, not yet trained.
        ref_model: the reference; None means the untrained `model`.
        head: of `model`.
        adapted: `model` gets an adapter, without which it is its own reference.
        fingerprint: of the reference's weights if a cache is wanted, otherwise None.
        autocast: the precision of the policy's forward, which must be the reference's too: rounding that only one of
            them does is a KL that nobody asked for.
        layout: the policy's.
        half: its forward rounds to half precision.
    """
    # In half precision only the very same forward rounds the same way; another model says something else anyhow.
    like = layout if half and ref_model is None else None
    # Before training the model itself is the reference; only one that must outlive the first step is copied.
    own = ref_model is None and not adapted
    live = LiveReference(model if ref_model is None else ref_model, adapted and ref_model is None, autocast, like)
    if fingerprint is not None:
        cached = CachedReference(live, head, layers, args, fingerprint, gone=own)
        if cached.fill(datasets):
            return cached
    return LiveReference(copy.deepcopy(model).requires_grad_(False), False, autocast, like) if own else live


class CachedReference:
    """A reference that is asked before training: what it said lies on disk and comes with the batches.

    Args:
        live: what is asked.
        policy_head: the trained model's.
        layers: whose norms are kept.
        fingerprint: of `live`.
        gone: from the first step on `live` is another model, since it is the one that is trained.
    """

    kind = "from its cache"

    def __init__(
        self,
        live: LiveReference,
        policy_head: Head,
        layers: Sequence[int],
        args: PairConfig,
        fingerprint: str,
        *,
        gone: bool,
    ):
        self.live, self.layers, self.args, self.fingerprint, self.gone = live, layers, args, fingerprint, gone
        self.head = live.head
        copied = self.head.weight.data_ptr() != policy_head.weight.data_ptr()
        self.nbytes = self.head.weight.nbytes if copied else 0
        self.kept_in = args.reference_dtype

    def states(
        self, batch: PairBatch, project: Tensor, layers: Sequence[int], residuals: Sequence[str] = ()
    ) -> ReferenceStates:
        return batch["reference"]

    def prepare(self, dataset: PairDataset) -> None:
        """As `Reference.prepare`. A reference that is gone answers for pairs that it was asked of before."""
        if dataset.states is not None:
            return
        if self.gone and fingerprint_of(self.live.model) != self.fingerprint:
            dataset.states = self._opened(dataset.items, of=_Gone(self.live.model, False, self.live.autocast))
        elif not self.fill([dataset]):
            raise RunError("the reference's states of these pairs cannot be cached, see the warning.")

    def fill(self, datasets: Sequence[PairDataset]) -> bool:
        """Give each dataset what the reference says of it, from the cache on disk. False: run it live instead.

        Raises:
            RunError: if the cache cannot be written and precompute_reference=on asks for it.
        """
        failure: Exception | None = None
        try:
            cache_dir()
        except (UserError, RuntimeError) as error:  # nobody's home
            failure = error
        for dataset in datasets:  # all of them in every process, which wait for each other at each
            with self.args.main_process_first(desc="reference cache"):
                try:
                    if failure is None:
                        dataset.states = self._tried(dataset.items)
                except RunError as error:
                    failure = error
        if not _in_any_process(failure is not None):
            return True
        what = failure or "Another process could not write the reference cache."
        if self.args.precompute_reference == "on":
            raise RunError(
                f"{what} Set EFFACE_CACHE to a folder that can be written, or set precompute_reference=off, which "
                "runs the reference beside the model instead."
            ) from failure
        logger.warning(
            "%s So the reference runs live instead, at the cost of its forward in every step: set EFFACE_CACHE to a "
            "folder that can be written to have it computed once",
            what,
        )
        for dataset in datasets:
            dataset.states = None
        return False

    def _tried(self, items: Sequence[Item]) -> ReferenceCache:
        """The cache of the states of `items`, of which the live reference has been asked a few again."""
        half = self.live.precision(self.args.device) is not None or is_half(self.live.model)
        limit = tolerance(self.args.reference_dtype, half=half)
        states = self._opened(items)
        off = cache_error(states, self.live, items, self.layers, self.args.device)
        if off > limit:
            logger.warning(
                "the cached reference in %s is not this one (KL %.1e nats a token from it): made again",
                states.directory,
                off,
            )
            states = self._opened(items, anew=True)
            off = cache_error(states, self.live, items, self.layers, self.args.device)
            if off > limit:
                raise UserError(
                    f"the reference says one thing of a sequence in one batch and another in the next (KL {off:.1e} "
                    "nats a token): its hidden states depend on the padding, so none can be kept. Set "
                    "precompute_reference=off."
                )
        return states

    def _opened(self, items: Sequence[Item], of: LiveReference | None = None, *, anew: bool = False) -> ReferenceCache:
        live = of or self.live
        return open_cache(
            live,
            self.head,
            items,
            self.layers,
            fingerprint=self.fingerprint,
            autocast=live.precision(self.args.device),
            dtype=self.args.reference_dtype,
            device=self.args.device,
            progress=of is None and not self.args.disable_tqdm,
            anew=anew,
        )


class _Gone(LiveReference):
    """A reference that is no more: all there is is what it has said."""

    def forward(self, layout: Layout, project: Tensor, layers: Sequence[int], capture: Tensor) -> Forward:
        raise UserError(
            "the reference was asked of the pairs that the trainer was made with, and is gone since. Pass these to "
            "the trainer as eval_dataset, or keep it with precompute_reference=off."
        )


def _in_any_process(failed: bool) -> bool:
    """Whether it failed in this process or another one of the run: all of them must go on in the same way."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return failed
    everywhere: list[bool | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, failed)
    return any(everywhere)
