"""Does a tied embedding get the gradient that autograd would give it, without a dense one for the lookup?"""

import pytest
import torch
from tiny import FAMILIES, tiny_model
from torch import Tensor

from efface.model.tied import sparse_lookup

IDS = torch.tensor([[3, 5, 5, 7, 0], [7, 7, 1, 2, 9]])


def gradient(model: torch.nn.Module, aside: bool, times: int = 2) -> Tensor:
    """Of the tied weight, after some backwards without zeroing."""
    model.zero_grad()
    for i in range(times):
        if aside:
            with sparse_lookup(model):
                logits = model(IDS + i).logits
        else:
            logits = model(IDS + i).logits
        logits.log_softmax(-1)[..., 4].sum().backward()
    weight = model.get_input_embeddings().weight
    assert weight.grad is not None
    return weight.grad.clone()


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_gradients(family: str) -> None:
    model = tiny_model(family).eval()
    embedding = model.get_input_embeddings()
    weight = embedding.weight
    expected, found = gradient(model, aside=False), gradient(model, aside=True)
    assert expected[IDS.flatten()].abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert embedding.weight is weight and not embedding.sparse and not found.is_sparse


def test_no_dense_gradient_of_the_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tied: what the lookup sends is sparse. Untied: nothing is changed."""
    seen: list[bool] = []
    plain = torch.nn.functional.embedding

    def spy(*args: object, **kwargs: object) -> Tensor:
        output = plain(*args, **kwargs)  # type: ignore[arg-type]
        seen.append(bool(args[6] if len(args) > 6 else kwargs.get("sparse", False)))
        return output

    monkeypatch.setattr(torch.nn.functional, "embedding", spy)
    tied = [family for family in FAMILIES if tiny_model(family).config.tie_word_embeddings]
    assert tied and len(tied) < len(FAMILIES)
    for family in FAMILIES:
        model = tiny_model(family)
        seen.clear()
        with sparse_lookup(model):
            model(IDS)
        assert seen[0] == (family in tied), family


@pytest.mark.parametrize("first", ["lookup", "head"])
def test_whichever_gradient_comes_first(first: str) -> None:
    model = tiny_model("gpt2").eval()
    weight = model.get_input_embeddings().weight
    with sparse_lookup(model):
        embedded = model.get_input_embeddings()(IDS)
    losses = {"lookup": embedded.square().sum(), "head": (weight.sum(1) ** 2).sum()}
    losses.pop(first).backward()
    next(iter(losses.values())).backward()
    expected = 2 * weight.sum(1, keepdim=True).expand_as(weight).clone()
    expected.index_add_(0, IDS.flatten(), 2 * weight[IDS.flatten()])
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, expected.detach())


def test_nothing_to_do() -> None:
    """A frozen embedding, no gradients, a wrapper: the model stays as it is."""
    model = tiny_model("gpt2")
    embedding = model.get_input_embeddings()
    weight = embedding.weight
    with torch.no_grad(), sparse_lookup(model):
        assert embedding.weight is weight
    with sparse_lookup(torch.nn.DataParallel(model)):
        assert embedding.weight is weight
    weight.requires_grad_(False)
    with sparse_lookup(model):
        assert embedding.weight is weight
