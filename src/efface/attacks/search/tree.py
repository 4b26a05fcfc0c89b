"""How do many prefixes before the same prompts go through a model? Each prefix once, and the prompts as its branches.

        prefix | prompt 1, target 1 | prompt 2, target 2 | ...       a branch sees the prefix and itself

The logical batch has a row for every prefix and branch, whatever the model sees. A model that takes no such mask reads
these rows as they are, each with its own copy of the prefix.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from efface.model.layout import STEADY, Layout, as_the_model_takes_it, pack, plain_layout
from efface.model.padding import pad_batch

PADDING = -1


def read_as_rows(
    starts: Sequence[Sequence[int]], branches: Sequence[Sequence[int]], pad: int, device: torch.device
) -> Layout:
    """Every start with every branch in a row of its own: B * K logical rows, those of a start one after the other."""
    rows = [[*start, *branch] for start in starts for branch in branches]
    return plain_layout(*pad_batch(rows, pad, device, left=False))


def read_as_trees(starts: Sequence[Sequence[int]], branches: Sequence[Sequence[int]], model: "object") -> Layout:
    """The same logical rows, each start and its branches together in one row that the model sees.

    Args:
        starts: at least one token each.
        model: whose configuration says how masks must look; it takes them, as `why_not_shared` says.
    """
    lengths = [len(start) + sum(map(len, branches)) for start in starts]
    width = max(*lengths, STEADY)
    packed = pack(lengths, width)
    shape = (len(packed), width)
    ids = torch.zeros(shape, dtype=torch.long)
    segment = torch.full(shape, PADDING)  # which start or branch of which tree a token is of
    parent = torch.full(shape, PADDING)  # the start of its tree
    positions = torch.zeros(shape, dtype=torch.long)
    longest = max(map(len, starts)) + max(map(len, branches))
    place = torch.zeros(len(starts) * len(branches), longest, dtype=torch.long)
    number = 0
    for row, members in enumerate(packed):
        at = 0
        for tree in members:
            start = starts[tree]
            root, first = number, slice(at, at + len(start))
            ids[row, first], segment[row, first], parent[row, first] = torch.tensor(list(start)), root, root
            positions[row, first] = torch.arange(len(start))
            at, number = first.stop, number + 1
            for k, branch in enumerate(branches):
                here = slice(at, at + len(branch))
                ids[row, here], segment[row, here], parent[row, here] = torch.tensor(list(branch)), number, root
                positions[row, here] = torch.arange(len(start), len(start) + len(branch))
                logical = tree * len(branches) + k
                place[logical, : len(start)] = row * width + torch.arange(first.start, first.stop)
                place[logical, len(start) : len(start) + len(branch)] = row * width + torch.arange(at, here.stop)
                at, number = here.stop, number + 1
    query, key = segment.unsqueeze(2), segment.unsqueeze(1)
    left = torch.ones(width, width, dtype=torch.bool).tril()
    sees: Tensor = left & ((key == query) | (key == parent.unsqueeze(2)))  # padding sees padding
    device = model.device  # type: ignore[attr-defined]
    masks = as_the_model_takes_it(sees.to(device), positions.to(device), model)
    return Layout(ids.to(device), masks, positions.to(device), place.to(device))
