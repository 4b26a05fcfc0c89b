"""Is every way to be fast equal to the plain formula: each switch alone, all together, on every family?"""

from typing import Any

import formulas
import pytest
import torch
from grids import SOME, few
from tiny import FAMILIES, tiny_model
from torch import Tensor
from trained import PASSAGES, ROWS, Build, assert_same, build, logged, weights, whole_batch

from efface.data.pairs import load_pairs
from efface.errors import UserError
from efface.methods.repo import REPOTrainer
from efface.model import chunked

__all__ = ["build"]  # the fixture

SWITCHES: dict[str, dict[str, Any]] = {
    "cache": {"precompute_reference": "on"},
    "shared prompts": {"layout": "shared"},
    "apart": {"layout": "apart", "erase_layers": "0"},
    "pieces": {"piece": 2 * 300},  # two tokens at a time
    "checkpointing": {"gradient_checkpointing": True},
    "all": {"precompute_reference": "on", "layout": "shared", "piece": 2 * 300, "gradient_checkpointing": True},
}
OFF = {"precompute_reference": "off", "layout": "plain"}
# Sums in another order: float32 rounding, five SGD steps long.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def trained(build: Build, monkeypatch: pytest.MonkeyPatch, family: str, **settings: Any) -> REPOTrainer:
    monkeypatch.setattr(chunked, "PIECE", settings.pop("piece", 2**25))
    trainer = build(
        tiny_model(family),
        max_steps=5,
        retain_text_list=PASSAGES,
        optim="sgd",  # Adam would blow rounding up to a whole step
        learning_rate=0.05,
        per_device_train_batch_size=4,
        **(OFF | settings),
    )
    trainer.train()
    return trainer


