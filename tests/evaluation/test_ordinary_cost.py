"""Does one reading of a text say what `kl_to_reference` and `perplexity` say, each of its own tokens?"""

from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from efface.errors import UserError
from efface.evaluation.divergence import kl_to_reference
from efface.evaluation.ordinary_cost import OrdinaryCost
from efface.evaluation.perplexity import perplexity

TEXTS = [
    "The history of the town is the history of its river and its people, who were silent.",
    "She went to the market and bought bread, apples and a little cheese. They said nothing.",
] * 20


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("limits", [(None, None), (None, 90), (300, 90), (90, 300), (40, 40)])
@pytest.mark.parametrize("bos", [False, True])
def test_the_figures_are_those_of_a_reading_each(
    family: str, limits: tuple[int | None, int | None], bos: bool
) -> None:
    base, model, tokenizer = tiny_model(family), tiny_model(family, seed=1), tiny_tokenizer(add_bos=bos)
    ordinary = OrdinaryCost(base, tokenizer, TEXTS, max_tokens=limits[0], max_kl_tokens=limits[1])
    found = ordinary.of(model)
    assert found.kl == pytest.approx(kl_to_reference(model, base, tokenizer, TEXTS, max_tokens=limits[1]), rel=1e-5)
    assert found.perplexity == pytest.approx(perplexity(model, tokenizer, TEXTS, max_tokens=limits[0]).value, rel=1e-5)
    of_base = perplexity(base, tokenizer, TEXTS, max_tokens=limits[0]).value
    assert ordinary.base_perplexity == pytest.approx(of_base, rel=1e-5)
    assert len(ordinary.text.sequences) > 1 or max(limits[0] or 0, limits[1] or 0) == 40


def test_the_base_itself_costs_nothing_and_reading_leaves_no_trace() -> None:
    base, model = tiny_model("llama"), tiny_model("llama").train()
    ordinary = OrdinaryCost(base, tiny_tokenizer(), TEXTS, max_tokens=60)
    found = ordinary.of(model)
    assert found.kl == pytest.approx(0, abs=1e-6) and found.perplexity == pytest.approx(ordinary.base_perplexity)
    assert found == ordinary.of(model)  # what is kept of the base is kept once
    assert model.training and all(one.requires_grad and one.grad is None for one in model.parameters())


def test_a_broken_model_is_an_answer_and_bad_input_is_refused() -> None:
    def broken() -> Any:
        model = tiny_model("llama")
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)
        return model

    ordinary = OrdinaryCost(tiny_model("llama"), tiny_tokenizer(), TEXTS, max_tokens=60)
    found = ordinary.of(broken())
    assert found.kl is None and found.perplexity is None
    with pytest.raises(UserError, match="a vocabulary of 310 and reference one of 300"):
        ordinary.of(tiny_model("llama", vocab_size=310))
    with pytest.raises(UserError, match="max_kl_tokens=0"):
        OrdinaryCost(tiny_model("llama"), tiny_tokenizer(), TEXTS, max_kl_tokens=0)
