"""Is a step's gradient taken at P(w), and nowhere else, and applied at w; and is nothing else disturbed by it?

Of: training/withstand.py, training/perturbations.py, training/anticipated.py, training/attacker.py,
training/toxic_adapter.py
"""

import dataclasses
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trained
from peft import LoraConfig
from tiny import tiny_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from trained import PASSAGES, StopAfterSave, assert_same, logged, weights, whole_batch

from efface.errors import RunError, UserError
from efface.methods.repo import REPOConfig, REPOTrainer
from efface.model.padding import position_ids
from efface.model.projections import linear_maps, output_weight
from efface.model.rounding import rounded
from efface.training.perturbations import block_maps
from efface.training.perturbed import Place
from efface.training.withstand import WITHSTAND, parse_withstand

Build = Callable[..., REPOTrainer]
build = trained.build
KINDS = {
    "relearn": "relearn:2e-2/3/2",
    "attacker": "attacker:2e-2/3",
    "round": "round:4",
    "merge": "merge:0.8",
    "lora": "lora:2/2/2/0.05",
    "noise": "noise:0.05",
    "sharpness": "sharpness:0.5",
}
ALL = ",".join(KINDS.values())
SGD: dict[str, Any] = {
    "optim": "sgd",
    "learning_rate": 0.1,
    "max_grad_norm": 0.0,
    "bound": "none",
    "erase_side": "both",
    "retain_text_list": PASSAGES,
}


def other(seed: int = 1) -> Any:
    """A reference, so that the retain term has a slope from the first step on."""
    return tiny_model("llama", seed=seed)


def watched(trainer: Any) -> list[dict[str, Tensor]]:
    """The weights at which each loss is computed that counts; filled as `trainer` trains."""
    seen: list[dict[str, Tensor]] = []
    whole = trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        if trainer.recording:
            seen.append(weights(trainer.model))
        return whole(*args, **kwargs)

    trainer.compute_loss = compute_loss
    return seen


