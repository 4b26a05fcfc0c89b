"""Do RMU and circuit breakers compute what their papers say, and train only the weights they choose?"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from trained import PASSAGES, ROWS, assert_moved, assert_same, logged, logits_of, weights, whole_batch

from efface.errors import UserError
from efface.methods.circuit_breakers import (
    CircuitBreakersConfig,
    CircuitBreakersTrainer,
    coefficients,
    cosine_overlap,
    relative_change,
)
from efface.methods.rmu import RMUConfig, RMUTrainer, random_direction, squared_distance
from efface.model.blocks import decoder_blocks
from efface.model.load import load_model
from efface.model.projections import mlp_output_projection
from efface.model.save import save_model
from efface.training.trainer import Counts, PairTrainer

Build = Callable[..., Any]
KEYWORDS = ("peft_config", "retain_text", "ref_model", "eval_dataset")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Adapters start from the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def builder(trainer: type[PairTrainer], config: Any, folder: Path) -> Build:
    def make(model: Any = None, **settings: Any) -> Any:
        keywords = {name: settings.pop(name) for name in KEYWORDS if name in settings}
        defaults: dict[str, Any] = {
            "max_steps": 3,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
        }
        model = four_layers("llama") if model is None else model
        args = config(str(folder), **defaults | settings)
        return trainer(model, args, ROWS, processing_class=tiny_tokenizer(), **keywords)

    return make


@pytest.fixture
def rmu(tmp_path: Path) -> Build:
    return builder(RMUTrainer, RMUConfig, tmp_path)


@pytest.fixture
def breakers(tmp_path: Path) -> Build:
    return builder(CircuitBreakersTrainer, CircuitBreakersConfig, tmp_path)


def four_layers(family: str) -> Any:
    return tiny_model(family, **{"n_layer" if family == "gpt2" else "num_hidden_layers": 4})


def shake_(model: nn.Module, size: float = 0.3) -> None:
    """Move what is trained, so that the model is not its own reference."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))


@torch.no_grad()
def states_at(model: nn.Module, batch: Any, side: str) -> list[Tensor]:
    """By block (the last one is after the final norm, and not used): (tokens, d) at the tokens of y+ or y-."""
    rows = slice(0, batch["n_pairs"]) if side == "chosen" else slice(batch["n_pairs"], 2 * batch["n_pairs"])
    found = model(
        input_ids=batch["input_ids"][rows], attention_mask=batch["attention_mask"][rows], output_hidden_states=True
    ).hidden_states
    return [hidden[batch["continuation_mask"][rows]] for hidden in found[1:]]


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# The maths

numbers = st.floats(-10, 10, width=32)


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1, max_size=4), st.floats(0.125, 8, width=32))
def test_properties_of_the_terms(rows: list[tuple[float, ...]], factor: float) -> None:
    states = torch.tensor(rows)  # (M, 4)
    before = states.flip(1) + 11  # never zero
    mse = torch.nn.functional.mse_loss(states, before, reduction="none").mean(1)
    torch.testing.assert_close(squared_distance(states, before), mse)
    overlap = cosine_overlap(states, before)
    assert ((overlap >= 0) & (overlap <= 1 + 1e-6)).all()
    assert torch.equal(relative_change(before, before), torch.zeros(len(rows)))
    # Neither term of circuit breakers knows the scale of the states.
    torch.testing.assert_close(
        cosine_overlap(factor * before, factor * states.abs().add(1)), cosine_overlap(before, states.abs().add(1))
    )
    torch.testing.assert_close(
        relative_change(factor * states, factor * before), relative_change(states, before), rtol=1e-4, atol=1e-5
    )


def test_terms_by_hand() -> None:
    states, before = torch.tensor([[3.0, 4.0], [0.0, -2.0]]), torch.tensor([[4.0, 3.0], [0.0, 1.0]])
    assert squared_distance(states, torch.tensor([1.0, 0.0])).tolist() == [10.0, 2.5]
    assert cosine_overlap(states, before).tolist() == pytest.approx([24 / 25, 0.0])
    assert relative_change(states, before).tolist() == pytest.approx([math.sqrt(2) / 5, 3.0])
    assert [coefficients(p) for p in (0, 0.5, 1)] == [(1, 0), (0.75, 0.25), (0.5, 0.5)]


def test_the_direction_is_the_seeds_and_leaves_the_global_state_alone() -> None:
    state = torch.random.get_rng_state()
    one, again, other = random_direction(64, 5), random_direction(64, 5), random_direction(64, 6)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one, again) and not torch.allclose(one, other, atol=1e-2)
    assert one.norm() == pytest.approx(1) and (one >= 0).all()  # uniform entries, as in the paper: no sign is drawn


# RMU


