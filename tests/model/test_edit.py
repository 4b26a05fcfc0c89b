"""Is base + a edit the base at 0, the edit at 1, and linear between and beyond, whatever is tied or attached?"""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny import tiny_model

from efface.errors import UserError
from efface.model.edit import add_, along, edit_squares, scaled_copy, top_part, top_parts
from efface.model.interventions import Intervention, attach_, attached

IDS = torch.tensor([[5, 6, 7, 8]])


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = dict(other.named_parameters())
    return all(torch.equal(parameter, theirs[name]) for name, parameter in one.named_parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # both with a tied head
def test_the_ends_are_exact_and_the_way_is_straight(family: str) -> None:
    base, edited = tiny_model(family), tiny_model(family, seed=1)
    assert same(scaled_copy(edited, base, 0.0), base) and same(scaled_copy(edited, base, 1.0), edited)
    further = scaled_copy(edited, base, 1.5)
    assert further.get_output_embeddings().weight is further.get_input_embeddings().weight
    for name, parameter in further.named_parameters():
        start, end = base.get_parameter(name), edited.get_parameter(name)
        torch.testing.assert_close(parameter, start + 1.5 * (end - start))
    squares, norm = edit_squares(edited, base)
    assert edit_squares(further, base)[0] == pytest.approx(2.25 * squares, rel=1e-4) and norm > 0
    assert same(edited, tiny_model(family, seed=1)) and same(base, tiny_model(family))


@given(a=st.floats(-1, 3), b=st.floats(0.1, 2), seed=st.integers(0, 5))
def test_an_edit_of_an_edit_is_one_edit(a: float, b: float, seed: int) -> None:
    base, edited = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed))
    twice = along(along(edited, base, a), base, b)
    torch.testing.assert_close(twice, along(edited, base, a * b), rtol=1e-4, atol=1e-4)
    assert along(edited.bfloat16(), base, a).dtype == torch.bfloat16


def test_an_adapter_is_merged_and_an_intervention_scaled() -> None:
    base = tiny_model("llama")
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    whole = copy.deepcopy(adapted).merge_and_unload()
    half = scaled_copy(adapted, base, 0.5)
    assert not hasattr(half, "peft_config")
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(half.get_parameter(name), (base.get_parameter(name) + whole.get_parameter(name)) / 2)
    edited = tiny_model("llama")
    attach_(edited, [Intervention(0, torch.ones(32, 1), torch.ones(1, 32), torch.ones(32))])
    found = attached(scaled_copy(edited, base, 2.0))
    assert torch.equal(found[0].left, 2 * torch.ones(32, 1)) and torch.equal(found[0].bias, 2 * torch.ones(32))
    assert not attached(scaled_copy(edited, base, 0.0)) and len(attached(edited)) == 1


def test_an_intervention_that_both_have_is_no_part_of_the_edit() -> None:
    """LEACE's map is a projection, so that neither half of it nor two halves of it one after the other are it."""
    base, edited = tiny_model("llama"), tiny_model("llama", seed=1)
    v = torch.ones(32, 1) / 32**0.5
    shared = Intervention(1, -v, v.T.clone(), torch.ones(32))
    later, earlier, last = (dataclasses.replace(shared, left=v, bias=number * torch.ones(32)) for number in (2, 4, 8))
    attach_(edited, [shared, later])
    attach_(base, [earlier, copy.deepcopy(shared), last])

    def biases(a: float) -> list[float]:
        found = attached(scaled_copy(edited, base, a))
        (kept,) = (one for one in found if (one.left < 0).all() and one.bias[0] == 1)
        assert torch.equal(kept.left, shared.left) and torch.equal(kept.right, shared.right)
        return [one.bias[0].item() for one in found]

    assert biases(1.0) == [1, 2] and biases(0.0) == [4, 1, 8], "at the ends those of either model, in its order"
    assert biases(0.5) == [2, 1, 1, 4] and biases(2.0) == [-4, 1, 4, -8]
    assert len(attached(edited)) == 2 and len(attached(base)) == 3


@given(k=st.integers(1, 6), seed=st.integers(0, 5))
def test_the_top_part_is_the_projection_of_the_paper(k: int, seed: int) -> None:
    edit = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    left = torch.linalg.svd(edit).U[:, :k]
    torch.testing.assert_close(top_part(edit, k), left @ left.T @ edit if k < 4 else edit, rtol=1e-4, atol=1e-5)
    assert torch.linalg.matrix_rank(top_part(edit, k)) <= k
    assert torch.equal(top_part(edit[0], k), edit[0])
    stack = torch.stack([edit, 2 * edit.flip(0)])  # of experts
    torch.testing.assert_close(
        top_part(stack, k), torch.stack([top_part(one, k) for one in stack]), rtol=1e-4, atol=1e-5
    )


def test_top_parts_are_of_experts_too() -> None:
    base, edited = tiny_model("qwen2_moe"), tiny_model("qwen2_moe", seed=1)
    experts = "model.layers.0.mlp.experts.down_proj"
    assert torch.linalg.matrix_rank(top_parts(edited, base, 2)[experts]).tolist() == [2] * 4


def test_top_parts_are_of_changed_matrices_and_are_added() -> None:
    base, edited = tiny_model("llama"), tiny_model("llama")
    name, norm = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
    with torch.no_grad():
        for each in (name, norm, "model.embed_tokens.weight"):
            edited.get_parameter(each).add_(torch.randn_like(edited.get_parameter(each)))
    parts = top_parts(edited, base, 2)
    assert list(parts) == [name] and torch.linalg.matrix_rank(parts[name]) == 2
    student = copy.deepcopy(edited)
    add_(student, parts, 1.5, edited)
    torch.testing.assert_close(student.get_parameter(name), edited.get_parameter(name) + 1.5 * parts[name])
    assert torch.equal(student.get_parameter(norm), edited.get_parameter(norm))


def test_models_of_other_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="they cannot be merged. Pass as base the model"):
        scaled_copy(tiny_model("llama"), tiny_model("gpt2"), 0.5)