def slopes(trainer: Any, at: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of the whole loss on all pairs, at some weights."""
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            parameter.copy_(at[name])
    trainer.model.train().zero_grad()
    trainer.compute_loss(trainer.model, whole_batch(trainer)).backward()
    return {name: each.grad.clone() for name, each in trainer.model.named_parameters() if each.grad is not None}


# What is written


def test_the_registry_says_what_the_kinds_take() -> None:
    assert set(KINDS) == set(WITHSTAND)
    for (kind,) in map(parse_withstand, KINDS.values()):
        (name,) = [name for name, entry in WITHSTAND.items() if entry.path.endswith(":" + type(kind).__name__)]
        names = re.findall(r"[A-Z]+", WITHSTAND[name].form)
        assert [field.name.upper() for field in dataclasses.fields(kind) if field.init] == names
        assert kind.kept == {} and WITHSTAND[name].memory and WITHSTAND[name].source
    assert [type(kind).__name__ for kind in parse_withstand("noise:1, merge:.5,noise:2")] == [
        "Noisy",
        "Merged",
        "Noisy",
    ]


@pytest.mark.parametrize(
    ("withstand", "message"),
    [
        ("sam:1", "'sam' is no kind of perturbation. There are: relearn:DELTA"),
        ("", "'' is no kind of perturbation"),
        ("noise:1,", "withstand='noise:1,': '' is no kind"),
        ("relearn", r"'relearn' has 0 values. Write relearn:DELTA\[/K/KEEP/ROWS\]"),
        ("noise:1/2", "'noise:1/2' has 2 values. Write noise:SCALE"),
        ("relearn:far", "'relearn:far' cannot be read .could not convert string to float: 'far'.. Write relearn:"),
        ("relearn:1e-3/1.5", "cannot be read .invalid literal for int.*Write relearn"),
        ("relearn:-1e-3", r"DELTA=-0.001: it must be a finite number, 0 or more. It is relearn:DELTA"),
        ("relearn:nan", "DELTA=nan: it must be a finite number"),
        ("relearn:1e-3/0", "k=0: it must be at least 1"),
        ("relearn:1e-3/4/0", "keep=0: it must be at least 1"),
        ("relearn:1e-3/4/4/-1", "rows=-1: it must be a finite number, 0 or more"),
        ("attacker:1e-3/128", "k=128: at most 127 steps, whose signs are counted in a byte"),
        ("relearn:1e-3/128", "k=128: at most 127 steps, whose signs are counted in a byte"),
        ("round:9", "BITS=9: whole numbers from 2 to 8 are needed"),
        ("round:8/nf4", "BITS=8: .* and 4 for nf4"),
        ("round:4/square", "SCHEME='square' is unknown. Choose one of symmetric, asymmetric, nf4"),
        ("round:4/symmetric/-1", "GROUP=-1: it must be a finite number"),
        ("merge:1.5", "ALPHA=1.5: it must be between 0 .no way. and 1"),
        ("lora:0", "rank=0: it must be at least 1"),
        ("lora:4/-1", "steps=-1: it must be a finite number, 0 or more"),
        ("lora:4/1/1/0", "RATE=0.0: it must be a finite number above 0"),
        ("noise:inf", "SCALE=inf: it must be a finite number"),
        ("sharpness:-1", "RHO=-1.0: it must be a finite number, 0 or more"),
    ],
)
def test_what_cannot_be_withstood(withstand: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        REPOConfig("out", use_cpu=True, withstand=withstand)


def test_the_former_name_of_sharpness(build: Build) -> None:
    with pytest.raises(UserError, match="sam_rho=0.1 is the former name of withstand='sharpness:0.1'"):
        REPOConfig("out", use_cpu=True, sam_rho=0.1, withstand="noise:1")
    assert REPOConfig("out", use_cpu=True, sam_rho=0.1).withstand is None, "the default gives way"
    found = []
    for settings in ({"sam_rho": 0.3}, {"withstand": "sharpness:0.3"}):
        trainer = build(**settings)
        trainer.train()
        found.append(weights(trainer.model))
    assert_same(*found, rtol=0, atol=0)
    assert REPOConfig("out", use_cpu=True, withstand="none").perturbations() == []


# The place


NO_WAY = ["relearn:0/2/2", "attacker:0/2", "merge:0", "lora:2/0", "noise:0", "sharpness:0"]


@pytest.mark.parametrize("withstand", NO_WAY)
def test_without_any_way_it_is_the_plain_step_bit_by_bit(withstand: str, build: Build) -> None:
    settings = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "retain_text_list": PASSAGES}
    plain, perturbed = build(**settings), build(withstand=withstand, **settings)
    for trainer in (plain, perturbed):
        trainer.train()
    assert_same(weights(perturbed.model), weights(plain.model), rtol=0, atol=0)
    states = [dict(each.adversaries.discriminators.state_dict()) for each in (perturbed, plain)]
    assert_same(*states, rtol=0, atol=0)
    for name in ("loss", "grad_norm", "retain_loss", "erase_loss", "adversary/bce/1"):
        assert logged(perturbed, name) == logged(plain, name) and len(logged(plain, name)) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_at_the_place_is_applied_here(kind: str, build: Build) -> None:
    """One step of SGD: w - rate * (the gradient at P(w)), where P(w) is what the loss saw."""
    common = SGD | {"ref_model": other(), "max_steps": 1}
    trainer = build(withstand=KINDS[kind], **common)
    start, seen = weights(trainer.model), watched(trainer)
    # From the start there is no way back to it: it began elsewhere.
    begun = {name: each + 0.1 for name, each in start.items()}
    trainer.perturbed._start = begun if kind == "merge" else {}
    trainer.train()
    (there,) = seen
    moved = {name for name in start if not torch.equal(start[name], there[name])}
    assert moved == set(start) if kind not in ("round", "lora") else moved == {n for n, _ in block_maps(trainer.model)}
    slope = slopes(build(**common), there)
    expected = {name: start[name] - 0.1 * slope[name] for name in start}
    assert_same(weights(trainer.model), expected, rtol=1e-4, atol=2e-5)
    here = slopes(build(**common), start)
    assert any((slope[name] - here[name]).norm() > 0.03 * here[name].norm() for name in start)  # it matters


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_stand_where_they_stood_also_after_an_error(kind: str, build: Build) -> None:
    trainer: Any = build(withstand=KINDS[kind])
    start = weights(trainer.model)
    places = {name: each.data_ptr() for name, each in trainer.model.named_parameters()}
    whole, step = trainer.compute_loss, trainer.training_step
    kept: list[dict[str, Tensor]] = []

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        if trainer.recording and kept:
            raise RuntimeError("broken")
        return whole(*args, **kwargs)

    def training_step(*args: Any) -> Any:
        before = weights(trainer.model)
        try:
            return step(*args)
        finally:
            assert_same(weights(trainer.model), before, rtol=0, atol=0)
            assert {name: each.data_ptr() for name, each in trainer.model.named_parameters()} == places
            kept.append(before)

    trainer.compute_loss, trainer.training_step = compute_loss, training_step
    with pytest.raises(RuntimeError, match="broken"):
        trainer.train()
    assert len(kept) == 2 and any(not torch.equal(kept[1][name], start[name]) for name in start)
    assert not trainer.perturbed._buffers


def test_an_error_on_the_way_leaves_weights_and_gradients(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer: Any = build(withstand="relearn:1e-2/2/1")
    start = weights(trainer.model)

    def broken(*args: Any) -> Any:
        raise RuntimeError("on the way")

    monkeypatch.setattr("efface.training.anticipated.token_log_probabilities", broken)
    with pytest.raises(RuntimeError, match="on the way"):
        trainer.train()
    assert_same(weights(trainer.model), start, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_walk_that_leads_to_no_number_is_said(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "efface.training.anticipated.token_log_probabilities", lambda hidden, *_: hidden.sum() * torch.nan
    )
    with pytest.raises(RunError, match="the loss is nan at step 0 .attacker's nan.; stopped before the optimizer"):
        build(withstand="relearn:1e-3").train()


def test_the_draw_depends_on_seed_and_step_alone(build: Build) -> None:
    def drawn(seed: int) -> list[tuple[str, float]]:
        perturbed = build(withstand=ALL, seed=seed).perturbed
        found = [perturbed.drawn(step) for step in range(90)]
        return [(type(kind).__name__, float(torch.rand((), generator=rest))) for kind, rest in found]

    first = drawn(0)
    assert first == drawn(0) != drawn(1) and {name for name, _ in first} == {
        *("Anticipated", "Attacker", "Rounded", "Merged", "ToxicAdapter", "Noisy", "Sharpness")
    }
    assert len({number for _, number in first}) == 90


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_method_is_counted_twice(kind: str, build: Build) -> None:
    trainer: Any = build(withstand=KINDS[kind], gradient_accumulation_steps=2, per_device_train_batch_size=4)
    events: list[bool | str] = []
    loss, update = trainer.adversaries.loss, trainer.adversaries.update

    def count_loss(domains: Any, strength: float, *, train: bool) -> Any:
        events.append(train)
        return loss(domains, strength, train=train)

    def count_update(*args: Any) -> None:
        events.append("update")
        update(*args)

    trainer.adversaries.loss, trainer.adversaries.update = count_loss, count_update
    state = torch.get_rng_state()
    trainer.train()
    assert [event for event in events if event is not False] == [True, True, "update"] * 3
    assert len(logged(trainer, "retain_loss")) == 3
    after = torch.get_rng_state()
    plain = build(gradient_accumulation_steps=2, per_device_train_batch_size=4)
    torch.set_rng_state(state)
    plain.train()
    assert torch.equal(torch.get_rng_state(), after)  # what training draws, it draws as it would


# Each kind


def prototype(model: nn.Module, batch: Any, delta: float, k: int) -> dict[str, Tensor]:
    """(w_k - w) / delta of the prototype: sign steps on the mean NLL of y-, every position through the vocabulary."""
    b = batch["n_pairs"]
    ids, mask, continuation = (batch[name][b : 2 * b] for name in ("input_ids", "attention_mask", "continuation_mask"))
    start = weights(model)
    for _ in range(k):
        model.zero_grad()
        logits = model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False).logits
        target = continuation[:, 1:].bool()
        cross_entropy(logits[:, :-1][target], ids[:, 1:][target]).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(parameter.grad.sign(), alpha=-delta / k)  # type: ignore[union-attr]
    return {name: (each.detach() - start[name]) / delta for name, each in model.named_parameters()}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("size", [8, 2])
def test_the_direction_is_the_prototypes(family: str, size: int, build: Build) -> None:
    """Of one batch, and of four that make up the same optimizer step; in double precision, where signs are sure."""
    trainer: Any = build(
        tiny_model(family).double(),
        withstand="relearn:3e-3/3/4",
        per_device_train_batch_size=size,
        gradient_accumulation_steps=8 // size,
        retain_text_list=PASSAGES,
        max_steps=1,
        precompute_reference="off",
    )
    twin = tiny_model(family).double()
    expected = prototype(twin, whole_batch(trainer), 3e-3, 3)
    trainer.train()
    (kind,) = trainer.perturbed.kinds
    assert int(kind.kept.pop("uses")) == 1
    assert kind.kept.keys() == expected.keys()
    for name, counts in kind.kept.items():
        assert counts.dtype == torch.int8
        if name.endswith("c_attn.bias"):
            continue  # a bias of the keys changes no attention: its gradient is rounding noise
        torch.testing.assert_close(counts.double() / 3, expected[name], rtol=0, atol=1e-8)
    assert {int(each) for counts in kind.kept.values() for each in counts.unique()} >= {-3, -1, 1, 3}


def test_a_direction_serves_for_as_many_steps_as_it_is_kept(build: Build) -> None:
    trainer: Any = build(withstand="relearn:1e-2/2/3", max_steps=7, learning_rate=1e-4)
    seen = watched(trainer)
    before: list[dict[str, Tensor]] = []
    step = trainer.training_step

    def training_step(*args: Any) -> Any:
        before.append(weights(trainer.model))
        return step(*args)

    trainer.training_step = training_step
    trainer.train()
    name = "model.layers.1.mlp.down_proj.weight"
    ways = [there[name] - here[name] for there, here in zip(seen, before, strict=True)]
    distances = [float(way.abs().max()) for way in ways]
    assert all(0 < each <= 1e-2 for each in distances) and len(set(distances)) == 7
    ways = [(2 * way / distance).round() for way, distance in zip(ways, distances, strict=True)]
    alike = [torch.equal(first, second) for first, second in zip(ways, ways[1:], strict=False)]
    assert alike == [True, True, False, True, True, False]


def test_the_attacker_goes_step_by_step_from_where_he_was_and_begins_anew(build: Build) -> None:
    """At each step: his way so far, from today's weights, and one sign of the gradient there."""
    trainer: Any = build(
        tiny_model("llama").double(), withstand="attacker:4e-3/4", max_steps=6, precompute_reference="off"
    )
    (kind,) = trainer.perturbed.kinds
    met: list[tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]] = []
    move = kind.move_

    def move_(place: Place) -> None:
        here, before = weights(trainer.model), {name: each.clone() for name, each in kind.kept.items()}
        move(place)
        with place.standing():
            met.append((here, before, weights(trainer.model)))

    kind.move_ = move_
    trainer.train()
    lengths = []
    for here, before, there in met:
        name = "model.layers.1.mlp.down_proj.weight"
        way = (there[name] - here[name]) / 1e-3
        torch.testing.assert_close(way, way.round(), rtol=0, atol=1e-9)
        lengths.append(int(way.abs().max().round()))
        first = int(before.get("steps", torch.tensor(0))) % 4 == 0
        last = (way - (0 if first else before[name])).round()  # of the step that he has just made
        assert last.unique().tolist() in ([-1.0, 1.0], [-1.0, 0.0, 1.0])
    assert lengths[0] == 1 and lengths[4] == 1 and 2 <= lengths[3] <= 4 and int(kind.kept["steps"]) == 2
    twin = tiny_model("llama").double()  # his first step is the anticipated one's
    expected = prototype(twin, whole_batch(trainer), 1e-3, 1)
    here, _, there = met[0]
    for name, direction in expected.items():
        torch.testing.assert_close(there[name] - here[name], 1e-3 * direction, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [8, 4, 3])
