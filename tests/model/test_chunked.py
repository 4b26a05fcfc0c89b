"""Do KL and log-probabilities in pieces equal the plain formulas, in value, gradient and memory?"""

import math
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import formulas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model
from torch import Tensor

from efface.model import chunked
from efface.model.chunked import token_log_probabilities, weighted_kl
from efface.model.forward import Head

seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def soft_cap(scores: Tensor) -> Tensor:
    return 5 * torch.tanh(scores / 5)


FINISHES: dict[str, Callable[[Tensor], Tensor]] = {"plain": lambda scores: scores, "soft cap": soft_cap}


def head_with(weight: Tensor, bias: Tensor | None, finish: Callable[[Tensor], Tensor]) -> Head:
    return Head(SimpleNamespace(weight=weight, bias=bias), finish)


def head_of(seed: int, words: int, width: int, *, bias: bool = False, finish: str = "plain") -> Head:
    weight = normal(seed, words, width).requires_grad_()
    return head_with(weight, normal(seed + 1, words).requires_grad_() if bias else None, FINISHES[finish])


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "PIECE", 3 * 17)  # three tokens of a vocabulary of 17


def plain_kl(hidden: Tensor, head: Head, states: Tensor, reference_head: Head) -> Tensor:
    return formulas.token_kl(reference_head(states).detach(), head(hidden))


# KL


@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize("bias", [False, True])
@given(seed=seeds, n=st.integers(1, 8))
def test_kl_and_its_gradients_equal_the_formula(bias: bool, finish: str, seed: int, n: int) -> None:
    head, fixed = (head_of(seed + i, 17, 4, bias=bias, finish=finish) for i in (0, 10))
    hidden, states = normal(seed + 20, n, 4).requires_grad_(), normal(seed + 21, n, 4)
    weights = normal(seed + 22, n).abs()
    inputs = [tensor for tensor in (hidden, head.weight, head.bias) if tensor is not None]
    expected = plain_kl(hidden, head, states, fixed)
    total, kl = weighted_kl(hidden, head, states, fixed, weights)
    assert not kl.requires_grad and kl.min() >= -1e-12
    torch.testing.assert_close(kl, expected.detach())
    torch.testing.assert_close(total, (weights * expected).sum())
    gradients = torch.autograd.grad(3 * total, inputs)
    for found, direct in zip(gradients, torch.autograd.grad(3 * (weights * expected).sum(), inputs), strict=True):
        torch.testing.assert_close(found, direct)


@pytest.mark.parametrize("finish", FINISHES)
def test_kl_gradcheck(finish: str) -> None:
    head, fixed = (head_of(i, 17, 4, bias=True, finish=finish) for i in (0, 10))
    states, weights = normal(21, 5, 4), normal(22, 5).abs()

    def total(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return weighted_kl(hidden, head_with(weight, bias, head.finish), states, fixed, weights)[0]

    hidden = normal(20, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(total, (hidden, head.weight, head.bias))


def test_kl_has_the_reference_first() -> None:
    identity = head_with(torch.eye(2), None, FINISHES["plain"])
    sure, unsure = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    p = 1 / (1 + math.exp(-4))
    one = torch.ones(1)
    assert weighted_kl(sure, identity, unsure, identity, one)[0].item() == pytest.approx(
        0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p))
    )
    assert weighted_kl(unsure, identity, sure, identity, one)[0].item() == pytest.approx(
        p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    )


def test_kl_is_zero_with_a_zero_gradient_at_the_reference() -> None:
    head = head_of(0, 17, 4)
    hidden = normal(1, 6, 4).requires_grad_()
    total, kl = weighted_kl(hidden, head, hidden.detach(), head.frozen(), torch.ones(6))
    assert kl.abs().max() == 0
    for gradient in torch.autograd.grad(total, (hidden, head.weight)):
        assert gradient.abs().max() < 1e-12


def test_what_is_not_trained_gets_no_gradient_and_costs_none() -> None:
    head, states, weights = head_of(0, 17, 4).frozen(), normal(2, 6, 4), torch.ones(6)
    total, _ = weighted_kl(normal(1, 6, 4), head, states, head, weights)
    assert not total.requires_grad
    hidden = normal(1, 6, 4).requires_grad_()
    weighted_kl(hidden, head, states, head, weights)[0].backward()
    assert hidden.grad is not None and head.weight.grad is None


def test_kl_of_nothing_is_zero() -> None:
    head = head_of(0, 17, 4)
    hidden = torch.zeros(0, 4, dtype=torch.float64, requires_grad=True)
    total, kl = weighted_kl(hidden, head, hidden.detach(), head.frozen(), torch.zeros(0))
    total.backward()
    assert (
        total.item() == 0 and kl.shape == (0,) and head.weight.grad is not None and head.weight.grad.abs().sum() == 0
    )


