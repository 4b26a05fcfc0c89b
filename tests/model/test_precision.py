"""Is a model in half precision for a while, and afterwards the very same?"""

import pytest
import torch
from grids import few
from peft import LoraConfig, get_peft_model
from tiny import FAMILIES, tiny_model, tiny_tokenizer

from efface.errors import UserError
from efface.generation.decoding import Decoding
from efface.generation.generate import generate_ids
from efface.generation.likelihood import continuation_nll
from efface.model.precision import is_wide, read_in

PROMPTS = ["The weather in the old town", "You", "She went to the market and bought"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_are_rounded_inside_and_the_same_objects_afterwards_also_after_an_error(family: str) -> None:
    model = tiny_model(family)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    buffers = {name: buffer.dtype for name, buffer in model.named_buffers()}
    with pytest.raises(ZeroDivisionError), read_in(model, "bfloat16"):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert {name: buffer.dtype for name, buffer in model.named_buffers()} == buffers
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
        raise ZeroDivisionError
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0] and torch.equal(tensor, before[name][1])


def test_none_and_a_model_in_half_precision_are_left_alone() -> None:
    model = tiny_model("llama")
    with read_in(model, None):
        assert is_wide(model)
    model.half()
    with read_in(model, "bfloat16"):
        assert model.dtype == torch.float16


@pytest.mark.parametrize("family", few(FAMILIES))
@pytest.mark.parametrize("adapted", [False, True])
def test_text_is_written_and_judged_as_by_the_model_in_half_precision(family: str, adapted: bool) -> None:
    def model():  # type: ignore[no-untyped-def]
        found = tiny_model(family)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
            return get_peft_model(found, lora) if adapted else found

    tokenizer, how = tiny_tokenizer(), Decoding(samples=2, seed=3)
    half, wide = model(), model()
    for parameter in half.parameters():  # `bfloat16()` would round the frequencies of rotary positions too
        parameter.data = parameter.data.bfloat16()
    written = generate_ids(wide, tokenizer, PROMPTS, Decoding(samples=2, seed=3, dtype="bfloat16"))
    assert written == generate_ids(half, tokenizer, PROMPTS, how)
    texts = [row[0].text for row in written]
    in_half = continuation_nll(wide, tokenizer, PROMPTS, texts, Decoding(dtype="bfloat16"))
    assert in_half == continuation_nll(half, tokenizer, PROMPTS, texts)
    assert in_half != continuation_nll(wide, tokenizer, PROMPTS, texts) and is_wide(wide)


def test_it_is_recorded_only_where_it_has_an_effect_and_nothing_else_is_taken() -> None:
    assert "dtype" not in Decoding().to_dict() and Decoding(dtype="bfloat16").to_dict()["dtype"] == "bfloat16"
    with pytest.raises(UserError, match="dtype='int8': text is written in 'bfloat16', or None"):
        Decoding(dtype="int8")
