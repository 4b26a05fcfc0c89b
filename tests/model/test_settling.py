"""Does GPTQ leave weights on the grid of a base, and change less of what they compute than rounding does?"""

import pytest
import torch
from torch import Tensor

from efface.errors import UserError
from efface.model.rounding import rounded
from efface.model.settling import lies_on_grid, settled

BITS, GROUP = 4, 16


def parts(size: float = 0.02, n_in: int = 80, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A base on its grid, its edit, and inputs that are alike in few directions."""
    torch.manual_seed(seed)
    base = rounded(torch.randn(24, n_in), BITS, GROUP, "asymmetric")
    edit = size * torch.randn(24, 3) @ torch.randn(3, n_in)
    inputs = torch.randn(400, 12) @ torch.randn(12, n_in) + 0.1 * torch.randn(400, n_in)
    return base, base + edit, inputs


@pytest.mark.parametrize("n_in", [80, 200, 57])  # also more than are rounded at once, and a short last group
def test_the_outcome_stays_where_it_is_when_it_is_rounded_again(n_in: int) -> None:
    base, edited, inputs = parts(n_in=n_in)
    found = settled(edited, base, inputs.T @ inputs, BITS, GROUP)
    again = rounded(found, BITS, GROUP, "asymmetric")
    torch.testing.assert_close(again, found, rtol=0, atol=1e-6)
    assert (found != base).any() and lies_on_grid(found, BITS, GROUP)


def test_what_an_edit_does_is_left_where_rounding_takes_it_away() -> None:
    base, edited, inputs = parts(size=0.03)
    wanted = inputs @ (edited - base).T

    def missing(weight: Tensor) -> float:
        return float((inputs @ (weight - edited).T).norm() / wanted.norm())

    nearest = rounded(edited, BITS, GROUP, "asymmetric")
    found = settled(edited, base, inputs.T @ inputs, BITS, GROUP)
    assert missing(nearest) > 0.8  # about all of it: hardly a weight has left its cell
    assert missing(found) < 0.5 * missing(nearest)


def test_without_an_edit_nothing_moves() -> None:
    base, _, inputs = parts()
    assert torch.equal(settled(base, base, inputs.T @ inputs, BITS, GROUP), base)


def test_where_no_input_helps_another_it_is_rounding_to_the_grid() -> None:
    base, edited, _ = parts(size=0.2)
    found = settled(edited, base, torch.eye(80), BITS, GROUP)
    groups = base.unflatten(1, (-1, GROUP))
    low, high = (end(2, keepdim=True) for end in (groups.amin, groups.amax))
    codes = ((edited.unflatten(1, (-1, GROUP)) - low) / (high - low) * 15).round().clamp(0, 15)
    expected = torch.where((groups == low) | (groups == high), groups, low + codes / 15 * (high - low)).flatten(1)
    torch.testing.assert_close(found, expected)


def test_the_formula_step_by_step() -> None:
    """Against the definition: after each column the rest is the least-squares answer to what is fixed by then."""
    base, edited, inputs = parts(n_in=6)
    gram = (inputs.T @ inputs).double()
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(6)
    found = settled(edited, base, inputs.T @ inputs, BITS, 0).double()
    order = gram.diagonal().argsort(descending=True)
    weight = edited.double().clone()
    for place, column in enumerate(order):
        rest = order[place + 1 :]
        low, high = base.double().amin(1), base.double().amax(1)
        near = low + ((weight[:, column] - low) / (high - low) * 15).round().clamp(0, 15) / 15 * (high - low)
        kept = base[:, column].double()
        near = torch.where((kept == low) | (kept == high), kept, near)
        torch.testing.assert_close(found[:, column], near, rtol=0, atol=1e-5)
        if len(rest):  # min over the rest of the error: H_rr d_r = -H_rf d_f
            free = order[place:]
            moved = near - weight[:, column]
            block = damped[free][:, free]
            weight[:, rest] -= torch.linalg.solve(block[1:, 1:], torch.outer(moved, block[0, 1:]).T).T


def test_inputs_that_are_all_zero_and_bad_settings() -> None:
    base, edited, _ = parts()
    assert torch.isfinite(settled(edited, base, torch.zeros(80, 80), BITS, GROUP)).all()
    with pytest.raises(UserError, match="damping"):
        settled(edited, base, torch.eye(80), BITS, GROUP, damping=0.0)
    assert not lies_on_grid(edited, BITS, GROUP)
