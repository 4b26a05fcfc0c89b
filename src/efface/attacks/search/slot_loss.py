"""What does a slot's text cost? Mean cross-entropy of the target's tokens, for many candidates, and its gradient.

Candidates are swaps in one current text, so most of the work is shared, and none of that changes the losses:

- Up to its first swap a candidate has the keys and values of the current text, which the gradient's forward leaves
  behind. Only what follows is computed, of several candidates in one row, and a mask keeps them apart:

        current text                a b c d | target
        a candidate with c -> x         x d | target
        another with d -> y               y | target        one row:  x d target y target

- Only the positions that predict the target are projected to the vocabulary, a piece at a time.
- The gradient is taken at the embeddings, not at one-hot vectors, and not of the weights.
- A draft, a copy in half precision that is faster, may say which candidates are worth reading (`rough_losses`).

A model that does not take such a mask, or keeps more than keys and values, reads every candidate from its beginning.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from efface.attacks.search.slot import Slot
from efface.errors import RunError
from efface.generation.decoder import Decoder
from efface.generation.warp import Warp
from efface.model.blocks import accepted, unwrap
from efface.model.chunked import token_log_probabilities
from efface.model.copies import frozen
from efface.model.forward import Head, final_states
from efface.model.head_check import check_head_once
from efface.model.layout import as_the_model_takes_it, pack, why_not_shared

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROW = 64  # tokens of a packed row: longer ones pad less, but attention to what others wrote is for nothing
TOLERANCE = 0.01  # of a loss, for half precision

KeysValues = list[tuple[Tensor, Tensor]]
"""Of each layer: (1, heads, T, d_head) keys and values."""


class SlotLoss:
    """The loss of what stands in one slot, around a current text.

    Args:
        model: in evaluation mode; its weights are not changed.
        batch_tokens: tokens of candidates that go through the model together.
        reuse: share what candidates have in common; None: if the model allows it, which is tried out.
        draft: a copy of the model that `rough_losses` reads with; None: the model itself.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        slot: Slot,
        *,
        batch_tokens: int = 2048,
        reuse: bool | None = None,
        draft: "PreTrainedModel | None" = None,
    ):
        self.model, self.slot, self.batch_tokens = model, slot, batch_tokens
        check_head_once(model)
        self.head = Head.of(model)
        self.draft = model if draft is None else draft
        self.draft_head = self.head if draft is None else Head.of(draft)
        self.has_cache = Decoder(model, Warp(), 0, ()).has_dynamic_cache()
        self.reuse = reuse
        self.current = torch.empty(0, dtype=torch.long)  # (L,)
        self.states: KeysValues = []  # of before | slot | after | target[:-1], with the current text in the slot
        self.before: KeysValues = []  # of `before` alone, which never changes
        self.is_forced = False
        """Whether the model, greedily, writes the target after the current text."""
        self.tokens = 0
        """Put through a model so far, padding included; those that are differentiated too count three times."""

    def gradient(self, ids: Tensor) -> tuple[float, Tensor]:
        """The loss of `ids` (L,), from now on the current text, and (L, d) its gradient at the output of the input
        embedding.

        Raises:
            RunError: if the loss is not finite.
        """
        prompt, slot = len(self.slot.before), self.slot
        start = prompt if self._shares_before() else 0
        row = self._tensor([*slot.before, *ids.tolist(), *slot.after, *slot.target[:-1]])[None]
        cache = _cache(self.before, start, _Kept) if self.has_cache else None
        with frozen(self.model), leaf_embeddings(self.model) as leaves, torch.enable_grad():
            hidden = self._hidden(row[:, start:], cache)[:, -len(slot.target) :]  # (1, T, d)
            loss = -token_log_probabilities(hidden[0], self.head, self._tensor(slot.target)).mean()
            (gradient,) = torch.autograd.grad(loss, leaves)
        self.tokens += 2 * row[:, start:].numel()  # a backward costs about two forwards
        if not torch.isfinite(loss):
            raise RunError("the loss of the target is not finite: check that the model's weights are, or use float32.")
        self.current = ids
        self.states = [] if cache is None else _states(cache)
        self.is_forced = bool(self._are_forced(hidden[0].detach()))
        if self.reuse is None:
            spent = self.tokens
            self.reuse = self._can_share(loss.item())
            self.tokens = spent
        place = prompt - start
        return loss.item(), gradient[0, place : place + len(ids)]

    @torch.no_grad()
    def losses(self, candidates: Tensor) -> Tensor:
        """(N,) losses, at least float32, of one candidate or more (N, L)."""
        return torch.cat([self._losses(hidden, self.head) for hidden in self._read(candidates, self.model)])

    @torch.no_grad()
    def judged(self, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) losses of candidates (N, L), and (N,) whether the model, greedily, writes the target after each."""
        found = [
            (self._losses(hidden, self.head), self._are_forced(hidden))
            for hidden in self._read(candidates, self.model)
        ]
        return torch.cat([losses for losses, _ in found]), torch.cat([forced for _, forced in found])

    @torch.no_grad()
    def rough_losses(self, candidates: Tensor) -> Tensor:
        """(N,) losses as the draft sees them."""
        return torch.cat([self._losses(hidden, self.draft_head) for hidden in self._read(candidates, self.draft)])

    def _losses(self, hidden: Tensor, head: Head) -> Tensor:
        """(B,) of what predicts the target after B candidates, (B * T, d)."""
        targets = self._tensor(self.slot.target)
        return (
            -token_log_probabilities(hidden, head, targets.repeat(len(hidden) // len(targets)))
            .view(-1, len(targets))
            .mean(1)
        )

    def _are_forced(self, hidden: Tensor) -> Tensor:
        """(B,) bool, of the same."""
        targets = self._tensor(self.slot.target)
        likeliest = torch.cat([self.head(piece).argmax(-1) for piece in hidden.split(256)])
        return (likeliest.view(-1, len(targets)) == targets).all(1)

    def _read(self, candidates: Tensor, model: "PreTrainedModel") -> Iterator[Tensor]:
        """(B * T, d) final hidden states that predict the target, of so many candidates at a time."""
        end = len(self.slot.after) + len(self.slot.target) - 1
        length = candidates.shape[1]
        if self.reuse:
            changed = candidates != self.current
            # Argmax finds the first of equals. An unchanged row needs a token to be read, its last.
            first = torch.where(changed.any(1), changed.int().argmax(1), length - 1).tolist()
        else:
            first = [-len(self.slot.before)] * len(candidates)
        batch: list[int] = []
        tokens = 0
        for row, start in enumerate(first):
            if batch and tokens + length - start + end > self.batch_tokens:
                yield self._read_batch(candidates[batch], [first[i] for i in batch], model)
                batch, tokens = [], 0
            batch.append(row)
            tokens += length - start + end
        yield self._read_batch(candidates[batch], [first[i] for i in batch], model)

    def _read_batch(self, candidates: Tensor, first: list[int], model: "PreTrainedModel") -> Tensor:
        return self._read_rest(candidates, first, model) if self.reuse else self._read_whole(candidates, model)

    def _read_whole(self, candidates: Tensor, model: "PreTrainedModel") -> Tensor:
        """(B * T, d) final hidden states that predict the target, from the whole sequences."""
        parts = self.slot.before, candidates, [*self.slot.after, *self.slot.target[:-1]]
        rows = [part if isinstance(part, Tensor) else self._tensor(part).expand(len(candidates), -1) for part in parts]
        return self._hidden(torch.cat(rows, dim=1), None, model)[:, -len(self.slot.target) :].flatten(0, 1)

    def _read_rest(self, candidates: Tensor, first: list[int], model: "PreTrainedModel") -> Tensor:
        """The same from position `first` of the slot on, packed into rows."""
        slot, predicting = self.slot, len(self.slot.target)
        end = [*slot.after, *slot.target[:-1]]
        rests = [row[start:] + end for row, start in zip(candidates.tolist(), first, strict=True)]
        width = max(ROW, *map(len, rests))
        rows = pack([len(rest) for rest in rests], width)
        shape = (len(rows), width)
        ids = torch.zeros(shape, dtype=torch.long)
        owner = torch.full(shape, -1)  # the candidate that a token belongs to; -1 for padding, which sees itself
        positions = torch.zeros(shape, dtype=torch.long)
        place = torch.zeros(len(rests), predicting, dtype=torch.long)
        for row, members in enumerate(rows):
            at = 0
            for i in members:
                here, begin = slice(at, at + len(rests[i])), len(slot.before) + first[i]
                ids[row, here] = torch.tensor(rests[i])
                owner[row, here] = i
                positions[row, here] = torch.arange(begin, begin + len(rests[i]))
                place[i] = row * width + torch.arange(here.stop - predicting, here.stop)
                at = here.stop
        starts = len(slot.before) + torch.tensor([*first, 0])[owner]  # (R, W); for padding any
        shared = torch.arange(int(starts.max()))  # (S,) the positions whose states are taken over
        left = torch.ones(width, width, dtype=torch.bool).tril()
        own = left & (owner.unsqueeze(2) == owner.unsqueeze(1))  # (R, W, W)
        sees = torch.cat([shared < starts.unsqueeze(2), own], dim=2)  # (R, W, S + W)
        seen = torch.cat([shared.expand(len(rows), -1), positions], dim=1)  # (R, S + W)
        device = self.model.device
        masks = as_the_model_takes_it(sees.to(device), positions.to(device), model, seen.to(device))
        hidden = self._hidden(
            ids.to(device),
            _cache(self.states, len(shared), _Shared, model.dtype),
            model,
            attention_mask=masks,
            position_ids=positions.to(device),
        )
        return hidden.flatten(0, 1)[place.flatten().to(device)]

    def _hidden(
        self, input_ids: Tensor, cache: Cache | None, model: "PreTrainedModel | None" = None, **inputs: Any
    ) -> Tensor:
        """(B, T, d) final hidden states."""
        model = self.model if model is None else model
        self.tokens += input_ids.numel()
        with final_states(unwrap(model)) as final:
            inputs |= {"input_ids": input_ids, "past_key_values": cache, "use_cache": cache is not None}
            model(**accepted(unwrap(model), **inputs))
        return final[0]

    @torch.no_grad()
    def _can_share(self, loss: float) -> bool:
        """Whether the current text has its loss also when read with others, from its first token or its last."""
        if not self.has_cache or why_not_shared(self.model) is not None:
            return False
        self.reuse = True
        twice = self._losses(
            self._read_rest(self.current.repeat(2, 1), [0, len(self.current) - 1], self.model), self.head
        )
        return bool((twice - loss).abs().max() < TOLERANCE * max(loss, 1.0))

    @torch.no_grad()
    def _shares_before(self) -> bool:
        """Whether keys and values of `before` are at hand; the first time they are computed."""
        if self.has_cache and self.slot.before and not self.before:
            cache = DynamicCache()
            self._hidden(self._tensor(self.slot.before)[None], cache)
            self.tokens -= len(self.slot.before)  # once for a whole search, however often it is interrupted
            self.before = _states(cache)
        return bool(self.before)

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(list(ids), dtype=torch.long, device=self.model.device)


class _Kept(DynamicLayer):
    """Keys and values to start from; new ones are kept too."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values


