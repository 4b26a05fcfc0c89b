"""Is a model pushed toward its toxic copy the model at alpha 0, the copy at alpha 1, and the formula in between?"""

import math

import pytest
import torch
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from efface.errors import UserError
from efface.generation.decoding import Decoding
from efface.generation.generate import generate_ids
from efface.pairs.dexperts import DExperts, dexperts_source
from efface.pairs.sources.sample import sample_source

PROMPTS = ["The weather in the old town was", "She went", "You are a silly"]
DECODING = {"samples": 3, "temperature": 0.9, "top_p": 0.95, "top_k": 0, "max_new_tokens": 8}


@pytest.mark.parametrize("family", FAMILIES)
def test_at_zero_it_is_the_model_and_at_one_the_antiexpert(family: str) -> None:
    tokenizer = tiny_tokenizer()
    model, copy = tiny_model(family), tiny_model(family, seed=1)
    texts = [sample_source(each, tokenizer, **DECODING)(PROMPTS, 5) for each in (model, copy)]  # type: ignore[arg-type]
    pushed = [dexperts_source(model, copy, tokenizer, alpha=alpha, **DECODING)(PROMPTS, 5) for alpha in (0.0, 1.0)]
    assert pushed == texts and texts[0] != texts[1]


def formula(model: PreTrainedModel, copy: PreTrainedModel, prompt: str, alpha: float, steps: int) -> list[int]:
    """Greedy decoding by eq. 1, with a whole forward of both models for every token."""
    ids = list(tiny_tokenizer()(prompt)["input_ids"])
    start = len(ids)
    with torch.no_grad():
        for _ in range(steps):
            z, toxic = (each(input_ids=torch.tensor([ids])).logits[0, -1] for each in (model, copy))
            ids.append(int((z + alpha * (toxic - z)).argmax()))
            if ids[-1] == tiny_tokenizer().eos_token_id:
                break
    return ids[start:]


@pytest.mark.parametrize("alpha", [0.5, 2.0, 5.0])
@pytest.mark.parametrize(
    ("model", "copy"),
    [
        (tiny_model("llama"), tiny_model("llama", seed=1)),
        (tiny_model("gemma3"), tiny_model("gemma3", seed=1)),  # sliding windows of 8 tokens
        (tiny_model("gpt2"), tiny_model("llama", seed=1, num_hidden_layers=3)),  # only the vocabulary must agree
    ],
)
def test_the_formula(model: PreTrainedModel, copy: PreTrainedModel, alpha: float) -> None:
    both = DExperts(model, copy, alpha)
    found = generate_ids(both, tiny_tokenizer(), PROMPTS, Decoding(max_new_tokens=10))  # type: ignore[arg-type]
    assert [row[0].token_ids for row in found] == [formula(model, copy, prompt, alpha, 10) for prompt in PROMPTS]


@pytest.mark.parametrize("alpha", [-1.0, math.nan, math.inf])
def test_an_alpha_that_cannot_be(alpha: float) -> None:
    with pytest.raises(UserError, match=r"alpha=.*: it must be a number of at least 0"):
        DExperts(tiny_model("gpt2"), tiny_model("gpt2"), alpha)


def test_models_that_cannot_be_combined(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = tiny_model("gpt2"), tiny_model("gpt2", vocab_size=310)
    with pytest.raises(UserError, match="the model has 300 tokens and the anti-expert 310: their logits cannot"):
        DExperts(model, other, 1.0)
    monkeypatch.setattr(model, "_is_stateful", True)
    with pytest.raises(UserError, match=r"a gpt2 keeps more than keys and values .* Use the source antiexpert"):
        DExperts(model, model, 1.0)