def test_some_rows_at_a_time(size: int, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next ones in each sign step, of the whole optimizer step however it is divided."""
    micro_batches = -(-8 // size)
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": micro_batches, "max_steps": 1}
    trainer: Any = build(withstand="relearn:1e-3/3/1/3", **settings)
    rows: list[set[Any]] = [set()]
    from efface.training import anticipated

    whole, given = anticipated._nll, anticipated.attackers_losses

    def nll(place: Any, batch: Any, which: Tensor) -> Tensor:
        rows[-1] |= set(_texts(batch, which))
        return whole(place, batch, which)

    def losses(*args: Any) -> Any:
        rows.append(set())
        return given(*args)

    monkeypatch.setattr(anticipated, "_nll", nll)
    monkeypatch.setattr(anticipated, "attackers_losses", losses)
    trainer.train()
    batches = trainer._micro_batches
    rejected = [text for one in batches for text in _texts(one, torch.arange(one["n_pairs"], 2 * one["n_pairs"]))]
    assert len(batches) == micro_batches and len(set(rejected)) == 8
    assert rows[1:] == [{rejected[i] for i in each} for each in ([0, 1, 2], [3, 4, 5], [6, 7, 0])]


def _texts(batch: Any, which: Tensor) -> list[tuple[int, ...]]:
    """Some rows of a batch without their padding."""
    return [tuple(batch["input_ids"][i][batch["attention_mask"][i].bool()].tolist()) for i in which]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rounded_maps_are_those_of_the_attack_and_on_the_grid_nothing_moves(family: str, build: Build) -> None:
    for lies in (False, True):
        start = tiny_model(family)
        if lies:
            with torch.no_grad():
                for module in linear_maps(start).values():
                    output_weight(module).copy_(rounded(output_weight(module), 4, 16, "symmetric"))
        trainer = build(start, withstand="round:4/symmetric/16", max_steps=1)
        here, seen = weights(trainer.model), watched(trainer)
        expected = {}
        for module in linear_maps(trainer.model).values():
            near = rounded(output_weight(module), 4, 16)
            expected[id(module.weight)] = near if isinstance(module, nn.Linear) else near.t()
        trainer.train()
        for name, parameter in trainer.model.named_parameters():
            assert torch.equal(seen[0][name], expected.get(id(parameter), here[name]))
            assert lies or id(parameter) not in expected or not torch.equal(seen[0][name], here[name])
            assert not lies or torch.equal(seen[0][name], here[name])


def test_merging_leads_to_where_training_began_also_after_a_resume(build: Build, tmp_path: Path) -> None:
    settings = {"withstand": "merge:1", "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    start = weights(tiny_model("llama"))
    trainer = build(output_dir=str(tmp_path), **settings)
    trainer.train()
    resumed: Any = build(output_dir=str(tmp_path), **settings)
    seen = watched(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(resumed.perturbed._start, start, rtol=0, atol=0)
    assert_same(weights(resumed.model), weights(trainer.model), rtol=0, atol=0)
    assert len(seen) == 2


def test_noise_is_as_large_as_it_is_asked_for_and_new_in_each_step(build: Build) -> None:
    trainer = build(withstand="noise:0.1", learning_rate=0.0)
    start, seen = weights(trainer.model), watched(trainer)
    trainer.train()
    for name, weight in start.items():
        noise = [there[name] - weight for there in seen]
        if weight.numel() > 500:
            ratio = noise[0].square().mean().sqrt() / weight.square().mean().sqrt()
            assert ratio == pytest.approx(0.1, rel=0.15), name
        assert not torch.equal(noise[0], noise[1])


def test_a_toxic_adapter_makes_the_rejected_text_likelier_and_is_trained_anew(build: Build) -> None:
    trainer: Any = build(withstand="lora:4/8/2/0.02", max_steps=4)
    batch = whole_batch(trainer)
    factors: list[Tensor] = []
    found: list[tuple[float, float]] = []
    step = trainer.training_step

    def nll() -> float:
        b = batch["n_pairs"]
        ids, mask = batch["input_ids"][b : 2 * b], batch["attention_mask"][b : 2 * b]
        with torch.no_grad():
            logits = trainer.model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask)).logits
        target = batch["continuation_mask"][b : 2 * b, 1:]
        return float(cross_entropy(logits[:, :-1][target], ids[:, 1:][target]))

    def training_step(*args: Any) -> Any:
        loss = step(*args)
        here = nll()
        with trainer.perturbed.place.standing():
            found.append((here, nll()))
        factors.append(trainer.perturbed.kinds[0].kept["B/model.layers.0.mlp.up_proj.weight"].clone())
        return loss

    trainer.training_step = training_step
    trainer.train()
    assert all(there < here - 0.5 for here, there in found)
    assert [torch.equal(a, b) for a, b in zip(factors, factors[1:], strict=False)] == [True, False, True]


# With everything else


@pytest.mark.parametrize("withstand", [*(KINDS[name] for name in ("relearn", "attacker", "lora")), ALL])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(withstand: str, build: Build, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "withstand": withstand.replace("/3/2", "/2/3").replace("/2/2/", "/2/3/"),  # kept beyond the checkpoint
        "max_steps": 5,
        "seed": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        "per_device_train_batch_size": 3,
        "retain_text_list": PASSAGES,
    }
    whole = build(output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    killed = build(output_dir=str(tmp_path / "killed"), callbacks=[StopAfterSave()], **settings)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    checkpoint = tmp_path / "killed" / "checkpoint-2"
    assert "withstand.safetensors" in killed.checkpoint_files and (checkpoint / "withstand.safetensors").is_file()
    resumed: Any = build(output_dir=str(tmp_path / "killed"), **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same(weights(resumed.model), weights(whole.model), rtol=0, atol=0)
    for mine, its in zip(resumed.perturbed.kinds, whole.perturbed.kinds, strict=True):
        assert_same(mine.kept, its.kept, rtol=0, atol=0)
    (checkpoint / "withstand.safetensors").unlink()
    with pytest.raises(UserError, match="holds no withstand.safetensors: it is of a run without such a withstand"):
        build(output_dir=str(tmp_path / "killed"), **settings).train(resume_from_checkpoint=str(checkpoint))


def test_a_run_that_keeps_nothing_writes_no_more_than_before(build: Build) -> None:
    assert build().checkpoint_files == build(withstand="round:4,noise:.1").checkpoint_files


@pytest.mark.parametrize(("family", "bf16"), [("llama", True), ("gpt2", False)])
def test_every_kind_trains(family: str, bf16: bool, build: Build) -> None:
    for kind, withstand in KINDS.items():
        trainer = build(tiny_model(family), withstand=withstand, bf16=bf16, retain_text_list=PASSAGES, max_steps=2)
        start = weights(trainer.model)
        trainer.train()
        assert all(torch.isfinite(each).all() for each in weights(trainer.model).values()), kind
        assert any(not torch.equal(each, start[name]) for name, each in weights(trainer.model).items())


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_perturbed_and_its_reference_is_not(kind: str, build: Build) -> None:
    adapter = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    trainer: Any = build(
        withstand=KINDS[kind], peft_config=adapter, precompute_reference="off", retain_text_list=PASSAGES, max_steps=2
    )
    start, seen = weights(trainer.model), watched(trainer)
    trainer.perturbed._start = {name: each * 1.1 for name, each in start.items()} if kind == "merge" else {}
    asked: list[Tensor] = []
    states = trainer.reference.states

    def watched_states(*args: Any) -> Any:
        found = states(*args)
        asked.append(found["hidden"])
        for name, each in trainer.model.named_parameters():
            if "lora_" not in name:
                assert torch.equal(each, start[name]), name
        return found

    trainer.reference.states = watched_states
    trainer.train()
    assert len(asked) >= 2
    moved = {name for name in start if not torch.equal(start[name], seen[0][name])}
    if kind in ("round", "lora"):
        assert moved == {name for name, _ in block_maps(trainer.model)}
    else:
        assert moved == {name for name in start if "lora_" in name}
    if kind == "round":  # as the merged map would be
        layer = trainer.model.base_model.model.model.layers[0].self_attn.q_proj
        name = "base_model.model.model.layers.0.self_attn.q_proj"
        added = (
            layer.scaling["default"] * start[f"{name}.lora_B.default.weight"] @ start[f"{name}.lora_A.default.weight"]
        )
        near = rounded(start[f"{name}.base_layer.weight"] + added, 4, 32, "asymmetric")
        torch.testing.assert_close(seen[0][f"{name}.base_layer.weight"] + added, near, rtol=1e-5, atol=1e-6)
    after = weights(trainer.model)
    assert {name for name in start if not torch.equal(after[name], start[name])} == {n for n in start if "lora_" in n}


def test_the_estimate_counts_it_and_a_plain_run_says_nothing_of_it(build: Build) -> None:
    plain, relearn, both = (build(withstand=kind) for kind in (None, "relearn:1e-3", "relearn:1e-3,merge:.5"))
    size = sum(parameter.numel() for parameter in plain.model.parameters())
    assert plain.memory.perturbed == 0 and relearn.memory.perturbed == 5 * size and both.memory.perturbed == 9 * size
    assert relearn.memory.total - plain.memory.total == 5 * size and "perturbed" in str(relearn.memory)
    assert "perturbed" not in plain.record()["memory_estimate"] and "perturbed" not in str(plain.memory)
    assert relearn.record()["memory_estimate"]["perturbed"] == 5 * size
    assert build(withstand=ALL).memory.perturbed > 9 * size


def test_the_walk_holds_no_gradient_beside_the_next(build: Build) -> None:
    """Its price is the place and one byte a weight, however many steps it has."""
    trainer: Any = build(withstand="relearn:1e-3/3/1", max_steps=1)
    gradients, alive = Place.gradients, list[int]()
    known: list[Any] = []

    def watched_gradients(self: Any, losses: Any) -> Any:
        alive.append(sum(one() is not None for one in known))
        found = gradients(self, losses)
        known.extend(weakref.ref(each) for each in found.values())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Place, "gradients", watched_gradients)
        trainer.train()
    assert alive == [0, 0, 0] and known


def test_a_checkpoint_of_other_perturbations_is_refused(build: Build, tmp_path: Path) -> None:
    trainer: Any = build(withstand="relearn:1e-3/4")
    trainer.perturbed.save(tmp_path / "withstand.safetensors")
    other: Any = build(withstand="relearn:1e-3/8")
    with pytest.raises(UserError, match=r"was to withstand Anticipated 0.001/4/4/0, and this one Anticipated 0.001/8"):
        other.perturbed.load(tmp_path / "withstand.safetensors", torch.device("cpu"))


def test_noise_is_drawn_for_weights_of_any_precision(build: Build) -> None:
    trainer: Any = build(tiny_model("llama").double(), withstand="noise:0.1", max_steps=1)
    trainer.train()
    assert all(torch.isfinite(each).all() for each in weights(trainer.model).values())


def test_the_estimate_asks_for_maps_only_where_a_kind_moves_them(build: Build, monkeypatch: Any) -> None:
    """Those of a quantised base cannot be moved, which is nothing to a kind that moves an adapter."""

    def packed(model: Any) -> Any:
        raise UserError("quantised")

    monkeypatch.setattr("efface.training.estimate.block_maps", packed)
    assert build(withstand="relearn:1e-3,merge:.5,noise:.1,sharpness:.1").memory.perturbed
    with pytest.raises(UserError, match="quantised"):
        build(withstand="round:4").memory  # noqa: B018


def test_rounding_that_would_leave_the_experts_alone_is_refused(build: Build) -> None:
    trainer: Any = build(tiny_model("mixtral"), withstand="round:4", max_steps=1)
    with pytest.raises(UserError, match="keeps its experts in stacks of matrices, which --withstand round does not"):
        trainer.train()
