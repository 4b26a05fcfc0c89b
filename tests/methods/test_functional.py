"""Are the equations right? Against closed formulas, torch.distributions and hand-made examples."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from efface.data.batch import predicting_positions
from efface.methods.functional import LN2, confusion_loss, dann_ramp, gradient_reversal

seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Gradient reversal


@given(seed=seeds, strength=st.floats(0, 100, width=32))
def test_reversal_is_the_identity_forward_and_minus_lambda_backward(seed: int, strength: float) -> None:
    hidden, weight = normal(seed, 5, 4), normal(seed + 1, 4, 3)

    def gradient(reverse: bool) -> torch.Tensor:
        leaf = hidden.clone().requires_grad_()
        output = gradient_reversal(leaf, strength) if reverse else leaf
        assert torch.equal(output, hidden)
        torch.tanh(output @ weight).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    torch.testing.assert_close(gradient(True), -strength * gradient(False), rtol=1e-5, atol=0)


@given(seed=seeds)
def test_reversal_with_a_strength_of_its_own_per_token(seed: int) -> None:
    hidden, strength = normal(seed, 6, 4).requires_grad_(), normal(seed + 1, 6, 1).abs()
    strength[2] = 0.0
    outer = normal(seed + 2, 6, 4)
    (gradient_reversal(hidden, strength) * outer).sum().backward()
    torch.testing.assert_close(hidden.grad, -strength * outer)
    assert hidden.grad is not None and hidden.grad[2].abs().max() == 0


def test_reversal_leaves_the_discriminators_gradient_alone() -> None:
    hidden = normal(0, 5, 4).requires_grad_()
    weight = normal(1, 4).requires_grad_()
    (plain,) = torch.autograd.grad((hidden @ weight).sum(), weight)
    (reversed_,) = torch.autograd.grad((gradient_reversal(hidden, 7.0) @ weight).sum(), weight)
    assert torch.equal(plain, reversed_) and plain.abs().min() > 0


def test_reversal_keeps_the_precision_of_its_input() -> None:
    hidden = normal(0, 3, 4).bfloat16().requires_grad_()
    output = gradient_reversal(hidden, torch.ones(3, 1))  # a float32 strength
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16 and hidden.grad is not None and hidden.grad.dtype == torch.bfloat16


# The schedule and the confusion loss


@pytest.mark.parametrize(("progress", "value"), [(0.0, 0.0), (0.1, 0.46211716), (0.5, 0.98661430), (1.0, 0.99990920)])
def test_ramp(progress: float, value: float) -> None:
    assert dann_ramp(progress) == pytest.approx(value, abs=1e-8)


@given(st.floats(0, 1), st.floats(0, 1))
def test_ramp_rises_from_zero_to_less_than_one(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 0 <= dann_ramp(low) <= dann_ramp(high) < 1


def test_confusion_is_ln2_where_the_discriminator_cannot_tell() -> None:
    assert confusion_loss(torch.zeros(1)).item() == pytest.approx(LN2) == pytest.approx(math.log(2))


@given(st.floats(-40, 40).filter(lambda z: abs(z) > 1e-2))
def test_confusion_is_smallest_at_one_half_and_symmetric(z: float) -> None:
    logit = torch.tensor([z], dtype=torch.float64)
    loss = confusion_loss(logit)
    assert loss.item() > LN2
    torch.testing.assert_close(loss, confusion_loss(-logit))
    half = F.binary_cross_entropy_with_logits(logit, torch.full_like(logit, 0.5), reduction="none")
    torch.testing.assert_close(loss, half)


def test_confusion_gradient_points_to_zero() -> None:
    logits = torch.tensor([-3.0, 0.0, 2.0], requires_grad=True)
    confusion_loss(logits).sum().backward()
    torch.testing.assert_close(logits.grad, torch.sigmoid(logits.detach()) - 0.5)


# Positions


def test_predicting_positions_on_a_hand_made_example() -> None:
    # row 0: prompt a b, continuation c d; row 1: prompt a b c, continuation d; row 2: a, then b c, then padding
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 1, 0]], dtype=torch.bool)
    expected = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    assert torch.equal(predicting_positions(mask), expected)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=6))
def test_as_many_predictions_as_tokens(lengths: list[tuple[int, int]]) -> None:
    width = max(prompt + continuation for prompt, continuation in lengths)
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, (prompt, continuation) in enumerate(lengths):
        mask[row, prompt : prompt + continuation] = True
    predicting = predicting_positions(mask)
    assert torch.equal(
        predicting.nonzero() + torch.tensor([0, 1]), mask.nonzero()
    )  # in the same order, one to the left