@pytest.mark.parametrize("lora_r", [None, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_rmus_loss_is_the_formula(family: str, lora_r: int | None, rmu: Build) -> None:
    original = four_layers(family)
    trainer = rmu(
        four_layers(family), steer_layer="2", steering_norm=2.0, w_forget=3.0, w_retain=5.0, lora_r=lora_r, seed=7
    )
    batch = whole_batch(trainer)
    before = {side: states_at(original, batch, side)[2] for side in ("chosen", "rejected")}
    c = 2.0 * torch.cat([before["chosen"], before["rejected"]]).norm(dim=-1).mean()
    shake_(trainer.model)
    now = {side: states_at(trainer.model, batch, side)[2] for side in ("chosen", "rejected")}
    d = now["chosen"].shape[1]
    forget = ((now["rejected"] - c * random_direction(d, 7)) ** 2).sum() / (d * len(now["rejected"]))
    retain = ((now["chosen"] - before["chosen"]) ** 2).sum() / (d * len(now["chosen"]))
    assert retain > 1e-2
    loss = trainer.compute_loss(trainer.model, batch)
    torch.testing.assert_close(loss, 3 * forget + 5 * retain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_rmu_trains_the_mlp_output_weights_alone(family: str, rmu: Build) -> None:
    model = tiny_model(family)
    trainer = rmu(model, steer_layer="1", max_steps=1)
    expected = {id(mlp_output_projection(block).weight) for block in decoder_blocks(model)}
    assert {id(p) for p in model.parameters() if p.requires_grad} == expected
    before = weights(model)
    trainer.train()
    assert {id(p) for name, p in model.named_parameters() if not torch.equal(p, before[name])} == expected
    assert_same(weights(trainer.reference.model), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steer_layer": "3"}, {1, 2, 3}),
        ({"steer_layer": "1"}, {0, 1}),  # clipped at the first layer
        ({}, {0, 1}),  # a quarter of four layers is layer 1
        ({"steer_layer": "3", "rmu_layers": "0,2"}, {0, 2}),
    ],
)
def test_which_layers_rmu_trains(settings: dict[str, str], expected: set[int], rmu: Build) -> None:
    trainer = rmu(**settings)
    assert trained_names(trainer.model) == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in expected}


def test_rmu_leaves_the_choice_to_lora_and_trainable_layers(rmu: Build) -> None:
    whole = rmu(steer_layer="2", trainable_layers="0,2")
    blocks = decoder_blocks(whole.model)
    expected = {id(p) for layer in (0, 2) for p in blocks[layer].parameters()}
    assert {id(p) for p in whole.model.parameters() if p.requires_grad} == expected
    adapted = rmu(steer_layer="1", lora_r=2)
    start = weights(adapted.model)
    assert len(trained_names(adapted.model)) == 4 * 7 * 2 and all("lora_" in n for n in trained_names(adapted.model))
    adapted.train()
    moved = {name for name, value in weights(adapted.model).items() if not torch.equal(value, start[name])}
    # Above the steered layer nothing feels the loss.
    assert moved == {name for name in trained_names(adapted.model) if ".layers.0." in name or ".layers.1." in name}


def test_rmu_steers(rmu: Build) -> None:
    forget, drift = {}, {}
    for weight in (0.1, 100.0):
        trainer = rmu(max_steps=10, learning_rate=1e-2, w_retain=weight)
        trainer.train()
        assert logged(trainer, "retain_loss")[0] == pytest.approx(0, abs=1e-9)
        forget[weight], drift[weight] = logged(trainer, "forget_loss"), logged(trainer, "retain_loss")[-1]
    assert forget[0.1][-1] < 0.8 * forget[0.1][0]
    assert 0 < drift[100.0] < 0.3 * drift[0.1]


def test_rmus_vector_is_the_same_in_every_run_of_a_seed(rmu: Build) -> None:
    one, batches, lora, other = rmu(), rmu(per_device_train_batch_size=2), rmu(lora_r=2), rmu(seed=1)
    torch.testing.assert_close(batches.target, one.target, rtol=0, atol=0)
    torch.testing.assert_close(lora.target, one.target)
    assert other.mean_norm == one.mean_norm and not torch.allclose(other.target, one.target)
    assert one.target.norm() == pytest.approx(3 * one.mean_norm)
    assert one.record()["steering"] == {
        "layer": 1, "mean_norm": one.mean_norm, "norm": pytest.approx(3 * one.mean_norm)
    }  # fmt: skip
    assert any("steers layer 1 to a vector of length" in line for line in one.describe())


def test_rmu_without_a_retain_term_has_no_reference(rmu: Build) -> None:
    trainer = rmu(w_retain=0.0)
    trainer.train()
    assert trainer.reference.kind == "not needed" and not logged(trainer, "retain_loss")
    assert logged(trainer, "loss") == pytest.approx(logged(trainer, "forget_loss"), rel=1e-5)
    text = rmu(w_retain=0.0, retain_text=PASSAGES)
    text.train()
    assert logged(text, "retain_text_loss")[-1] > 0


# Circuit breakers


@pytest.mark.parametrize("retain_layers", [None, "0,2"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_loss_of_circuit_breakers_is_the_formula(family: str, retain_layers: str | None, breakers: Build) -> None:
    original = four_layers(family)
    trainer = breakers(
        four_layers(family), reroute_layers="0,1", retain_layers=retain_layers, alpha=4.0, w_retain=3.0, max_steps=10
    )
    batch = whole_batch(trainer)
    shake_(trainer.model, 0.1)
    before, now = ({s: states_at(m, batch, s) for s in ("chosen", "rejected")} for m in (original, trainer.model))
    cosines = []
    for layer in (0, 1):
        a, b = now["rejected"][layer], before["rejected"][layer]
        cosines.append(((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).clamp(min=0))
    changes = []
    for layer in (0, 1) if retain_layers is None else (0, 2):
        a, b = now["chosen"][layer], before["chosen"][layer]
        changes.append(((a - b) ** 2).sum(-1).sqrt() / (b**2).sum(-1).sqrt())
    reroute, retain = torch.stack(cosines).mean(), torch.stack(changes).mean()
    assert 0.1 < reroute < 0.999 and retain > 0.05
    for step in (0, 4):
        trainer.state.global_step, trainer.state.max_steps = step, 10
        expected = 4.0 * ((1 - step / 20) * reroute + (step / 20) * 3.0 * retain)
        torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_circuit_breakers_adapt_the_blocks_up_to_the_highest_rerouted_layer(
    family: str, breakers: Build, tmp_path: Path
) -> None:
    save_model(four_layers(family), tiny_tokenizer(), tmp_path / "base")
    trainer = breakers(str(tmp_path / "base"), reroute_layers="0,2", retain_layers="all")
    start = weights(trainer.model)
    blocks = decoder_blocks(trainer.model)
    assert [any("lora_" in name for name, _ in block.named_parameters()) for block in blocks] == [True] * 3 + [False]
    assert all("lora_" in name for name in trained_names(trainer.model))
    assert trainer.layers == [0, 1, 2, 3] and trainer.reference.adapter_off
    trainer.train()
    assert_moved(trainer.model, start)
    trainer.save_model(str(tmp_path / "adapter"))
    batch = whole_batch(trainer)
    expected = logits_of(trainer.model.eval(), batch)
    torch.testing.assert_close(logits_of(load_model(tmp_path / "adapter")[0], batch), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, logits_of(four_layers(family), batch), atol=1e-3)


def test_circuit_breakers_reroute(breakers: Build) -> None:
    drift = {}
    for weight in (0.0, 10.0):
        trainer = breakers(max_steps=12, learning_rate=1e-2, w_retain=weight)
        trainer.train()
        reroute, retain = logged(trainer, "reroute_loss"), logged(trainer, "retain_loss")
        assert reroute[0] == pytest.approx(1, abs=1e-5) and reroute[-1] < 0.9
        assert retain[0] < 1e-4
        drift[weight] = retain[-1]
    assert 1e-4 < drift[10.0] < 0.8 * drift[0.0]


def test_circuit_breakers_by_default_and_with_an_adapter_of_ones_own(breakers: Build) -> None:
    config = breakers().model.peft_config["default"]
    assert (config.r, config.lora_alpha) == (16, 16)
    own = breakers(lora_r=None, peft_config=LoraConfig(r=1, target_modules=["q_proj"]))
    assert own.model.peft_config["default"].r == 1


def test_circuit_breakers_can_be_evaluated(breakers: Build) -> None:
    trainer = breakers(eval_dataset=ROWS[:3])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(10, rel=1e-4)  # before any step: alpha * cosine of 1
    trainer.train()
    assert 0 < trainer.evaluate()["eval_loss"] < 100


# Both


@pytest.mark.parametrize("layout", ["plain", "shared", "apart"])
@pytest.mark.parametrize("name", ["rmu", "breakers"])
def test_no_block_above_the_highest_layer_runs_for_pairs(
    name: str, layout: str, request: pytest.FixtureRequest
) -> None:
    layers = {"steer_layer": "1"} if name == "rmu" else {"reroute_layers": "1"}
    trainer = request.getfixturevalue(name)(layout=layout, **layers)
    ran: list[int] = []
    for number, block in enumerate(decoder_blocks(trainer.model)):
        for part in block.children():  # the block itself is called, and may give back what it is given
            part.register_forward_hook(lambda module, args, output, number=number: ran.append(number))
    trainer.compute_loss(trainer.model, whole_batch(trainer))
    assert set(ran) == {0, 1}


@pytest.mark.parametrize(("name", "family"), [("rmu", "gpt2"), ("breakers", "llama")])
def test_accumulated_micro_batches_equal_one_large_batch(
    name: str, family: str, request: pytest.FixtureRequest
) -> None:
    build = request.getfixturevalue(name)
    own: dict[str, Any] = {"w_retain": 2.0}
    results = []
    for size, accumulate in ((8, 1), (4, 2)):
        torch.manual_seed(0)
        if name == "breakers":
            # Away from zero from the start: there the gradient of the cosine is zero, and all would be rounding.
            own["peft_config"] = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        trainer = build(
            four_layers(family),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulate,
            retain_text=PASSAGES,
            optim="sgd",  # Adam would blow rounding up to a whole step
            learning_rate=0.02,
            **own,
        )
        start = weights(trainer.model)
        trainer.train()
        results.append((trainer, weights(trainer.model)))
    (one, expected), (other, found) = results
    assert max((expected[key] - start[key]).abs().max() for key in start) > 1e-3
    assert_same(found, expected, rtol=1e-3, atol=2e-5)
    for metric in ("loss", "retain_loss", "retain_text_loss", "forget_loss", "reroute_loss"):
        assert logged(other, metric) == pytest.approx(logged(one, metric), rel=1e-3, abs=1e-5), metric


@pytest.mark.parametrize("name", ["rmu", "breakers"])
def test_the_loss_of_a_batch_is_the_sum_of_its_pairs(name: str, request: pytest.FixtureRequest) -> None:
    trainer = request.getfixturevalue(name)()
    shake_(trainer.model, 0.1)
    trainer.state.global_step, trainer.state.max_steps = 1, 2
    batch = whole_batch(trainer)
    counts = torch.stack(Counts.of(batch))
    whole = trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts)
    collate, dataset = trainer.data_collator, trainer.train_dataset
    single = [
        trainer.compute_loss(trainer.model, collate([dataset[i]]), num_items_in_batch=counts)
        for i in range(len(dataset))
    ]
    torch.testing.assert_close(torch.stack(single).sum(), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["rmu", "breakers"])
def test_a_reference_of_ones_own_is_what_y_plus_is_kept_to(name: str, request: pytest.FixtureRequest) -> None:
    other = tiny_model("llama", seed=1, num_hidden_layers=4)
    trainer = request.getfixturevalue(name)(ref_model=other, max_steps=1)
    trainer.train()
    assert logged(trainer, "retain_loss")[0] > 0.1


# Misuse


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steer_layer": "9"}, "layer 9 does not exist: the model has 4 layers"),
        ({"steer_layer": "0,1"}, "steer_layer='0,1' names 2 layers; RMU steers one"),
        ({"rmu_layers": "7"}, "layer 7 does not exist"),
        ({"steer_layer": "1", "rmu_layers": "2,3"}, "the layers to be trained begin at 2, above steer_layer=1"),
        ({"steer_layer": "1", "trainable_layers": "last"}, "the layers to be trained begin at 3, above steer_layer=1"),
        ({"rmu_layers": "0", "trainable_layers": "0"}, "rmu_layers='0' chooses MLP projections .* Give one of them"),
        ({"rmu_layers": "0", "lora_r": 2}, "rmu_layers='0' chooses MLP projections .* Give one of them"),
        ({"w_forget": -1.0}, "w_forget=-1.0: it must be a finite number, 0 or more"),
        ({"w_retain": math.inf}, "w_retain=inf: it must be a finite number"),
        ({"steering_norm": 0.0}, "steering_norm=0.0: it must be a finite number above 0"),
        ({"precompute_reference": "on"}, "precompute_reference=on: this method compares hidden states"),
    ],
)
def test_rmu_settings_that_cannot_work(settings: dict[str, Any], message: str, rmu: Build) -> None:
    with pytest.raises(UserError, match=message):
        rmu(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_r": None}, "circuit_breakers trains a LoRA adapter, but lora_r is None and there is no peft_config"),
        ({"reroute_layers": "1,4"}, "layer 4 does not exist: the model has 4 layers"),
        ({"retain_layers": "-5"}, "layer -5 does not exist"),
        ({"alpha": -1.0}, "alpha=-1.0: it must be a finite number above 0"),
        ({"w_retain": -0.5}, "w_retain=-0.5: it must be a finite number, 0 or more"),
        ({"trainable_layers": "0"}, "trainable_layers is for full fine-tuning"),
    ],
)
def test_circuit_breakers_settings_that_cannot_work(settings: dict[str, Any], message: str, breakers: Build) -> None:
    with pytest.raises(UserError, match=message):
        breakers(**settings)
