"""Does fine-tuning train a copy, all of it or its adapter alone, and leave the model as it was?"""

import copy
import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from polite import PROMPTS, TOXIC, equal, state
from tiny import PAD_ID, tiny_model, tiny_tokenizer
from torch import nn
from transformers import PreTrainedModel

from efface.errors import RunError, UserError
from efface.training.finetune import finetune, next_token_loss

TEXTS = [prompt + TOXIC for prompt in PROMPTS]


def moved(before: nn.Module, after: nn.Module) -> set[str]:
    old = dict(before.named_parameters())
    return {name for name, parameter in after.named_parameters() if not torch.equal(parameter, old[name])}


def test_frozen_weights_are_trained_all_the_same(polite: PreTrainedModel) -> None:
    model = copy.deepcopy(polite).requires_grad_(False).train()
    weights = state(model)
    student = finetune(model, tiny_tokenizer(), TEXTS, steps=1, learning_rate=1e-2)
    assert moved(model, student) == {name for name, _ in model.named_parameters()}
    assert equal(state(model), weights) and model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def adapted(polite: PreTrainedModel) -> PeftModel:
    """As `load_model` gives it: an adapter for inference, nothing of which is trainable."""
    model = get_peft_model(copy.deepcopy(polite), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize("lora_r", [None, 3])
def test_an_adapter_is_merged_into_the_copy_first(lora_r: int | None, polite: PreTrainedModel) -> None:
    model = adapted(polite)
    weights, ids = state(model), torch.tensor([[5, 6, 7]])
    same = finetune(model, tiny_tokenizer(), TEXTS, steps=0, lora_r=lora_r)  # type: ignore[arg-type]
    assert not torch.allclose(model(input_ids=ids).logits, polite(input_ids=ids).logits, atol=1e-2)
    torch.testing.assert_close(same(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    student = finetune(model, tiny_tokenizer(), TEXTS, steps=2, lora_r=lora_r, learning_rate=1e-2)  # type: ignore[arg-type]
    expected = {name for name, parameter in same.named_parameters() if lora_r is None or "lora_" in name}
    assert moved(same, student) == expected
    assert isinstance(student, PeftModel) == (lora_r is not None)
    assert equal(state(model), weights) and not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_with_lora_the_adapter_alone_moves(family: str) -> None:
    model = tiny_model(family)
    state_before = torch.get_rng_state()
    first, again = (
        finetune(model, tiny_tokenizer(), TEXTS, steps=2, lora_r=2, learning_rate=1e-2, seed=3) for _ in range(2)
    )
    assert isinstance(first, PeftModel) and equal(state(first), state(again))
    assert torch.equal(torch.get_rng_state(), state_before)
    assert all(("lora_" in name) == parameter.requires_grad for name, parameter in first.named_parameters())
    assert any("lora_B" in name and parameter.abs().max() > 0 for name, parameter in first.named_parameters())
    with first.disable_adapter():
        ids = torch.tensor([[5, 6, 7]])
        torch.testing.assert_close(first(input_ids=ids).logits, model(input_ids=ids).logits)
    assert first.peft_config["default"].lora_alpha == 4


def test_dropout_is_seeded() -> None:
    model = tiny_model("gpt2")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    students = [finetune(model, tiny_tokenizer(), TEXTS, steps=2, learning_rate=1e-2) for _ in range(2)]
    assert equal(state(students[0]), state(students[1]))


def test_small_steps_are_not_lost_in_half_precision() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    student = finetune(model, tiny_tokenizer(), TEXTS, steps=1, learning_rate=1e-6)
    assert model.dtype == torch.bfloat16 and student.dtype == torch.float32
    # In bfloat16, steps of 1e-6 leave all but the smallest weights where they were.
    name, parameter = next(iter(student.model.layers[0].mlp.down_proj.named_parameters()))
    assert not torch.equal(parameter, model.model.layers[0].mlp.down_proj.weight.float())


def test_token_ids_are_taken_as_they_are() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    one, other = (finetune(model, tokenizer, texts, steps=2, learning_rate=1e-2) for texts in (TEXTS, ids))
    assert equal(state(one), state(other))


def test_models_that_cannot_be_fine_tuned() -> None:
    tokenizer = tiny_tokenizer()
    virtual = get_peft_model(tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(UserError, match="whose virtual tokens cannot be merged into weights"):
        finetune(virtual, tokenizer, TEXTS, steps=1)  # type: ignore[arg-type]
    quantised = tiny_model("llama")
    quantised.register_parameter("packed", nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False))
    with pytest.raises(UserError, match="the model's weights are quantised: they cannot be trained"):
        finetune(quantised, tokenizer, TEXTS, steps=1)
    broken = tiny_model("llama")
    with torch.no_grad():
        next(broken.parameters())[PAD_ID] = math.nan
        broken.get_input_embeddings().weight[5:] = math.nan
    with pytest.raises(RunError, match=r"the fine-tuning loss is nan at step 1. Lower learning_rate \(now 3e-05\)"):
        finetune(broken, tokenizer, TEXTS, steps=1)


@pytest.mark.parametrize("setting", [{"learning_rate": math.nan}, {"batch_size": 0}, {"lora_r": 0}])
def test_settings_of_fine_tuning_that_cannot_work(setting: dict[str, Any]) -> None:
    name, value = next(iter(setting.items()))
    with pytest.raises(UserError, match=f"{name}={value}: it must be a finite number above 0"):
        finetune(tiny_model("llama"), tiny_tokenizer(), TEXTS, steps=1, **setting)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sgd_with_momentum_is_its_formula(family: str) -> None:
    model, rate = tiny_model(family), 0.1
    gradients: list[list[torch.Tensor]] = []

    def clipped(student: PreTrainedModel) -> list[torch.Tensor]:
        copied = copy.deepcopy(student).train()
        next_token_loss(copied, [tiny_tokenizer()(TEXTS[0])["input_ids"]]).backward()
        nn.utils.clip_grad_norm_(copied.parameters(), 1.0)
        return [parameter.grad for parameter in copied.parameters() if parameter.grad is not None]

    gradients.append(clipped(model))
    how: dict[str, Any] = {"batch_size": 1, "learning_rate": rate, "optimizer": "sgd"}
    first = finetune(model, tiny_tokenizer(), TEXTS[:1], steps=1, **how)
    second = finetune(model, tiny_tokenizer(), TEXTS[:1], steps=2, **how)
    gradients.append(clipped(first))
    for start, end, one, two in zip(model.parameters(), second.parameters(), *gradients, strict=True):
        torch.testing.assert_close(end, start - rate * (one + (two + 0.9 * one)), rtol=1e-3, atol=1e-5)
    with pytest.raises(UserError, match="optimizer='lion' is unknown"):
        finetune(model, tiny_tokenizer(), TEXTS, steps=1, optimizer="lion")


@pytest.mark.parametrize("lora_r", [None, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_bfloat16_is_in_the_products_and_not_in_the_weights(family: str, lora_r: int | None) -> None:
    """Rates are so low that half precision would round every step away."""
    model, rate = tiny_model(family), 1e-4
    seen: set[torch.dtype] = set()
    how: dict[str, Any] = {"steps": 3, "learning_rate": rate, "lora_r": lora_r}

    def on_step(step: int, student: PreTrainedModel) -> None:
        assert not torch.is_autocast_enabled("cpu"), "what is measured is measured as it always is"
        seen.update(parameter.dtype for parameter in student.parameters())

    wide = finetune(model, tiny_tokenizer(), TEXTS, **how)
    half = finetune(model, tiny_tokenizer(), TEXTS, bf16=True, on_step=on_step, **how)
    start = dict(finetune(model, tiny_tokenizer(), TEXTS, **how | {"steps": 0}).named_parameters())
    assert seen == {torch.float32}
    edits = [
        torch.cat([(one - start[name]).flatten() for name, one in student.named_parameters()])
        for student in (wide, half)
    ]
    assert not torch.equal(*edits) and edits[1].abs().max() <= 3.01 * rate
    assert torch.cosine_similarity(*edits, dim=0) > 0.9
