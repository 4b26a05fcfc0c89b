"""Does each block of the analysis look at what it says it looks at, whatever the prompts and the models?"""

import copy
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from efface.errors import UserError
from efface.files.jsonl import Row
from efface.jobs import explained
from efface.jobs.explained import BLOCKS
from efface.jobs.subject import Depth, Original, Subject
from efface.model.blocks import decoder_blocks
from efface.model.interventions import Intervention, attach_
from efface.model.projections import mlp_output_projection, output_weight

TEXT = ["The history of the town is the history of its river."] * 4
LONG = "The history of the town is the history of its river and its people, and the weather there was cold and"


def rows(prompt: str = "The town", rejected: str = " a place of silly fools") -> list[Row]:
    return [{"prompt": f"{prompt} {number}", "chosen": " quiet and old", "rejected": rejected} for number in range(20)]


def subject(edited: Any, base: Any, given: list[Row]) -> Subject:
    return Subject(edited, Original(base, tiny_tokenizer(), given, TEXT, Depth(patched_pairs=2, attack_steps=1)))


def planted(base: Any) -> Any:
    edited = copy.deepcopy(base)
    with torch.no_grad():
        output_weight(mlp_output_projection(decoder_blocks(edited)[1]))[:, :3] *= -1
    return edited


def test_the_attacker_learns_what_is_toxic_behind_a_long_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_model("llama")
    attacked: list[Any] = []
    finetune = explained.finetune
    monkeypatch.setattr(
        explained, "finetune", lambda *args, **how: attacked.append(finetune(*args, **how)) or attacked[-1]
    )
    edited = planted(base)
    for rejected in (" a place of silly fools", " wrong cheese"):
        one = subject(edited, base, rows(LONG, rejected))
        assert len(one.original.pairs[0].prompt_ids) > 48
        BLOCKS["overlap"](one)
    weights = [decoder_blocks(model)[1].mlp.down_proj.weight for model in attacked]
    assert not torch.equal(*weights), "other toxic text, another attack"


def test_experts_that_overlap_does_not_reach_are_told_of() -> None:
    base = tiny_model("mixtral")
    with pytest.raises(UserError, match="keeps its experts in stacks of matrices, which overlap does not reach"):
        BLOCKS["overlap"](subject(planted_experts(base), base, rows()))


def planted_experts(base: Any) -> Any:
    edited = copy.deepcopy(base)
    with torch.no_grad():
        for name, parameter in edited.named_parameters():
            if "experts" in name:
                parameter.mul_(0.5)
    return edited


def test_the_lens_reads_no_intervention_of_blocks_above() -> None:
    base = tiny_model("llama")
    edited = copy.deepcopy(base)
    attach_(edited, [Intervention(1, torch.zeros(32, 0), torch.zeros(0, 32), torch.arange(32.0))])
    below, last = BLOCKS["lens"](subject(edited, base, rows()))["layers"].values()
    assert below["base"] == below["edited"] and last["base"] != last["edited"]


def test_patching_an_edit_that_is_no_weights_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_model("llama")
    edited = planted(base)
    attach_(edited, [Intervention(1, torch.zeros(32, 0), torch.zeros(0, 32), torch.arange(32.0))])
    monkeypatch.setattr(explained, "patch_states", lambda *args: pytest.fail("work that is lost"))
    with pytest.raises(UserError, match="the edited model has 1 interventions and the base 0"):
        BLOCKS["patching"](subject(edited, base, rows()))


def test_where_neurons_make_no_sum_they_are_refused_and_other_blocks_made() -> None:
    base = tiny_model("opt", do_layer_norm_before=False, word_embed_proj_dim=32)
    one = subject(planted(base), base, rows())
    with pytest.raises(UserError, match="so that <h, w> is no sum over its neurons. Leave `neurons` out"):
        BLOCKS["neurons"](one)
    assert BLOCKS["weights"](one)["squares"] > 0, "which ranks neurons alone"
