"""How do ragged token sequences go through a model together, without touching the caller's model or tokenizer?

In batches of like length, padded by hand, to the left to generate and to the right to score, with an attention mask.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from efface.data.batch import pad_rows
from efface.model.blocks import unwrap
from efface.model.families import position_limit, takes_no_padding_beyond

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")


def batches_by_length(
    items: Iterable[T],
    length: Callable[[T], int],
    max_rows: int | None = None,
    *,
    max_tokens: int | None = None,
    longest_first: bool = True,
) -> list[list[T]]:
    """`items` in batches of like length, so that little is padded; those of equal length stay in their order.

    Args:
        length: of an item, in tokens (or what goes with them).
        max_rows: of a batch; None for any number.
        max_tokens: of a batch, its rows times the longest of them, so only with the longest first; one item that is
            longer is a batch by itself. None for any number.
        longest_first: memory runs out at once or never, and a progress bar's estimate is safe.
    """
    assert longest_first or max_tokens is None
    order = sorted(items, key=(lambda item: -length(item)) if longest_first else length)
    batches, start = [], 0
    while start < len(order):
        rows = len(order) if max_rows is None else max_rows
        if max_tokens is not None:
            rows = min(rows, max_tokens // length(order[start]))
        batches.append(order[start : start + max(rows, 1)])
        start += max(rows, 1)
    return batches


def pad_batch(
    sequences: Sequence[Sequence[int]], pad: int, device: torch.device, *, left: bool
) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, both (B, T) on `device`, of ragged sequences."""
    input_ids, attention_mask = pad_rows(sequences, pad, left=left)
    return input_ids.to(device), attention_mask.to(device)


def max_positions(model: "PreTrainedModel") -> int | None:
    """The longest sequence the model takes, or None if its positions are unlimited (ALiBi, state spaces)."""
    return position_limit(model.config.get_text_config(decoder=True))


def most_columns(model: nn.Module) -> int | None:
    """The widest row that the model takes, padding included, or None for any."""
    config = unwrap(model).config.get_text_config(decoder=True)
    return position_limit(config) if takes_no_padding_beyond(config) else None


def position_ids(attention_mask: Tensor) -> Tensor:
    """(batch, T) positions that count from the first real token, whatever the side of the padding."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
