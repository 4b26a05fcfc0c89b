"""Are the output projections of a block found in every family, and is their weight seen the same way round?"""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import FAMILIES, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from efface.errors import UserError
from efface.model.blocks import capture_residuals, decoder_blocks
from efface.model.projections import (
    attention_output_projection,
    expert_maps,
    linear_maps,
    mlp_maps,
    mlp_output_projection,
    output_weight,
    part_unreached,
)

IDS = torch.tensor([[5, 6, 7, 8]])


@torch.no_grad()
def residuals(model: PreTrainedModel, input_ids: Tensor = IDS) -> dict[int, Tensor]:
    with capture_residuals(model, [0, 1]) as captured:
        model(input_ids=input_ids)
    return captured


@torch.no_grad()
def silence_(projection: nn.Module) -> None:
    for parameter in projection.parameters():
        parameter.zero_()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_writes_through_its_two_output_projections_and_nothing_else(family: str) -> None:
    model = tiny_model(family)
    block = decoder_blocks(model)[1]
    silence_(mlp_output_projection(block))
    before = residuals(model)
    assert not torch.allclose(before[1], before[0], atol=1e-2)  # the attention still writes
    silence_(attention_output_projection(block))
    after = residuals(model)
    torch.testing.assert_close(after[1], after[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_attention_output_tokens_do_not_see_each_other(family: str) -> None:
    model, other = tiny_model(family), torch.cat([IDS[:, :1] + 20, IDS[:, 1:]], 1)  # another first token
    assert not torch.allclose(residuals(model)[1][:, 1:], residuals(model, other)[1][:, 1:], atol=1e-3)
    for block in decoder_blocks(model):
        silence_(attention_output_projection(block))
    a, b = residuals(model), residuals(model, other)
    torch.testing.assert_close(a[1][:, 1:], b[1][:, 1:])
    assert not torch.allclose(a[1], a[0], atol=1e-2)  # the MLP still writes


@pytest.mark.parametrize("find", [mlp_output_projection, attention_output_projection])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_weight_is_out_by_in_and_no_copy(family: str, find: object) -> None:
    model = tiny_model(family)
    projection = find(decoder_blocks(model)[0])  # type: ignore[operator]
    weight = output_weight(projection)
    assert weight.shape == (32, 64 if find is mlp_output_projection else 32)
    states = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0))
    bias = 0 if projection.bias is None else projection.bias
    torch.testing.assert_close(states @ weight.T + bias, projection(states))
    with torch.no_grad():
        output_weight(projection)[1, 2] = 7.0
    assert (projection.weight == 7.0).nonzero().tolist() == [[2, 1] if family == "gpt2" else [1, 2]]


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_the_maps_of_experts_that_lie_in_one_tensor(family: str) -> None:
    model = tiny_model(family)
    maps, experts = expert_maps(model), decoder_blocks(model)[1].mlp.experts
    assert len(maps) == 2 * 2 * 4 and not expert_maps(tiny_model("gpt2"))
    assert {tuple(one.shape) for one in maps.values()} == {(128, 32), (32, 64)}
    with torch.no_grad():
        maps["1.mlp.experts.down_proj.3"][1, 2] = 7.0
    assert (experts.down_proj == 7.0).nonzero().tolist() == [[3, 2, 1] if family == "gpt_oss" else [3, 1, 2]]


def test_which_part_of_the_blocks_an_edit_leaves_alone(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("mixtral")
    ordinary = sum(module.weight.numel() for module in linear_maps(model).values())
    experts = sum(one.numel() for one in expert_maps(model).values())
    routers = 2 * 4 * 32
    assert part_unreached(model, ordinary, "prune") == pytest.approx(1 - ordinary / (ordinary + experts + routers))
    assert f"prune reaches {ordinary} of the {ordinary + experts + routers} weights of the matrices" in caplog.text
    caplog.clear()
    for family in ("llama", "gpt2"):
        dense = tiny_model(family)
        assert part_unreached(dense, sum(one.weight.numel() for one in linear_maps(dense).values()), "prune") == 0
    assert not caplog.text


def test_an_expert_that_every_token_goes_through_is_not_the_whole_mlp() -> None:
    block = decoder_blocks(tiny_model("qwen2_moe"))[0]
    shared = block.mlp.shared_expert.down_proj
    assert mlp_output_projection(block, whole=False) is shared
    for take in (mlp_output_projection, mlp_maps):
        with pytest.raises(UserError, match="Qwen2MoeDecoderLayer keeps experts in stacks of matrices, and no one"):
            take(block)


def test_blocks_without_exactly_one_projection() -> None:
    with pytest.raises(UserError, match=r"Identity has 0 MLP output projections .*down_proj.*families.MLP_OUTPUTS"):
        mlp_output_projection(nn.Identity())
    with pytest.raises(UserError, match=r"Identity has 0 attention output projections .*o_proj.*ATTENTION_OUTPUTS"):
        attention_output_projection(nn.Identity())
    experts = nn.ModuleList(nn.ModuleDict({"down_proj": nn.Linear(2, 2)}) for _ in range(2))
    with pytest.raises(UserError, match="ModuleList has 2 MLP output projections"):
        mlp_output_projection(experts)
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=1, target_modules="all-linear"))
    with pytest.raises(UserError, match="Merge an adapter first"):
        mlp_output_projection(decoder_blocks(adapted)[0])
