"""Does normalised SGD move each tensor by the rate, whatever its gradient, and go with schedule and resume?"""

from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import build
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model
from torch import nn

from efface.errors import UserError
from efface.methods.dpo import DPOConfig
from efface.training.optimizers import NormalizedSGD
from efface.training.settings import parse_settings


@settings(max_examples=25)
@given(scale=st.floats(1e-30, 1e30), lr=st.floats(1e-4, 1.0), seed=st.integers(0, 1000))
def test_a_tensor_moves_by_the_rate_along_its_gradient_whatever_its_scale(scale: float, lr: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(3, 4, generator=generator)
    parameter = nn.Parameter(torch.zeros(3, 4))
    parameter.grad = direction * scale
    NormalizedSGD([parameter], lr=lr).step()
    torch.testing.assert_close(parameter.detach(), -lr * direction / direction.norm(), rtol=1e-4, atol=1e-7)


def test_decay_is_beside_the_move_and_a_zero_gradient_moves_nothing() -> None:
    moved, still, unused = (nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(3))
    moved.grad, still.grad = torch.tensor([0.0, 10.0]), torch.zeros(2)
    NormalizedSGD([moved, still, unused], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(moved.detach(), torch.tensor([3.0 * 0.95, 4.0 * 0.95 - 0.1]))
    torch.testing.assert_close(still.detach(), torch.tensor([3.0, 4.0]) * 0.95)
    assert torch.equal(unused.detach(), torch.tensor([3.0, 4.0]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_shows_in_the_weights(bad: float) -> None:
    """A run in which nothing can move must not end as if it were well."""
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.tensor([1.0, bad, 0.0])
    NormalizedSGD([parameter], lr=0.1).step()
    assert not torch.isfinite(parameter).all()


def test_a_closure_is_asked_for_the_loss() -> None:
    parameter = nn.Parameter(torch.ones(1))

    def closure() -> Any:
        parameter.grad = None
        loss = parameter.square().sum()
        loss.backward()
        return loss.detach()

    assert NormalizedSGD([parameter], lr=0.25).step(closure) == 1.0
    assert parameter.item() == 0.75


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_is_chosen_by_name_follows_the_schedule_and_goes_on_to_the_bit(family: str, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"optim": "normalized_sgd", "learning_rate": 0.1, "weight_decay": 0.01}
    whole = build(
        "dpo", tiny_model(family), tmp_path / "whole", max_steps=3, save_strategy="steps", save_steps=2, **chosen
    )
    start = {name: weight.detach().clone() for name, weight in whole.model.named_parameters()}
    whole.train()
    assert isinstance(whole.optimizer.optimizer, NormalizedSGD)
    rates = [entry["learning_rate"] for entry in whole.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([0.1, 0.2 / 3, 0.1 / 3])
    for name, weight in whole.model.named_parameters():  # at most the sum of the rates, and of what decays
        assert (weight - start[name]).norm() < sum(rates) + 0.001 * 3 * start[name].norm() + 1e-4, name
    again = build("dpo", tiny_model(family), tmp_path / "whole", max_steps=3, **chosen)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert again.state.global_step == 3
    for (name, a), b in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_command_line_knows_it_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    given_flags = parse_settings(DPOConfig, None, ["--optim", "normalized_sgd", "--use_cpu"])
    assert DPOConfig(str(tmp_path), **given_flags).optim == "normalized_sgd"
    with pytest.raises(ValueError, match="normalised_sgd"):
        DPOConfig(str(tmp_path), optim="normalised_sgd", use_cpu=True)
    trainer = build("dpo", tiny_model("llama"), tmp_path, optim="normalized_sgd", optim_args="momentum=0.9")
    with pytest.raises(UserError, match="optim_args='momentum=0.9': normalized_sgd takes none"):
        trainer.train()
