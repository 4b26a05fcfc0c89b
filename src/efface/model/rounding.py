"""How are weights moved to the nearest of few values? Round-to-nearest, a scale for each group of neighbours.

For each group of `group_size` neighbours in an output row of a linear map W, with b bits:

    symmetric     W' = a c / m,               c = round(m W / a),                a = max |W|,          m = 2^(b-1) - 1
    asymmetric    W' = lo + (hi - lo) c / m,  c = round(m (W - lo) / (hi - lo)), lo, hi = min W, max W,  m = 2^b - 1
    nf4           W' = a n(W / a),            n: the nearest of 16 quantiles of a normal distribution (Dettmers et al.
                                              2023, arXiv 2305.14314, appendix E), 4 bits

(like Q8_0 and Q4_1 of llama.cpp and NF4 of bitsandbytes, but a, lo and hi keep the model's precision).
"""

import torch
from torch import Tensor

SCHEMES = ("symmetric", "asymmetric", "nf4")
NORMAL_FLOAT = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The 16 levels of NF4."""


def rounded(weight: Tensor, bits: int, group_size: int = 64, scheme: str = "symmetric") -> Tensor:
    """(out, in) -> (out, in): each group's weights moved to the nearest of at most 2^bits values: equally spaced, or
    those of NF4.

    Computed in float32 or better and returned in the dtype of `weight`. To round again changes nothing, as long as
    the dtype tells the values apart: the ends of a group's grid are weights of its own and stay as they are.

    Args:
        bits: at least 2; 4 for nf4.
        group_size: neighbours in a row, of which the last group may have fewer; 0 for the whole row.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    round_group = {"symmetric": _symmetric, "asymmetric": _asymmetric, "nf4": _normal_float}[scheme]
    wide, width = weight.to(dtype), group_size or weight.shape[1]
    if weight.shape[1] % width == 0:  # all groups at once: a group is a row like any other
        return round_group(wide.reshape(-1, width), bits).view(weight.shape).to(weight.dtype)
    return torch.cat([round_group(group, bits) for group in wide.split(width, dim=1)], dim=1).to(weight.dtype)


def _symmetric(group: Tensor, bits: int) -> Tensor:
    levels = 2 ** (bits - 1) - 1
    top = group.abs().amax(1, keepdim=True)  # (out, 1)
    codes = (group / _or_one(top) * levels).round()
    return codes / levels * top  # in this order, so that the outermost code gives `top` exactly


def _asymmetric(group: Tensor, bits: int) -> Tensor:
    levels = 2**bits - 1
    low, high = group.amin(1, keepdim=True), group.amax(1, keepdim=True)  # (out, 1)
    codes = ((group - low) / _or_one(high - low) * levels).round()
    return torch.lerp(low, high, codes / levels)  # exact at both ends


def _normal_float(group: Tensor, bits: int) -> Tensor:
    assert bits == 4
    levels = group.new_tensor(NORMAL_FLOAT)  # (16,)
    top = group.abs().amax(1, keepdim=True)  # (out, 1)
    codes = torch.bucketize((group / _or_one(top)).contiguous(), (levels[1:] + levels[:-1]) / 2)
    return levels[codes] * top


def _or_one(width: Tensor) -> Tensor:
    """Where all weights of a group are the same, any divisor will do."""
    return torch.where(width > 0, width, torch.ones_like(width))
