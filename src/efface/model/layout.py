"""Where do the tokens of a batch stand when they go through the model? The one place where layouts differ.

The *logical* batch has a row for every sequence (`PairBatch`: chosen, rejected, passages), and all losses speak of it.
A layout says which tensors the model sees instead, and where in them each logical token is:

    plain    the rows as they are, right-padded
    shared   a pair is one sequence, prompt | chosen | rejected, so that its prompt is computed once; sequences are
             packed into rows of the length of the longest. A mask lets a continuation see its prompt and itself, and
             positions count on from the prompt in both.

        tokens      p0 p1 p2 c0 c1 r0 r1 r2
        positions    0  1  2  3  4  3  4  5
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from efface.data.batch import PairBatch
from efface.model.families import FULL, SHARING_ATTENTION, SLIDING, attention_of, kinds_of_layers, sliding_window
from efface.model.padding import position_ids

STEADY = 32  # tokens: in shorter rows the fused attention of a CPU takes other paths, that round otherwise
WORTH_PACKING = 0.8  # rows that remain: above it the bits of the plain layout are worth more

Segment = tuple[int, int, int]
"""(logical row, first column, end column)"""


@dataclass
class Layout:
    """What the model sees, and where the logical tokens are in it."""

    input_ids: Tensor
    """(R, S)"""
    attention_mask: Tensor | dict[str, Tensor]
    """(R, S), or (R, 1, S, S) as the model's attention adds or applies it, or such a mask for each kind of layer."""
    position_ids: Tensor
    """(R, S)"""
    place: Tensor
    """(rows, T) long: for each logical token its place in the flattened (R * S); anything at padding."""

    def take(self, states: Tensor, mask: Tensor) -> Tensor:
        """(N, d): `states` (R, S, d) at the N logical tokens that `mask` (rows, T) marks, in row-major order."""
        return states.flatten(0, 1)[self.place[mask]]


def plain_layout(
    input_ids: Tensor, attention_mask: Tensor, *, masked: bool = False, widest: int | None = None
) -> Layout:
    """The rows as they are.

    Args:
        masked: a token gets the same bits in every batch: padding is added where there is none, as transformers leaves
            a mask of ones out and the attention then rounds otherwise; and where rows are shorter than STEADY.
        widest: row that the model takes, padding included (`most_columns`); none is padded beyond it.
    """
    rows, columns = input_ids.shape
    if masked:
        more = max(STEADY - columns, int(bool(attention_mask.all())))
        if widest is not None:
            more = max(min(more, widest - columns), 0)
        input_ids, attention_mask = (
            F.pad(input_ids, (0, more), value=int(input_ids[0, 0])),
            F.pad(attention_mask, (0, more)),
        )
    width = input_ids.shape[1]
    at = torch.arange(columns, device=input_ids.device)
    place = torch.arange(rows, device=input_ids.device)[:, None] * width + at  # (rows, T)
    return Layout(input_ids, attention_mask, position_ids(attention_mask), place)


def shared_layout(batch: PairBatch, model: Any, rejected: bool = True, exact: bool = False) -> Layout:
    """Prompts computed once. See `can_share` for the models that take it.

    Args:
        model: whose configuration says how masks must look.
        rejected: False leaves the rejected continuations out (their `place` means nothing then).
        exact: prompts, chosen continuations and passages get the bits that they get in the plain layout. A sum over
            keys that begin elsewhere in their row may round otherwise, so then no row holds two groups.
    """
    groups = _groups(batch, rejected)
    lengths = [sum(map(_length, group)) for group in groups]
    width = max(*lengths, STEADY)
    rows = [[i] for i in range(len(groups))] if exact else pack(lengths, width)
    if len(rows) > WORTH_PACKING * len(groups):
        rows = [[i] for i in range(len(groups))]
    shape = (len(rows), width)
    source = torch.zeros(shape, dtype=torch.long)  # where in the logical batch a token comes from
    segment = torch.full(shape, -1)
    parent = torch.full(shape, -1)  # the segment that is seen besides one's own
    positions = torch.zeros(shape, dtype=torch.long)
    place = torch.zeros(batch["input_ids"].shape, dtype=torch.long)
    columns = place.shape[1]
    number = 0
    for row, members in enumerate(rows):
        at = 0
        for group in (groups[i] for i in members):
            prompt = number
            for logical, start, end in group:
                here = slice(at, at + end - start)
                source[row, here] = logical * columns + torch.arange(start, end)
                segment[row, here], parent[row, here] = number, prompt
                positions[row, here] = torch.arange(start, end)
                place[logical, start:end] = row * width + torch.arange(here.start, here.stop)
                number, at = number + 1, here.stop
            if len(group) > 1:  # the prompt is that of every continuation of the group
                first = group[0][2]
                for logical, _, _ in group[1:]:
                    place[logical, :first] = place[group[0][0], :first]
    device = batch["input_ids"].device
    sees = _sees(segment, parent)  # (R, S, S)
    masks = as_the_model_takes_it(sees.to(device), positions.to(device), model)
    ids = batch["input_ids"].flatten()[source.to(device)]
    return Layout(ids, masks, positions.to(device), place.to(device))