# Log-probabilities


@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize("bias", [False, True])
@given(seed=seeds, n=st.integers(1, 8))
def test_log_probabilities_and_their_gradients_equal_the_formula(bias: bool, finish: str, seed: int, n: int) -> None:
    head = head_of(seed, 17, 4, bias=bias, finish=finish)
    hidden = normal(seed + 20, n, 4).requires_grad_()
    targets = torch.randint(17, (n,), generator=torch.Generator().manual_seed(seed))
    inputs = [tensor for tensor in (hidden, head.weight, head.bias) if tensor is not None]
    found = token_log_probabilities(hidden, head, targets)
    expected = formulas.token_log_probabilities(head(hidden), targets)
    torch.testing.assert_close(found, expected)
    # A loss that is not linear in them, as DPO's is not.
    gradients = torch.autograd.grad(torch.sigmoid(found.sum()), inputs)
    for mine, direct in zip(gradients, torch.autograd.grad(torch.sigmoid(expected.sum()), inputs), strict=True):
        torch.testing.assert_close(mine, direct)


def test_log_probabilities_gradcheck() -> None:
    head, targets = head_of(0, 17, 4, bias=True, finish="soft cap"), torch.tensor([0, 16, 3, 3, 9])

    def found(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return token_log_probabilities(hidden, head_with(weight, bias, head.finish), targets)

    assert torch.autograd.gradcheck(found, (normal(20, 5, 4).requires_grad_(), head.weight, head.bias))


# Models and precision


@pytest.mark.parametrize("family", ["gemma2", "phi", "opt"])
def test_through_a_models_own_head(family: str) -> None:
    model = tiny_model(family).double()
    head = Head.of(model)
    width = head.weight.shape[1]
    hidden, states = normal(0, 7, width).requires_grad_(), normal(1, 7, width)
    weights = normal(2, 7).abs()
    total, _ = weighted_kl(hidden, head, states, head.frozen(), weights)
    expected = (weights * plain_kl(hidden, head, states, head.frozen())).sum()
    torch.testing.assert_close(total, expected)
    inputs = (hidden, head.weight)
    for mine, direct in zip(torch.autograd.grad(total, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(mine, direct)


def test_half_precision_and_autocast() -> None:
    weight, hidden, states = (
        normal(i, *shape, dtype=torch.float32) for i, shape in enumerate([(17, 4), (7, 4), (7, 4)])
    )
    fixed = head_with(weight.clone(), None, FINISHES["plain"])
    exact, exact_kl = weighted_kl(hidden, fixed, states, fixed, torch.ones(7))
    half = head_with(weight.bfloat16(), None, FINISHES["plain"])
    _, kl = weighted_kl(hidden.bfloat16(), half, states.bfloat16(), half, torch.ones(7))
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl, exact_kl, rtol=0.2, atol=0.05)
    trained = head_with(weight.clone().requires_grad_(), None, FINISHES["plain"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = weighted_kl(hidden.requires_grad_(), trained, states, fixed, torch.ones(7))
    total.backward()
    torch.testing.assert_close(total, exact, rtol=0.1, atol=0.05)
    assert hidden.grad is not None and hidden.grad.dtype == torch.float32
    assert trained.weight.grad is not None and trained.weight.grad.dtype == torch.float32


# Memory

MEASURE = """
import resource, sys, torch
from types import SimpleNamespace
from efface.model.chunked import token_log_probabilities, weighted_kl
from efface.model.forward import Head
tokens, words, width = 512, 262144, 8
head = Head(SimpleNamespace(weight=torch.randn(words, width, requires_grad=True), bias=None), lambda scores: scores)
fixed = Head(SimpleNamespace(weight=torch.randn(words, width), bias=None), lambda scores: scores)
hidden = torch.randn(tokens, width, requires_grad=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[1] == "kl":
    loss = weighted_kl(hidden, head, torch.randn(tokens, width), fixed, torch.ones(tokens))[0]
else:
    loss = token_log_probabilities(hidden, head, torch.zeros(tokens, dtype=torch.long)).sum()
loss.backward()
assert hidden.grad.abs().sum() > 0
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (4 * tokens * words))
"""


@pytest.mark.parametrize("what", ["kl", pytest.param("log-probabilities", marks=pytest.mark.full)])
def test_peak_memory_at_a_vocabulary_of_262144(what: str) -> None:
    """512 tokens: one plain tensor of logits would be 0.54 GB, and the plain formula holds several of them."""
    done: Any = subprocess.run([sys.executable, "-c", MEASURE, what], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.9  # pieces of 64 tokens, a few tensors each: all together less than one whole
