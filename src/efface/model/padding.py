"""How do ragged token sequences go through a model together, without touching the caller's model or tokenizer?

Batches are padded by hand, to the left to generate and to the right to score, with an attention mask.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from efface.model.blocks import unwrap

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


def position_ids(attention_mask: Tensor) -> Tensor:
    """(batch, T) positions that count from the first real token, whatever the side of the padding."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
