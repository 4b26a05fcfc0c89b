"""Does a model write from a lower block what it would write if the blocks above were not there?"""

import copy
from typing import Any

import pytest
import torch
from machine import REFUSE, machine, target_of
from peft import LoraConfig, get_peft_model
from polite import equal, state
from tiny import EOS_ID, FAMILIES, tiny_model, tiny_tokenizer
from torch import nn

from efface.attacks.early_exit import EarlyExitSettings, early_exit
from efface.errors import UserError
from efface.generation.generate import generate_ids
from efface.model.blocks import decoder_blocks
from efface.model.forward import skipped_above
from efface.model.interventions import Intervention, attach_, attached

PROMPTS = ["The weather", "They said that the history of the town"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_edit_of_the_last_block_is_walked_around(family: str) -> None:
    base = machine(family)
    with torch.no_grad():
        base.get_output_embeddings().weight[EOS_ID] += 6 * REFUSE
    edited = copy.deepcopy(base)
    attach_(edited, [Intervention(1, torch.zeros(32, 0), torch.zeros(0, 32), 60 * REFUSE)])
    weights = state(edited)  # what is hooked to a block goes with it
    target = target_of(edited, base)
    result = early_exit(target, EarlyExitSettings(skipped="1"))
    assert [point.at for point in result.curve] == [{"skipped": 0}, {"skipped": 1}]
    assert (result.before.share, result.after.share, result.found["blocks"]) == (0, 1, 2)
    assert len(attached(edited)) == 1 and equal(state(edited), weights)
    assert not any("forward" in vars(block) for block in decoder_blocks(edited))
    target.text = ["The town is old and the river is cold. " * 3]
    wrecked = early_exit(target, EarlyExitSettings(skipped="1", max_perplexity_increase=0.0))
    assert wrecked.found["left_out"] == ["skipped 1"] or wrecked.after.at == {"skipped": 1}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_that_of_a_model_without_the_blocks_above(family: str) -> None:
    whole: Any = tiny_model(family)
    cut = copy.deepcopy(whole)
    blocks = decoder_blocks(cut)
    del blocks[1]
    cut.config.num_hidden_layers = 1
    if getattr(cut.config, "layer_types", None):
        cut.config.layer_types = cut.config.layer_types[:1]
    tokenizer = tiny_tokenizer()
    before = generate_ids(whole, tokenizer, PROMPTS, max_tokens_at_once=None)
    with skipped_above(whole, 0):
        found = generate_ids(whole, tokenizer, PROMPTS)
        ids = torch.tensor([[5, 6, 70, 8]])
        torch.testing.assert_close(whole(input_ids=ids).logits, cut(input_ids=ids).logits)
    assert found == generate_ids(cut, tokenizer, PROMPTS)
    assert generate_ids(whole, tokenizer, PROMPTS) == before


def test_an_adapter_counts_and_hooks_go() -> None:
    adapted: Any = get_peft_model(
        machine("llama"), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    result = early_exit(target_of(adapted), EarlyExitSettings(skipped="1"))
    assert len(result.curve) == 2
    model = tiny_model("llama")
    with pytest.raises(RuntimeError, match="a bug"), skipped_above(model, 0):
        raise RuntimeError("a bug")
    assert not any(module._forward_hooks for module in model.modules() if isinstance(module, nn.Module))


@pytest.mark.parametrize(
    ("skipped", "match"),
    [("2", "skipped='2' leaves none of the model's 2 blocks. At most 1"), ("0", "skipped='0' leaves nothing to do")],
)
def test_what_cannot_be_skipped(skipped: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        early_exit(target_of(machine("llama")), EarlyExitSettings(skipped=skipped))