def _length(segment: Segment) -> int:
    return segment[2] - segment[1]


def _groups(batch: PairBatch, rejected: bool) -> list[list[Segment]]:
    """What belongs together: [prompt, chosen, rejected] of each pair, and each passage by itself."""
    n = batch["n_pairs"]
    ends = batch["attention_mask"].sum(1).tolist()
    starts = batch["continuation_mask"].int().argmax(1).tolist()  # the first token of the continuation
    sides = (0, n) if rejected else (0,)
    pairs = [[(i, 0, starts[i]), *((i + side, starts[i + side], ends[i + side]) for side in sides)] for i in range(n)]
    return pairs + [[(row, 0, ends[row])] for row in range(2 * n, len(ends))]


def pack(lengths: list[int], width: int) -> list[list[int]]:
    """Numbers of sequences, packed into rows of `width`: the longest first, each into the first row that has room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, free in enumerate(room) if free >= lengths[i]), None)
        if row is None:
            rows.append([])
            room.append(width)
            row = len(rows) - 1
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows


def _sees(segment: Tensor, parent: Tensor) -> Tensor:
    """(R, S, S) bool: does the query (first) see the key? What is to its left and in its own or its prompt's segment.

    Padding (segment -1) sees padding, so that no row of the attention is empty.
    """
    query, key = segment.unsqueeze(2), segment.unsqueeze(1)
    left = torch.ones(segment.shape[1], segment.shape[1], dtype=torch.bool).tril()
    return left & ((key == query) | (key == parent.unsqueeze(2)))


def as_the_model_takes_it(
    sees: Tensor, positions: Tensor, model: Any, seen: Tensor | None = None
) -> Tensor | dict[str, Tensor]:
    """Masks of shape (R, 1, S, K): one, or one for each kind of layer where a sliding window is shorter than needed.

    Args:
        sees: (R, S, K) bool: does the query see the key?
        positions: (R, S) of the queries.
        seen: (R, K) positions of the keys; None: they are the queries' own.
    """
    seen = positions if seen is None else seen
    config = model.config.get_text_config(decoder=True)

    def finished(mask: Tensor) -> Tensor:
        mask = mask.unsqueeze(1)
        if attention_of(config) == "sdpa":
            return mask
        bias = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device)
        return bias.masked_fill(~mask, torch.finfo(model.dtype).min)  # `eager` adds it

    window = sliding_window(config)
    if window is None or int(positions.max()) < window:
        return finished(sees)
    near = sees & (positions.unsqueeze(2) - seen.unsqueeze(1) < window)
    if FULL not in kinds_of_layers(config):
        return finished(near)
    return {FULL: finished(sees), SLIDING: finished(near)}


def why_not_shared(model: Any) -> str | None:
    """Why the shared layout does not fit `model`, or None if it does, as far as its configuration tells."""
    config = model.config.get_text_config(decoder=True)
    attention = attention_of(config)
    if attention not in SHARING_ATTENTION:
        return f"its attention is {attention!r}; {' or '.join(SHARING_ATTENTION)} take such a mask"
    others = kinds_of_layers(config) - {FULL, SLIDING}
    return f"it has layers of kind {', '.join(sorted(others))}" if others else None
