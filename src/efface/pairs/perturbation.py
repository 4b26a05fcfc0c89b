"""How does PPLM push a model towards an attribute at one step? By gradient steps on its cached keys and values.

Dathathri et al. 2020 (arXiv 1912.02164), section 3.2. With x_1..x_t the tokens so far, H the keys and values of all
but the last, and p~ and p the distributions of the next token with and without the perturbation,

    H <- H - stepsize * g / |g|^gamma,    g = gradient by H of  -log p(a | h) + kl_scale * KL(p~ || p)

`num_iterations` times; |g| is the norm over the keys and values of one layer and one sequence. The attribute model
p(a | h) is a linear probe on h, the mean of the residual stream after the last block: of x_1..x_t-1 untouched, of x_t
with H, and of `horizon_length` steps into the future. A step into the future reads the expected embedding of the token
before it, p~ at first, on untouched H. Their program repeats the first expected token; here each step has its own.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.analysis.probes import LinearProbe
from efface.errors import UserError
from efface.model.blocks import capture_residuals, decoder_blocks
from efface.model.padding import pad_batch, position_ids
from efface.model.vocabulary import pad_id
from efface.pairs.pplm_settings import PPLMSettings

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

TINY = 1e-15
"""Added to the norms of gradients, which are 0 at padding and where nothing was cached."""


def fuse(pushed: Tensor, plain: Tensor, gm_scale: float) -> Tensor:
    """(B, V) log-probabilities of p~^gm_scale * p^(1 - gm_scale), renormalised, from the logits of p~ and p."""
    mixed = gm_scale * pushed.log_softmax(-1) + (1 - gm_scale) * plain.log_softmax(-1)
    return mixed.log_softmax(-1)


@dataclass
class Sequences:
    """A batch of unfinished sequences x_1..x_t, left-padded, of which x_t is still to be read."""

    plain: "DynamicCache"
    """Of x_1..x_t-1, untouched."""
    pushed: "DynamicCache"
    """The same with all perturbations so far."""
    mask: Tensor
    """(B, T) over x_1..x_t."""
    last: Tensor
    """(B,) x_t"""
    total: Tensor
    """(B, d) sum of the untouched states at x_1..x_t-1, without a BOS, as in the texts the probe was trained on."""
    count: Tensor
    """(B, 1) how many states these are."""

    def append(self, tokens: Tensor) -> None:
        """x_t is read: go on to the tokens (B,) after it."""
        self.last, self.mask = tokens, F.pad(self.mask, (0, 1), value=1)

    def keep(self, rows: Tensor) -> None:
        """Drop all sequences but these."""
        self.plain.batch_select_indices(rows)
        self.pushed.batch_select_indices(rows)
        self.mask, self.last = self.mask[rows], self.last[rows]
        self.total, self.count = self.total[rows], self.count[rows]


class Perturbation:
    """Reads sequences with a model, untouched and pushed. The model's parameters must not require gradients."""

    def __init__(
        self,
        model: "PreTrainedModel",
        processing_class: "PreTrainedTokenizerBase",
        probe: LinearProbe,
        settings: PPLMSettings,
    ):
        self.model, self.probe, self.settings = model, probe, settings
        self.pad = pad_id(processing_class, model)
        self.bos = -1 if processing_class.bos_token_id is None else processing_class.bos_token_id
        self.layer = len(decoder_blocks(model)) - 1
        self.dtype = torch.promote_types(model.dtype, torch.float32)  # of all that is computed outside of the model
        embedding = model.get_input_embeddings()
        weight: Tensor = embedding.weight  # type: ignore[assignment]
        if type(embedding) is not nn.Embedding:  # Gemma 3 scales what it looks up
            weight = embedding(torch.arange(len(weight), device=weight.device))
        self.table = weight.detach()  # (V, d)

    @torch.no_grad()
    def start(self, prompts: Sequence[list[int]]) -> Sequences:
        """Read all but the last token of each prompt."""
        ids, mask = pad_batch(prompts, self.pad, self.model.device, left=True)  # (B, T)
        cache, before = empty_cache(self.model), mask[:, :-1]
        counted = before[..., None] * self._counts(ids[:, :-1])  # (B, T - 1, 1)
        total = torch.zeros(len(ids), len(self.probe.weight), dtype=self.dtype, device=ids.device)
        if before.shape[1]:
            _, states = self._forward(self.model.base_model, cache, before, input_ids=ids[:, :-1])
            total = (states * counted).sum(1)
        return Sequences(cache, copied(cache), mask, ids[:, -1], total, counted.sum(1))

    def step(self, batch: Sequences) -> tuple[Tensor, Tensor]:
        """Read x_t, pushed and untouched: the logits (B, V) of p~ and of p."""
        with torch.no_grad():
            plain, state = self.read(batch.plain, batch.mask, batch.last)
        self.push(batch, plain)
        with torch.no_grad():
            pushed, _ = self.read(batch.pushed, batch.mask, batch.last)
        batch.total = batch.total + state * self._counts(batch.last)
        batch.count = batch.count + self._counts(batch.last)
        return pushed, plain

    def read(self, cache: "DynamicCache", mask: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, V) and last residual state (B, d) at one more token of each row; `cache` grows by it."""
        output, states = self._forward(self.model, cache, mask, input_ids=ids[:, None])
        return output.logits[:, -1].to(self.dtype), states[:, -1]

    def expect(self, cache: "DynamicCache", mask: Tensor, logits: Tensor, *, project: bool) -> tuple[Tensor, Tensor]:
        """As `read`, of the token that `logits` (B, V) expect. Without `project` the same logits come back."""
        expected = logits.softmax(-1).to(self.table.dtype) @ self.table  # (B, d)
        module = self.model if project else self.model.base_model
        output, states = self._forward(module, cache, mask, inputs_embeds=expected[:, None])
        return output.logits[:, -1].to(self.dtype) if project else logits, states[:, -1]

    def push(self, batch: Sequences, plain: Tensor) -> None:
        """Perturb the keys and values of `batch.pushed`; `plain` (B, V) are the untouched logits after x_t."""
        if not batch.pushed.get_seq_length():  # x_1 is all there is
            return
        for _ in range(self.settings.num_iterations):
            leaves = [tensor.detach().requires_grad_() for tensor in tensors_of(batch.pushed)]
            with torch.enable_grad():
                loss = self.loss(batch, leaves, plain)  # (B,)
                gradients = torch.autograd.grad(loss.sum(), leaves)
            steps = zip(leaves, self.normalised(gradients), strict=True)
            batch.pushed = copied(batch.pushed, [old.detach() - self.settings.stepsize * step for old, step in steps])

    def loss(self, batch: Sequences, tensors: Sequence[Tensor], plain: Tensor) -> Tensor:
        """(B,) -log p(a | h) + kl_scale * KL(p~ || p), where `tensors` are the keys and values (see `tensors_of`)."""
        settings = self.settings
        logits, state = self.read(copied(batch.pushed, tensors), batch.mask, batch.last)
        if not settings.steer_current:
            state = state.detach()
        total = batch.total + state * self._counts(batch.last)
        count = batch.count + self._counts(batch.last) + settings.horizon_length
        future, mask, ahead = copied(batch.plain), batch.mask, logits
        for left in reversed(range(settings.horizon_length)):
            mask = F.pad(mask, (0, 1), value=1)
            ahead, state = self.expect(future, mask, ahead, project=left > 0)
            total = total + state
        log_p, log_q = logits.log_softmax(-1), plain.log_softmax(-1)
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
        return settings.kl_scale * divergence - F.logsigmoid(self.probe.logits(total / count))

    def normalised(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Cut to the window, then divided by a power of the norm over keys and values of each layer and row."""
        window = self.settings.window_length
        if window:
            gradients = [F.pad(g[..., -window:, :], (0, 0, max(g.shape[-2] - window, 0), 0)) for g in gradients]
        steps = []
        for pair in zip(gradients[::2], gradients[1::2], strict=True):  # (B, heads, T, dim) each
            squares = [gradient.to(self.dtype).pow(2).sum((1, 2, 3), keepdim=True) for gradient in pair]
            norm = (squares[0] + squares[1]).sqrt() + TINY  # (B, 1, 1, 1)
            steps += [(gradient / norm**self.settings.gamma).to(gradient.dtype) for gradient in pair]
        return steps

    def _forward(self, module: nn.Module, cache: "DynamicCache", mask: Tensor, **tokens: Tensor) -> tuple[Any, Tensor]:
        """What `module` gives for the newest tokens (B, n), and their last residual states (B, n, d)."""
        (new,) = tokens.values()
        with capture_residuals(self.model, [self.layer]) as residuals:
            output = module(
                **tokens,
                attention_mask=mask,
                position_ids=position_ids(mask)[:, -new.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            )
        return output, residuals[self.layer].to(self.dtype)

    def _counts(self, ids: Tensor) -> Tensor:
        """(..., 1) 0 at BOS, whose state is no part of the mean, else 1."""
        return (ids != self.bos).long()[..., None]


def empty_cache(model: "PreTrainedModel") -> "DynamicCache":
    """A new cache for `model`.

    Raises:
        UserError: if it would not consist of keys and values alone.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    cache = DynamicCache(config=model.config)
    kinds = {type(layer) for layer in cache.layers}
    if model._is_stateful or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        raise UserError(
            f"PPLM perturbs a cache of keys and values, but {type(model).__name__} remembers in another way "
            f"({', '.join(sorted(kind.__name__ for kind in kinds))}). Take another source of toxic text."
        )
    return cache


def tensors_of(cache: Any) -> list[Tensor]:
    """Keys and values of each layer in turn, (B, heads, T, dim) each."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def copied(cache: Any, tensors: Sequence[Tensor] | None = None) -> Any:
    """A cache that grows apart from `cache`, with the same tensors or with others (as `tensors_of` lists them)."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    if tensors is not None:
        for layer, keys, values in zip(new.layers, tensors[::2], tensors[1::2], strict=True):
            layer.keys, layer.values = keys, values
    return new
