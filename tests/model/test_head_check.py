"""Is a model found out whose head, or whose forward, is not what efface takes it for?"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from trained import ROWS
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from efface.errors import UserError
from efface.methods.repo import REPOConfig, REPOTrainer
from efface.model.forward import Head
from efface.model.head_check import check_head


def small(kind: str, **settings: Any) -> Any:
    return AutoConfig.for_model(kind, vocab_size=300, pad_token_id=0, bos_token_id=1, eos_token_id=2, **settings)


def test_models_that_are_no_causal_language_models() -> None:
    width = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    t5 = small("t5", d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8, decoder_start_token_id=0)
    with pytest.raises(UserError, match="T5ForConditionalGeneration is an encoder with a decoder"):
        check_head(AutoModelForSeq2SeqLM.from_config(t5))
    with pytest.raises(UserError, match="BertForMaskedLM looks at later tokens"):
        check_head(AutoModelForMaskedLM.from_config(small("bert", **width)).eval())
    with pytest.raises(UserError, match="LlamaModel has no output head"):
        check_head(tiny_model("llama").base_model)
    for model in (AutoModelForSeq2SeqLM.from_config(t5), tiny_model("llama").base_model):
        with pytest.raises(UserError, match="encoder with a decoder|no output head"):
            REPOTrainer(model, REPOConfig("unused", use_cpu=True), ROWS, processing_class=tiny_tokenizer())


def test_a_head_that_is_not_the_models_is_found() -> None:
    """Also one that a family's new code would give: scores that are changed in a way that `Head` does not see."""
    model = tiny_model("llama")
    check_head(model)
    other = Head.of(tiny_model("llama", seed=1))
    with pytest.raises(UserError, match="LlamaForCausalLM: its final hidden states .* apart"):
        check_head(model, other)
    model.lm_head.register_forward_hook(lambda module, args, scores: 2 * scores)
    with pytest.raises(UserError, match="LlamaForCausalLM: its final hidden states"):
        check_head(model)


def test_the_check_in_half_precision_and_under_autocast() -> None:
    half, whole = tiny_model("gemma2").bfloat16(), tiny_model("gemma2")
    check_head(half, layers=[0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        check_head(whole, layers=[0, 1])
        head = Head.of(whole)
        with pytest.raises(UserError, match="do not give its logits"):
            check_head(whole, Head(SimpleNamespace(weight=head.weight * 1.2, bias=head.bias), head.finish))


def test_the_check_leaves_the_model_as_it_was() -> None:
    model = tiny_model("gpt2").train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    check_head(model, layers=[0])
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
