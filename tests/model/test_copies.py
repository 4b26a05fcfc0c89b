"""Is a copy whose weights are changed apart from its model, and is what is asked for a while taken back?

What an adapter leaves merged, and what cannot be, is tested with the attacks that edit weights
(`tests/attacks/test_merge.py`, `test_quantize.py`).
"""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model
from torch import nn

from efface.model.copies import eval_mode, frozen, merged_copy, trainable_copy, without_adapter


def test_a_copy_is_trainable_in_float32_whatever_the_model_is() -> None:
    model = tiny_model("llama").bfloat16().requires_grad_(False)
    student = trainable_copy(model)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in student.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters()) and model.dtype == torch.bfloat16
    trained = [name for name, parameter in trainable_copy(model, 2).named_parameters() if parameter.requires_grad]
    assert trained and all("lora" in name for name in trained)


def test_an_edit_of_a_copy_leaves_the_model_alone() -> None:
    model = tiny_model("gpt2")
    assert without_adapter(model) is model
    adapted = get_peft_model(tiny_model("gpt2"), LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False))
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    copy = merged_copy(without_adapter(adapted))  # type: ignore[arg-type]
    with torch.no_grad():
        copy.transformer.h[0].mlp.c_fc.weight.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.state_dict().items())


def test_modes_and_gradients_are_as_they_were_also_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    model[1].eval()
    model[0].bias.requires_grad_(False)
    with pytest.raises(ZeroDivisionError), eval_mode(model), frozen(model):
        assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
        raise ZeroDivisionError
    assert model.training and model[0].training and not model[1].training
    assert model[0].weight.requires_grad and not model[0].bias.requires_grad
