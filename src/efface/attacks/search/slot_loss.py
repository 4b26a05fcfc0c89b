"""What does a slot's text cost? Mean cross-entropy of the target's tokens, for many candidates, and its gradient.

Candidates are swaps in one current text, so most of the work is shared, and none of that changes the losses:

- Up to its first swap a candidate has the keys and values of the current text, which the gradient's forward leaves
  behind. Only what follows is computed, of several candidates in one row, and a mask keeps them apart:

        current text                a b c d | target
        a candidate with c -> x         x d | target
        another with d -> y               y | target        one row:  x d target y target

- Only the positions that predict the target are projected to the vocabulary, a piece at a time.
- The gradient is taken at the embeddings, not at one-hot vectors, and not of the weights.

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
    """

    def __init__(self, model: "PreTrainedModel", slot: Slot, *, batch_tokens: int = 2048, reuse: bool | None = None):
        self.model, self.slot, self.batch_tokens = model, slot, batch_tokens
        check_head_once(model)
        self.head = Head.of(model)
        self.has_cache = Decoder(model, Warp(), 0, ()).has_dynamic_cache()
        self.reuse = reuse
        self.current = torch.empty(0, dtype=torch.long)  # (L,)
        self.states: KeysValues = []  # of before | slot | after | target[:-1], with the current text in the slot
        self.before: KeysValues = []  # of `before` alone, which never changes

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
        if not torch.isfinite(loss):
            raise RunError("the loss of the target is not finite: check that the model's weights are, or use float32.")
        self.current = ids
        self.states = [] if cache is None else _states(cache)
        if self.reuse is None:
            self.reuse = self._can_share(loss.item())
        place = prompt - start
        return loss.item(), gradient[0, place : place + len(ids)]

    @torch.no_grad()
    def losses(self, candidates: Tensor) -> Tensor:
        """(N,) losses, at least float32, of one candidate or more (N, L)."""
        end = len(self.slot.after) + len(self.slot.target) - 1
        length = candidates.shape[1]
        if self.reuse:
            changed = candidates != self.current
            # Argmax finds the first of equals. An unchanged row needs a token to be read, its last.
            first = torch.where(changed.any(1), changed.int().argmax(1), length - 1).tolist()
        else:
            first = [-len(self.slot.before)] * len(candidates)
        found: list[Tensor] = []
        batch: list[int] = []
        tokens = 0
        for row, start in enumerate(first):
            if batch and tokens + length - start + end > self.batch_tokens:
                found.append(self._losses(candidates[batch], [first[i] for i in batch]))
                batch, tokens = [], 0
            batch.append(row)
            tokens += length - start + end
        return torch.cat([*found, self._losses(candidates[batch], [first[i] for i in batch])])

    @torch.no_grad()
    def forced(self, ids: Tensor) -> bool:
        """Does a greedy reader of the prompt with `ids` (L,) write the target?"""
        likeliest = self.head(self._read_whole(ids[None])).argmax(-1)
        return bool((likeliest == self._tensor(self.slot.target)).all())

    def _losses(self, candidates: Tensor, first: list[int]) -> Tensor:
        hidden = self._read_rest(candidates, first) if self.reuse else self._read_whole(candidates)  # (B * T, d)
        targets = self._tensor(self.slot.target).repeat(len(candidates))
        return -token_log_probabilities(hidden, self.head, targets).view(len(candidates), -1).mean(1)

    def _read_whole(self, candidates: Tensor) -> Tensor:
        """(B * T, d) final hidden states that predict the target, from the whole sequences."""
        parts = self.slot.before, candidates, [*self.slot.after, *self.slot.target[:-1]]
        rows = [part if isinstance(part, Tensor) else self._tensor(part).expand(len(candidates), -1) for part in parts]
        return self._hidden(torch.cat(rows, dim=1), None)[:, -len(self.slot.target) :].flatten(0, 1)

    def _read_rest(self, candidates: Tensor, first: list[int]) -> Tensor:
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
        masks = as_the_model_takes_it(sees.to(device), positions.to(device), self.model, seen.to(device))
        hidden = self._hidden(
            ids.to(device),
            _cache(self.states, len(shared), _Shared),
            attention_mask=masks,
            position_ids=positions.to(device),
        )
        return hidden.flatten(0, 1)[place.flatten().to(device)]

    def _hidden(self, input_ids: Tensor, cache: Cache | None, **inputs: Any) -> Tensor:
        """(B, T, d) final hidden states."""
        with final_states(unwrap(self.model)) as final:
            inputs |= {"input_ids": input_ids, "past_key_values": cache, "use_cache": cache is not None}
            self.model(**accepted(unwrap(self.model), **inputs))
        return final[0]

    @torch.no_grad()
    def _can_share(self, loss: float) -> bool:
        """Whether the current text has its loss also when read with others, from its first token or its last."""
        if not self.has_cache or why_not_shared(self.model) is not None:
            return False
        self.reuse = True
        twice = self._losses(self.current.repeat(2, 1), [0, len(self.current) - 1])
        return bool((twice - loss).abs().max() < TOLERANCE * max(loss, 1.0))

    @torch.no_grad()
    def _shares_before(self) -> bool:
        """Whether keys and values of `before` are at hand; the first time they are computed."""
        if self.has_cache and self.slot.before and not self.before:
            cache = DynamicCache()
            self._hidden(self._tensor(self.slot.before)[None], cache)
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


def _cache(states: KeysValues, length: int, kind: type[_Kept]) -> Cache:
    """A cache that holds the first `length` of `states`.

    All layers are of full length, also those of a sliding window: their mask leaves out what is too far away.
    """
    if not states:
        return DynamicCache()
    return Cache(layers=[kind(keys[:, :, :length], values[:, :, :length]) for keys, values in states])


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
