"""Does one forward give what was asked for, and the head what the model itself says, for every family?"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from forwards import batch, hooks_of, model_of, plain_logits
from peft import LoraConfig, get_peft_model
from tiny import FAMILIES, VOCAB_SIZE, tiny_model
from torch import Tensor, nn

from efface.errors import UserError
from efface.model.blocks import capture_residuals, decoder_blocks, unwrap
from efface.model.forward import Head, forward, skipped_above
from efface.model.interventions import Intervention, attach_, attached
from efface.model.layout import plain_layout
from efface.model.padding import position_ids


@contextmanager
def runs_of(*modules: nn.Module) -> Iterator[list[nn.Module]]:
    """The modules that ran within the context, in order."""
    seen: list[nn.Module] = []
    handles = [module.register_forward_hook(lambda module, args, out: seen.append(module)) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_gives_the_models_own_logits(family: str) -> None:
    """With the head's bias (Phi), projection (OPT), soft cap (Gemma 2); right-padded, left-padded and one by one."""
    model = model_of(family)
    for left in (False, True):
        input_ids, mask = batch(left=left)
        project = mask.bool() & (torch.arange(20) % 3 == 1)
        project[2] = False
        with torch.no_grad():
            result = forward(model, plain_layout(input_ids, mask), project, [0], mask.bool())
            logits = Head.of(model)(result.hidden)
            whole = model(input_ids=input_ids, attention_mask=mask, position_ids=position_ids(mask)).logits[project]
        expected = torch.cat(
            [plain_logits(model, input_ids[i][mask[i].bool()])[project[i][mask[i].bool()]] for i in range(2)]
        )
        assert logits.shape == (int(project.sum()), VOCAB_SIZE) == tuple(expected.shape)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits, whole, rtol=1e-5, atol=1e-5)
        rows = [input_ids[i][mask[i].bool()][None] for i in range(3)]
        alone = []
        for row in rows:  # the residuals do not depend on the other rows either
            every = torch.ones_like(row, dtype=torch.bool)
            alone.append(forward(model, plain_layout(row, every.long()), every, [0], every).residuals[0])
        torch.testing.assert_close(result.residuals[0], torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_position_reaches_the_output_head(family: str) -> None:
    model = model_of(family)
    input_ids, mask = batch()
    project = torch.zeros_like(mask, dtype=torch.bool)
    project[0, 3:6] = project[1, 2] = True
    shapes: list[tuple[int, ...]] = []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: shapes.append(tuple(out.shape))
    )
    try:
        result = forward(model, plain_layout(input_ids, mask), project)
    finally:
        handle.remove()
    assert shapes == [(3, 0, VOCAB_SIZE)] and len(result.hidden) == 4


def test_hooks_are_removed_also_when_the_forward_raises() -> None:
    model = tiny_model("llama")
    before = hooks_of(model)
    input_ids, mask = batch()
    arguments: Any = (plain_layout(input_ids, mask), mask.bool(), [0, 1], mask.bool())
    forward(model, *arguments)
    assert hooks_of(model) == before

    def fail(*args: Any) -> None:
        assert hooks_of(model) > before + 1
        raise RuntimeError("interrupted")

    handle = model.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="interrupted"):
        forward(model, *arguments)
    handle.remove()
    assert hooks_of(model) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_what_needs_no_logits_ends_at_the_highest_layer(family: str) -> None:
    model = tiny_model(family)
    first, second = decoder_blocks(model)
    input_ids, mask = batch()
    arguments: Any = (model, plain_layout(input_ids, mask), torch.zeros_like(mask, dtype=torch.bool), [0], mask.bool())
    inside = [next(block.children()) for block in (first, second)]  # the block itself is called, and hands through
    with runs_of(*inside) as ran:
        result = forward(*arguments)
    assert ran == inside[:1] and result.hidden.numel() == 0
    assert "forward" not in vars(second)
    with capture_residuals(model, [0]) as residuals:
        model(input_ids=input_ids, attention_mask=mask, position_ids=position_ids(mask))
    torch.testing.assert_close(result.residuals[0], residuals[0][mask.bool()])
    parameter = next(first.parameters())
    (gradient,) = torch.autograd.grad(result.residuals[0].square().sum(), parameter)
    (expected,) = torch.autograd.grad(residuals[0][mask.bool()].square().sum(), parameter)
    torch.testing.assert_close(gradient, expected)


