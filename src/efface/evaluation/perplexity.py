"""What does ordinary text cost the model? Perplexity = exp( mean over tokens of -log p(token | tokens before it) ).

The documents are joined by a blank line into one stream, as is customary for WikiText-2, and read in windows. The
first token of the stream is not counted, every other one exactly once. A window holds `window` tokens and predicts
the token after each, so neighbouring disjoint windows share nothing but that the last target of one is the first
input of the next: the first counted token of a window has one token of context. A `stride` below `window` makes
windows overlap, and each then counts only the tokens that no earlier window has counted. Where the tokenizer itself
puts a BOS before a text, every window starts with it (Gemma is lost without one); it takes one place of the window.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from efface.checks import one_or_more
from efface.data.tokens import bos_prefix
from efface.errors import UserError
from efface.files.shapes import fill
from efface.generation.likelihood import token_nll
from efface.generation.processes import shared
from efface.model.copies import eval_mode
from efface.model.devices import doubled
from efface.model.head_check import check_head_once
from efface.model.padding import max_positions
from efface.model.vocabulary import pad_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEPARATOR = "\n\n"


@dataclass
class Perplexity:
    """Perplexity of a text under a model."""

    tokens: int
    """Counted tokens."""
    value: float
    window: int | None
    """None, as `stride`, in files of older versions."""
    stride: int | None

    @classmethod
    def of(cls, nll_sum: float, tokens: int, *, window: int, stride: int) -> "Perplexity":
        """exp(nll_sum / tokens), cut off at e^700 so that it stays a finite number for a broken model.

        Args:
            nll_sum: -log p of all counted tokens together, in nats.
        """
        return cls(tokens, math.exp(min(nll_sum / tokens, 700.0)), window, stride)

    def to_dict(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, block: dict[str, Any]) -> "Perplexity":
        """The block as read from a result file."""
        return fill(cls, block)


def perplexity(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    max_tokens: int | None = None,
    window: int = 1024,
    stride: int | None = None,
    batch_size: int = 4,
    progress: bool = False,
) -> Perplexity:
    """Perplexity of `texts`; see the top of this file for what is counted.

    Args:
        max_tokens: count only this many tokens from the start; None counts all.
        window: tokens a prediction may look at; never more than the model has positions.
        stride: from the start of one window to that of the next; None means disjoint windows.
        batch_size: windows at once (fewer when their logits would not fit); the result does not depend on it.

    Raises:
        UserError: if there is nothing to count or the settings cannot work.
        RunError: if the model's output is not finite.
    """
    text = read_windows(model, processing_class, texts, max_tokens=max_tokens, window=window, stride=stride)
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: all must be at least 1, and the stride at most what fits.")
    check_head_once(model)
    pad, windows = pad_id(processing_class, model), list(range(len(text.sequences)))
    batches = [windows[start : start + batch_size] for start in windows[::batch_size]]

    def of_batch(batch: list[int]) -> list[float]:
        """-log p of the counted tokens of each window."""
        losses = token_nll(model, [text.sequences[i] for i in batch], [text.counted[i] for i in batch], pad)
        return [doubled(one).sum().item() for one in losses]

    total = 0.0
    with eval_mode(model):
        found = shared(batches, of_batch, "perplexity", of=lambda: text.sequences, show=progress)
    for nll in found.values():
        total += nll
    return Perplexity.of(total, sum(text.counted), window=text.window, stride=text.stride)


@dataclass(frozen=True)
class Windows:
    """A text as a model reads it."""

    sequences: list[list[int]]
    """Token ids of each window, its last target among them."""
    counted: list[int]
    """How many of the last tokens of each are counted."""
    window: int
    stride: int


def read_windows(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    max_tokens: int | None = None,
    window: int = 1024,
    stride: int | None = None,
) -> Windows:
    """The windows of `texts`; arguments and errors as those of `perplexity`."""
    one_or_more("max_tokens", max_tokens)
    joined = SEPARATOR.join(texts)
    stream = list(processing_class(joined, add_special_tokens=False, verbose=False)["input_ids"])
    if max_tokens is not None:
        stream = stream[: max_tokens + 1]
    if len(stream) < 2:
        raise UserError(f"the text has {len(stream)} token(s) to count from: pass at least one text of two tokens.")
    limit = max_positions(model)
    window = window if limit is None else min(window, limit)
    prefix = bos_prefix(processing_class)
    room = window - len(prefix)
    stride = room if stride is None else stride
    if room < 1 or not 1 <= stride <= room:
        raise UserError(
            f"window={window}, stride={stride}: all must be at least 1, and the stride at most {room}, the tokens "
            "that fit in a window."
        )
    return Windows(*_windows(stream, prefix, room, stride), window=window, stride=stride)


def _windows(stream: list[int], prefix: list[int], room: int, stride: int) -> tuple[list[list[int]], list[int]]:
    """Token sequences, and how many of the last tokens of each are counted."""
    sequences, counted = [], []
    start, done = 0, 1  # `done` tokens of the stream are counted or, the first, left out
    while done < len(stream):
        # One token more than the model reads: the last one is only a target.
        end = min(start + room + 1, len(stream))
        sequences.append(prefix + stream[start:end])
        counted.append(end - done)
        start, done = start + stride, end
    return sequences, counted
