"""How likely does a model find given text? -log p to measure by (`token_nll`) and to train on (`mean_nll`)."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from efface.data.tokens import encode_continuation
from efface.errors import NotFinite, UserError
from efface.generation.decoding import Decoding
from efface.generation.processes import shared
from efface.generation.prompts import encode_contexts
from efface.model.copies import eval_mode
from efface.model.devices import doubled
from efface.model.forward import Head, forward
from efface.model.head_check import check_head_once
from efface.model.layout import plain_layout
from efface.model.padding import batches_by_length, max_positions, pad_batch
from efface.model.precision import read_in
from efface.model.vocabulary import pad_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Logits held at once: 2^27 floats are 512 MB, whatever the vocabulary (262,144 entries for Gemma 3).
MAX_LOGITS = 2**27


def continuation_nll(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    continuations: Sequence[str],
    decoding: Decoding = Decoding(),
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> list[tuple[float, int]]:
    """For each pair, -log p(continuation | prompt) in nats, summed over its tokens, and the number of those tokens.

    The ids of a continuation are those that it has in the whole text (`encode_continuation`); an empty one gives
    (0.0, 0). One that reaches beyond the model's positions counts up to there: what was generated up to the last of
    them may be some tokens longer when its text is tokenised again. Prompts are cut, or are messages, as `decoding`
    says: with that of `generate_ids`, it is the prompt that was continued; its `dtype` holds here too.
    """
    if len(prompts) != len(continuations):
        raise UserError(f"{len(prompts)} prompts but {len(continuations)} continuations: each needs its own.")
    contexts = encode_contexts(model, processing_class, prompts, decoding)
    starts = [context.ids for context in contexts]
    ends = [
        encode_continuation(processing_class, text, context.text, template=context.template)
        for text, context in zip(continuations, contexts, strict=True)
    ]
    limit = max_positions(model)
    if limit is not None:
        # The last token is only predicted, so it needs no position of its own.
        rooms = [limit + 1 - len(start) for start in starts]
        beyond = sum(len(end) > room for end, room in zip(ends, rooms, strict=True))
        if beyond:
            logger.warning(
                "%d of %d continuations reach beyond the model's %d positions and count up to there.",
                beyond,
                len(ends),
                limit,
            )
        ends = [end[:room] for end, room in zip(ends, rooms, strict=True)]
    check_head_once(model)
    results = [(0.0, 0)] * len(starts)
    counted = [i for i in range(len(starts)) if ends[i]]
    batches = batches_by_length(counted, lambda i: len(starts[i]) + len(ends[i]), batch_size)
    pad = pad_id(processing_class, model)

    def of_batch(batch: list[int]) -> list[tuple[float, int]]:
        """-log p and the number of tokens of each pair."""
        losses = token_nll(model, [starts[i] + ends[i] for i in batch], [len(ends[i]) for i in batch], pad)
        return [(doubled(one).sum().item(), one.numel()) for one in losses]

    with eval_mode(model), read_in(model, decoding.dtype):
        found = shared(batches, of_batch, "likelihood", of=lambda: [starts, ends], show=progress)
    for i, (nll, tokens) in found.items():
        results[i] = (nll, tokens)
    return results


@torch.no_grad()
def token_nll(
    model: "PreTrainedModel", sequences: Sequence[Sequence[int]], counted: Sequence[int], pad: int
) -> list[Tensor]:
    """-log p of the last `counted[i]` tokens of each sequence given all before them; 1 <= counted[i] < length.

    The batch is split when its logits would exceed MAX_LOGITS, and only the counted positions are projected to the
    vocabulary.

    Raises:
        RunError: if the model's output is not finite.
    """
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    if len(sequences) > 1 and sum(counted) * vocabulary > MAX_LOGITS:
        half = len(sequences) // 2
        first = token_nll(model, sequences[:half], counted[:half], pad)
        return first + token_nll(model, sequences[half:], counted[half:], pad)
    targets = torch.tensor(
        [token for sequence, count in zip(sequences, counted, strict=True) for token in sequence[-count:]]
    ).to(model.device)  # (N,)
    hidden = predicting_states(model, sequences, counted, pad)  # (N, d)
    losses = states_nll(Head.of(model), hidden, targets)  # (N,)
    if not torch.isfinite(losses).all():
        raise NotFinite("the model's output is not finite (NaN or infinite logits): no likelihood can be computed.")
    return list(losses.split(list(counted)))


@torch.no_grad()
def predicting_states(
    model: "PreTrainedModel", sequences: Sequence[Sequence[int]], counted: Sequence[int], pad: int
) -> Tensor:
    """(N, d) the final hidden states that predict the last `counted[i]` tokens of each sequence, one after another."""
    # The last token is only a target, so a window of as many tokens as the model has positions predicts one more.
    inputs = [sequence[:-1] for sequence in sequences]
    input_ids, attention_mask = pad_batch(inputs, pad, model.device, left=False)  # (B, T)
    lengths = attention_mask.sum(1, keepdim=True)  # (B, 1)
    position = torch.arange(input_ids.shape[1], device=input_ids.device)  # (T,)
    amount = torch.tensor(list(counted), device=input_ids.device)[:, None]  # (B, 1)
    project = (position >= lengths - amount) & (position < lengths)  # (B, T)
    return forward(model, plain_layout(input_ids, attention_mask), project).hidden


def states_nll(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """-log p of each target, (N,), given the state that predicts it, (N, d).

    In pieces: a float32 copy of all logits would double the memory.
    """
    pieces = zip(hidden.split(256), targets.split(256), strict=True)
    return torch.cat([F.cross_entropy(head(piece).float(), target, reduction="none") for piece, target in pieces])


def mean_nll(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Mean -log p of the counted targets, with its graph: to be trained on.

    Args:
        logits: (B, T, V) that predict the targets.
        targets: (B, T) token ids.
        counted: (B, T) bool.
    """
    return F.cross_entropy(logits[counted].float(), targets[counted])