class _Shared(_Kept):
    """Keys and values that all rows of a batch have in common; those of a row's own tokens are used and dropped."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        held = self.keys, self.values
        keys, values = (
            torch.cat([old.expand(len(new), -1, -1, -1), new], dim=-2)  # type: ignore[union-attr]  # set in __init__
            for old, new in zip(held, (key_states, value_states), strict=True)
        )
        return keys, values


def _states(cache: Any) -> KeysValues:
    return [(layer.keys.detach(), layer.values.detach()) for layer in cache.layers]


def _cache(states: KeysValues, length: int, kind: type[_Kept], dtype: torch.dtype | None = None) -> Cache:
    """A cache that holds the first `length` of `states`, in their precision or in `dtype`.

    All layers are of full length, also those of a sliding window: their mask leaves out what is too far away.
    """
    if not states:
        return DynamicCache()
    taken = [(keys[:, :, :length], values[:, :, :length]) for keys, values in states]
    return Cache(layers=[kind(keys.to(dtype or keys.dtype), values.to(dtype or keys.dtype)) for keys, values in taken])


@contextlib.contextmanager
def leaf_embeddings(model: Any) -> Iterator[list[Tensor]]:
    """Within the context every forward adds the output (batch, T, d) of the input embedding to the yielded list: the
    leaf of a graph, to differentiate by."""
    leaves: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = model.get_input_embeddings().register_forward_hook(hook)
    try:
        yield leaves
    finally:
        handle.remove()