def assert_equal_runs(a: REPOTrainer, b: REPOTrainer) -> None:
    assert_same(weights(a.model), weights(b.model), **TOLERANCE)
    names = ("loss", "grad_norm", "retain_loss", "retain_text_loss", "erase_loss")
    for name in names:
        assert logged(a, name) == pytest.approx(logged(b, name), rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("family", few(FAMILIES))
def test_each_switch_alone_and_all_together(family: str, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    start = weights(tiny_model(family))
    for layers in ("all", "0"):
        plain = trained(build, monkeypatch, family, erase_layers=layers)
        assert max((weights(plain.model)[name] - start[name]).abs().max() for name in start) > 1e-3
        for name, switch in SWITCHES.items():
            if switch.get("erase_layers", layers) == layers and (layers == "all" or name == "apart"):
                assert_equal_runs(trained(build, monkeypatch, family, **({"erase_layers": layers} | switch)), plain)


@pytest.mark.parametrize("switches", [{}, SWITCHES["all"]])
def test_lora(switches: dict[str, Any], build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain = trained(build, monkeypatch, "llama", erase_layers="all", lora_r=2)
    torch.manual_seed(0)
    assert_equal_runs(trained(build, monkeypatch, "llama", erase_layers="all", lora_r=2, **switches), plain)


FAST = {"precompute_reference": "on", "layout": "shared"}


@pytest.mark.parametrize(
    ("family", "switches"),
    [
        *(pytest.param(name, FAST, id=f"fast-{name}") for name in FAMILIES),
        *(
            pytest.param(name, OFF, id=f"plain-{name}", marks=[] if name in SOME else [pytest.mark.full])
            for name in FAMILIES
        ),
    ],
)
def test_loss_and_gradients_equal_the_formula(
    switches: dict[str, Any], family: str, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against design section 2 written down without any of our forward, after a few steps away from the reference."""
    monkeypatch.setattr(chunked, "PIECE", 5 * 300)
    model, untouched = tiny_model(family), tiny_model(family)
    settings = {"w_retain": 3.0, "w_retain_text": 2.0, "w_erase": 0.5, "grl_lambda": 1.5}
    trainer = build(
        model, bound="none", erase_layers="all", retain_text_list=PASSAGES, max_steps=3, **settings, **switches
    )
    trainer.train()
    model.eval()
    trainer.adversaries.discriminators.zero_grad()
    batch = whole_batch(trainer)
    model.zero_grad()
    found: Any = trainer.compute_loss(model, batch)
    found.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected = formulas.repo_loss(
        model,
        untouched,
        trainer.adversaries.discriminators,
        batch,
        w_retain=3.0,
        w_retain_text=2.0,
        w_erase=0.5,
        strength=1.5,
    )
    expected.backward()
    assert gradients and max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-2
    for name, parameter in model.named_parameters():
        direct: Tensor | None = parameter.grad
        assert direct is not None
        torch.testing.assert_close(gradients[name], direct, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# Which reference


def test_without_a_reference_model_in_memory(build: Build) -> None:
    trainer = build(precompute_reference="on", retain_text_list=PASSAGES)
    assert trainer.reference.kind == "from its cache"
    batch = whole_batch(trainer)
    assert len(batch["reference"]["hidden"]) == trainer.project(batch).sum()
    trainer.train()
    assert logged(trainer, "retain_loss")[0] < 1e-6 < logged(trainer, "retain_loss")[-1]


@pytest.mark.parametrize(
    ("settings", "cached"),
    [
        ({"max_steps": 1, "per_device_train_batch_size": 7}, False),
        ({"max_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, True),
        ({"max_steps": -1, "num_train_epochs": 1}, True),
        ({"max_steps": -1, "num_train_epochs": 0.5}, False),
        ({"max_steps": 99, "precompute_reference": "off"}, False),
        ({"max_steps": 1, "per_device_train_batch_size": 1, "precompute_reference": "on"}, True),
    ],
)
def test_the_reference_is_asked_beforehand_if_every_pair_is_seen(
    settings: dict[str, Any], cached: bool, build: Build
) -> None:
    assert len(load_pairs(ROWS)) == 8
    assert (build(**settings).reference.kind == "from its cache") == cached


def test_evaluation_from_the_cache(build: Build) -> None:
    losses = [
        build(eval_dataset=ROWS[:3], retain_text_list=PASSAGES, precompute_reference=how).evaluate()["eval_loss"]
        for how in ("on", "off")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# Batches of like length


def test_a_token_budget_sees_every_pair_once_an_epoch(build: Build) -> None:
    trainer = build(max_batch_tokens=150, per_device_train_batch_size=3, max_steps=-1, num_train_epochs=1)
    batches = list(trainer.get_train_dataloader())
    assert all(batch["input_ids"].numel() <= 150 and batch["n_pairs"] <= 3 for batch in batches)
    assert sum(batch["n_pairs"] for batch in batches) == len(ROWS)
    assert len({batch["input_ids"].shape[1] for batch in batches}) > 1
    trainer.train()
    assert trainer.state.global_step == len(batches)
    with pytest.raises(UserError, match="row 1 has 70 tokens, but max_batch_tokens=20 is all that a batch may have"):
        build(max_batch_tokens=20).train()


def test_a_resumed_run_with_a_token_budget(build: Build, tmp_path: Any) -> None:
    settings: dict[str, Any] = {
        "max_batch_tokens": 150,
        "per_device_train_batch_size": 3,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 4,  # in the middle of the second epoch
        "retain_text_list": PASSAGES,
    }
    whole = build(output_dir=str(tmp_path / "run"), **settings)
    whole.train()
    resumed = build(output_dir=str(tmp_path / "run"), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert_same(weights(resumed.model), weights(whole.model), rtol=0, atol=0)


def test_micro_batches_of_unequal_size_add_up(build: Build) -> None:
    """With a budget, micro-batches hold different numbers of pairs; the means are over the tokens of all of them."""
    trainer = build(max_batch_tokens=150, per_device_train_batch_size=3, gradient_accumulation_steps=8, max_steps=1)
    batches = list(trainer.get_train_dataloader())
    assert len({batch["n_pairs"] for batch in batches}) > 1 and len(batches) <= 8
    trainer.train()
    one = build(per_device_train_batch_size=8, max_steps=1)
    one.train()
    for name in ("loss", "erase_loss", "retain_loss"):
        assert logged(trainer, name) == pytest.approx(logged(one, name), rel=1e-4, abs=1e-6)
