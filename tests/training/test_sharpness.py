"""Is a sharpness-aware step the two-pass formula?"""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from efface.training.sharpness import ascended


def linear(seed: int) -> nn.Linear:
    layer = nn.Linear(3, 2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


@given(seed=st.integers(0, 1000), rho=st.floats(0.01, 2.0))
def test_the_weights_stand_at_the_top_of_the_ball_and_come_back_to_the_bit(seed: int, rho: float) -> None:
    model, inputs = linear(seed), torch.randn(4, 3, generator=torch.Generator().manual_seed(seed + 1))

    def loss() -> torch.Tensor:
        return (model(inputs) ** 2).sum()

    before = [p.detach().clone() for p in model.parameters()]
    gradients = torch.autograd.grad(loss(), list(model.parameters()))
    length = torch.cat([g.flatten() for g in gradients]).norm()
    with ascended(model, loss, rho):
        for parameter, start, gradient in zip(model.parameters(), before, gradients, strict=True):
            torch.testing.assert_close(parameter.detach(), start + rho * gradient / length)
        assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(p, start) for p, start in zip(model.parameters(), before, strict=True))


def test_a_step_uses_the_gradient_at_the_top() -> None:
    # f(w) = w^4 at w = 1: the gradient there is 4, at the top of a ball of 0.5 it is 4 * 1.5^3 = 13.5.
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)

    def loss() -> torch.Tensor:
        return model.weight.pow(4).sum()

    with ascended(model, loss, 0.5):
        loss().backward()
    torch.testing.assert_close(model.weight.grad, torch.tensor([[13.5]]))
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[1 - 0.135]]))


def test_gradients_of_earlier_micro_batches_and_frozen_weights_stay() -> None:
    model = linear(0)
    model.bias.requires_grad_(False)
    model.weight.grad = torch.ones_like(model.weight)
    bias = model.bias.clone()
    with ascended(model, lambda: model(torch.ones(1, 3)).sum(), 1.0):
        assert torch.equal(model.weight.grad, torch.ones_like(model.weight))
        assert torch.equal(model.bias, bias)


def test_where_the_gradient_is_zero_nothing_moves() -> None:
    model = linear(0)
    before = model.weight.detach().clone()
    with ascended(model, lambda: 0.0 * model(torch.ones(1, 3)).sum(), 1.0):
        assert torch.equal(model.weight, before)
