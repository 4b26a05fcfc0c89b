"""Do rounded weights lie on their grid, the nearest value of it each, and stay there?"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor

from efface.model.rounding import NORMAL_FLOAT, rounded


def weight_of(seed: int, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@given(
    seed=st.integers(0, 99), bits=st.integers(2, 8), group=st.sampled_from([0, 1, 3, 8]), columns=st.integers(1, 20)
)
def test_weights_lie_on_a_grid_at_most_half_a_step_away(
    scheme: str, seed: int, bits: int, group: int, columns: int
) -> None:
    weight = weight_of(seed, 4, columns)
    near = rounded(weight, bits, group, scheme)
    assert near.shape == weight.shape
    for old, new in zip(weight.split(group or columns, 1), near.split(group or columns, 1), strict=True):
        for row, values in zip(old.double(), new.double(), strict=True):
            low, high = (row.min(), row.max()) if scheme == "asymmetric" else (-row.abs().max(), row.abs().max())
            step = (high - low) / (2**bits - (1 if scheme == "asymmetric" else 2))
            assert (values - row).abs().max() <= step / 2 * (1 + 1e-4) + 1e-7
            if step > 0:
                codes = (values - low) / step
                assert (codes - codes.round()).abs().max() < 1e-3
            assert len(set(values.tolist())) <= 2**bits
    assert torch.equal(rounded(near, bits, group, scheme), near)


def test_normal_float_has_the_quantiles_of_a_normal_distribution_between_minus_one_and_one() -> None:
    # bitsandbytes: half of the levels on either side of an exact zero, one more above; each side by its quantiles.
    edge = 1 - (1 / 30 + 1 / 32) / 2
    above = norm.ppf(np.linspace(edge, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(edge, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([above, [0], below]))
    np.testing.assert_allclose(NORMAL_FLOAT, levels / levels.max(), atol=2e-7)


@given(seed=st.integers(0, 99), group=st.sampled_from([0, 1, 3, 8]), columns=st.integers(1, 20))
def test_normal_float_is_the_nearest_level(seed: int, group: int, columns: int) -> None:
    weight = weight_of(seed, 4, columns)
    near = rounded(weight, 4, group, "nf4")
    for old, new in zip(weight.split(group or columns, 1), near.split(group or columns, 1), strict=True):
        levels = torch.tensor(NORMAL_FLOAT) * old.abs().amax(1, keepdim=True)  # (4, 16)
        nearest = (old[:, :, None] - levels[:, None]).abs().amin(2)
        torch.testing.assert_close((new - old).abs(), nearest, rtol=1e-4, atol=1e-6)
    assert torch.equal(rounded(near, 4, group, "nf4"), near)
    assert torch.equal(rounded(torch.zeros(2, 5), 4, 0, "nf4"), torch.zeros(2, 5))


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_sixteen_bits_are_almost_nothing_lost_and_zeros_stay(scheme: str) -> None:
    weight = weight_of(0, 5, 100)
    assert (rounded(weight, 16, 64, scheme) - weight).abs().max() < 1e-4
    assert torch.equal(rounded(torch.zeros(2, 5), 4, 0, scheme), torch.zeros(2, 5))
    half = rounded(weight.bfloat16(), 8, 64, scheme)
    assert half.dtype == torch.bfloat16 and (half - weight).abs().max() < 0.04


def test_groups_have_scales_of_their_own() -> None:
    weight = torch.tensor([[0.1, 0.05, 100.0, 50.0]])
    assert rounded(weight, 4, 0)[0, :2].tolist() == [0.0, 0.0]
    torch.testing.assert_close(rounded(weight, 4, 2)[0, :2], torch.tensor([0.1, 0.4 / 7]))
    # 0.05 * 7 / 0.1 = 3.5 rounds to even: 4


@pytest.mark.parametrize(("scheme", "bits"), [("symmetric", 4), ("asymmetric", 3), ("nf4", 4)])
def test_groups_rounded_at_once_are_those_rounded_one_by_one(scheme: str, bits: int) -> None:
    weight = weight_of(0, 7, 96)
    for each in (weight, weight_of(1, 96, 7).t()):  # also as GPT-2 stores it
        parts = [rounded(part, bits, 0, scheme) for part in each.split(32, dim=1)]
        assert torch.equal(rounded(each, bits, 32, scheme), torch.cat(parts, dim=1))
