"""How do ragged token sequences go through a model together, without touching the caller's model or tokenizer?

Batches are padded by hand, to the left to generate and to the right to score, with an attention mask.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.errors import NotFinite
from efface.model.forward import Head, forward, unwrap
from efface.model.layout import plain_layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Logits held at once: 2^27 floats are 512 MB, whatever the vocabulary (262,144 entries for Gemma 3).
MAX_LOGITS = 2**27


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
    # The last token is only a target, so a window of as many tokens as the model has positions predicts one more.
    inputs = [sequence[:-1] for sequence in sequences]
    input_ids, attention_mask = pad_batch(inputs, pad, model.device, left=False)  # (B, T)
    lengths = attention_mask.sum(1, keepdim=True)  # (B, 1)
    position = torch.arange(input_ids.shape[1], device=input_ids.device)  # (T,)
    amount = torch.tensor(list(counted), device=input_ids.device)[:, None]  # (B, 1)
    project = (position >= lengths - amount) & (position < lengths)  # (B, T)
    targets = torch.tensor(
        [token for sequence, count in zip(sequences, counted, strict=True) for token in sequence[-count:]]
    ).to(input_ids.device)  # (N,)
    hidden = forward(model, plain_layout(input_ids, attention_mask), project).hidden  # (N, d)
    head = Head.of(model)
    # In pieces: a float32 copy of all logits would double the memory.
    losses = torch.cat(
        [
            F.cross_entropy(head(piece).float(), target, reduction="none")
            for piece, target in zip(hidden.split(256), targets.split(256), strict=True)
        ]
    )  # (N,)
    if not torch.isfinite(losses).all():
        raise NotFinite("the model's output is not finite (NaN or infinite logits): no likelihood can be computed.")
    return list(losses.split(list(counted)))


def pad_batch(
    sequences: Sequence[Sequence[int]], pad: int, device: torch.device, *, left: bool
) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, both (B, T), of ragged sequences."""
    longest = max(len(sequence) for sequence in sequences)
    input_ids = torch.full((len(sequences), longest), pad)
    attention_mask = torch.zeros(len(sequences), longest, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
        input_ids[row, place] = torch.tensor(sequence)
        attention_mask[row, place] = 1
    return input_ids.to(device), attention_mask.to(device)


def max_positions(model: "PreTrainedModel") -> int | None:
    """The longest sequence the model takes, or None if its positions are unlimited (ALiBi, state spaces)."""
    config = model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None  # XLNet says -1


def most_columns(model: nn.Module) -> int | None:
    """The widest row that the model takes, padding included, or None for any.

    An eager attention may hold a causal mask of its own, with a column for each position (GPT-Neo). It is given a mask
    of ones as any other, and so needs no column of padding.
    """
    inner = unwrap(model)
    eager = getattr(inner.config.get_text_config(decoder=True), "_attn_implementation", None) == "eager"
    return max_positions(inner) if eager else None


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside; every module's own mode, which need not be the same for all, is restored at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