def test_what_hangs_on_a_skipped_block_is_skipped_with_it() -> None:
    """An intervention is part of its block: what is read below must not be changed by it."""
    model, steered = tiny_model("llama"), tiny_model("llama")
    attach_(steered, [Intervention(1, torch.zeros(32, 0), torch.zeros(0, 32), torch.arange(32.0))])
    ids = torch.tensor([[3, 20, 21, 22]])
    kept = dict(vars(decoder_blocks(steered)[1]))
    with skipped_above(model, 0) as given, torch.no_grad():
        expected = model(ids).logits
        assert len(given) == 1
    with pytest.raises(KeyError), skipped_above(steered, 0), torch.no_grad():
        assert torch.equal(steered(ids).logits, expected)
        raise KeyError
    assert vars(decoder_blocks(steered)[1]) == kept and len(attached(steered)) == 1


def test_forward_through_a_wrapped_model() -> None:
    """As under DDP: the wrapper is what is called, the hooks sit on the model inside."""

    class Wrapper(nn.parallel.DistributedDataParallel):
        def __init__(self, module: nn.Module) -> None:
            nn.Module.__init__(self)
            self.module, self.calls = module, 0

        def forward(self, **kwargs: Any) -> Any:
            self.calls += 1
            return self.module(**kwargs)

    model = model_of("gpt2")
    wrapped = Wrapper(model)
    input_ids, mask = batch()
    assert unwrap(wrapped) is model
    arguments: Any = (plain_layout(input_ids, mask), mask.bool(), [1], mask.bool())
    result, plain = (forward(each, *arguments) for each in (wrapped, model))
    assert wrapped.calls == 1
    torch.testing.assert_close(result.hidden, plain.hidden)
    torch.testing.assert_close(result.residuals[1], plain.residuals[1])


def test_no_exception_leaves_a_forward_that_ends_early() -> None:
    """DDP does the rest of its work after the forward; and tells by its output which weights will get a gradient."""
    outputs: list[Any] = []
    model = tiny_model("llama")
    model.register_forward_hook(lambda module, args, output: outputs.append(output))
    input_ids, mask = batch()
    found = forward(model, plain_layout(input_ids, mask), torch.zeros_like(mask, dtype=torch.bool), [0], mask.bool())
    (output,) = outputs
    assert output.logits.shape == (3, 0, VOCAB_SIZE)
    weights = list(model.parameters())
    reached = torch.autograd.grad(output.logits.sum(), weights, allow_unused=True, retain_graph=True)
    needed = torch.autograd.grad(found.residuals[0].sum(), weights, allow_unused=True)
    assert [gradient is None for gradient in reached] == [gradient is None for gradient in needed]
    assert any(gradient is None for gradient in needed)


# The head


def test_the_head_shares_the_models_weight_and_leaves_the_model_alone() -> None:
    model = tiny_model("llama")
    names = [name for name, _ in model.named_modules()]
    head = Head.of(model)
    assert head.weight is model.lm_head.weight
    assert [name for name, _ in model.named_modules()] == names
    head(torch.randn(3, 32)).sum().backward()
    assert model.lm_head.weight.grad is not None


@pytest.mark.parametrize("family", ["phi", "gemma2"])
def test_a_frozen_head_stays_what_it_was(family: str) -> None:
    model = tiny_model(family)
    hidden: Tensor = torch.randn(3, 32)
    head = Head.of(model).frozen()
    before = head(hidden)
    assert not before.requires_grad
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(head(hidden), before) and not torch.allclose(Head.of(model)(hidden), before)


def test_a_head_that_is_not_trained_is_not_copied() -> None:
    model = tiny_model("llama").requires_grad_(False)
    assert Head.of(model).frozen().weight.data_ptr() == model.lm_head.weight.data_ptr()


def test_the_head_inside_an_adapter() -> None:
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    hidden = torch.randn(3, 32)
    torch.testing.assert_close(Head.of(model)(hidden), Head.of(tiny_model("llama"))(hidden))
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(UserError, match="the output head is a Linear, not a plain linear map.*lora_target_modules"):
        Head.of(adapted)
