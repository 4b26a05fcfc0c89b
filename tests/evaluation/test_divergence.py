"""Is the KL to the reference what its formula says, zero for the reference itself, and read in the windows of
perplexity?
"""

import copy
from typing import Any

import pytest
import torch
from formulas import token_kl
from tiny import MAX_POSITIONS, tiny_model, tiny_tokenizer

from efface.errors import RunError, UserError
from efface.evaluation.divergence import kl_to_reference
from efface.evaluation.perplexity import read_windows

TEXTS = [
    "The history of the town is the history of its river and its people, who were silent.",
    "She went to the market and bought bread, apples and a little cheese. They said nothing.",
] * 3


def plain(model: Any, reference: Any, **how: Any) -> float:
    """The formula, from whole logits."""
    text = read_windows(model, tiny_tokenizer(), TEXTS, **how)
    found = []
    for ids, counted in zip(text.sequences, text.counted, strict=True):
        with torch.no_grad():
            ours, theirs = (one(input_ids=torch.tensor([ids[:-1]])).logits[0, -counted:] for one in (model, reference))
        found.append(token_kl(theirs, ours))
    return float(torch.cat(found).mean())


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_it_is_the_plain_formula_in_its_direction(family: str) -> None:
    model, reference = tiny_model(family), tiny_model(family, seed=1)
    found = kl_to_reference(model, reference, tiny_tokenizer(), TEXTS, window=40)
    assert found == pytest.approx(plain(model, reference, window=40), rel=1e-4)
    assert found != pytest.approx(plain(reference, model, window=40), rel=3e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_is_zero_for_the_reference_and_grows_along_an_edit(family: str) -> None:
    reference, edited = tiny_model(family), tiny_model(family)
    assert kl_to_reference(edited, reference, tiny_tokenizer(), TEXTS) == pytest.approx(0, abs=1e-6)
    assert kl_to_reference(reference, reference, tiny_tokenizer(), TEXTS) == pytest.approx(0, abs=1e-6)
    noise = [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) for i, p in enumerate(edited.parameters())
    ]
    found = []
    for _ in range(3):
        with torch.no_grad():
            for parameter, step in zip(edited.parameters(), noise, strict=True):
                parameter.add_(0.003 * step)
        found.append(kl_to_reference(edited, reference, tiny_tokenizer(), TEXTS))
    assert 0 < found[0] < found[1] < found[2]


def test_windows_and_tokens_are_those_of_perplexity() -> None:
    model, reference = tiny_model("llama"), tiny_model("llama", seed=1)
    for how in ({"max_tokens": 30}, {"max_tokens": None, "window": 16}, {"max_tokens": 50, "window": 7}):
        found = kl_to_reference(model, reference, tiny_tokenizer(), TEXTS, **how)
        assert found == pytest.approx(plain(model, reference, **how), rel=1e-4)
    with_bos = kl_to_reference(model, reference, tiny_tokenizer(add_bos=True), TEXTS, max_tokens=30)
    assert with_bos != pytest.approx(kl_to_reference(model, reference, tiny_tokenizer(), TEXTS, max_tokens=30))
    longer = kl_to_reference(model, reference, tiny_tokenizer(), TEXTS, window=10 * MAX_POSITIONS)
    assert longer == kl_to_reference(model, reference, tiny_tokenizer(), TEXTS, window=MAX_POSITIONS)


def test_modes_and_gradients_are_left_as_they_were() -> None:
    model, reference = tiny_model("llama").train(), tiny_model("llama", seed=1)
    kl_to_reference(model, reference, tiny_tokenizer(), TEXTS, max_tokens=20)
    assert model.training and not reference.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_what_cannot_work_is_said_in_a_line() -> None:
    model = tiny_model("llama")
    with pytest.raises(UserError, match="a vocabulary of 300 and reference one of 310"):
        kl_to_reference(model, tiny_model("llama", vocab_size=310), tiny_tokenizer(), TEXTS)
    with pytest.raises(UserError, match="two tokens"):
        kl_to_reference(model, model, tiny_tokenizer(), ["a"])
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(RunError, match="not finite"):
        kl_to_reference(broken, model, tiny_tokenizer(), TEXTS)
