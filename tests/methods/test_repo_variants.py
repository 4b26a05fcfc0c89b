"""Do REPO's variants do what their flags say? Ensembles, fresh adversaries, critics, schedules, NPO beside it, SAM.

Of: methods/discriminators.py
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from game import D, adversaries, domains, gradients, reference_bce, states, train
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model
from torch import Tensor, nn
from trained import PASSAGES, ROWS, Build, StopAfterSave, assert_same, build, logged, weights, whole_batch

from efface.data.batch import PairBatch
from efface.errors import UserError
from efface.methods.adversary import Adversaries
from efface.methods.discriminators import Discriminator, Domains, critic_loss, gradient_penalty, slope_penalty
from efface.methods.functional import LN2
from efface.methods.repo import REPOConfig, REPOTrainer

__all__ = ["build"]  # the fixture


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def apart(n_benign: int = 64, n_toxic: int = 48) -> Domains:
    """Two clouds that differ in where they lie; fixed states, without a graph."""
    return domains(states(n_benign), states(n_toxic, seed=1) + torch.linspace(-2, 2, D))


def state_of(game: Adversaries) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in game.discriminators.state_dict().items()}


# The trainer's gradient


def explicit_terms(trainer: REPOTrainer, batch: PairBatch) -> dict[str, Tensor]:
    """Of the last layer's discriminator on the states of a plain forward, and of plain logits; with their graphs."""
    n, mask = batch["n_pairs"], batch["continuation_mask"]
    residual: list[Tensor] = []  # hidden_states[-1] would be after the final norm
    block: Any = trainer.model.model.layers[-1]  # type: ignore[union-attr,index]
    handle = block.register_forward_hook(
        lambda module, args, out: residual.append(out[0] if isinstance(out, tuple) else out)
    )
    logits = trainer.model(  # type: ignore[operator]
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).logits
    handle.remove()
    scores = {
        side: trainer.adversaries.discriminators["1"](residual[0][rows][mask[rows]])
        for side, rows in (("benign", slice(0, n)), ("toxic", slice(n, 2 * n)))
    }
    log_probabilities = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    return {
        "bce": 0.5 * (F.softplus(scores["benign"]).mean() + F.softplus(-scores["toxic"]).mean()),
        "distance": scores["toxic"].mean() - scores["benign"].mean(),
        "log_probability": (log_probabilities * mask[:, 1:])[n : 2 * n].sum(1),  # (B,) of y-
    }


def slopes(loss: Any, trainer: REPOTrainer) -> dict[str, Tensor]:
    """Of all parameters, by `backward()`: `torch.autograd.grad` does not see all of a tied embedding's (tied.py)."""
    trainer.model.zero_grad()
    loss.backward(retain_graph=True)
    found = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in trainer.model.named_parameters()
    }
    trainer.model.zero_grad()
    return found


@pytest.mark.parametrize(("adversary", "term", "sign"), [("bce", "bce", -1), ("wasserstein", "distance", 1)])
def test_the_parameters_get_the_explicit_minimax_gradient(adversary: str, term: str, sign: int, build: Build) -> None:
    """The model descends on retain - lambda * BCE, or on retain + lambda * distance."""
    common = {"adversary": adversary, "bound": "none", "erase_side": "both", "ref_model": tiny_model("llama", seed=1)}
    trainer = build(w_erase=0.5, grl_lambda=3.0, **common)
    retaining = build(w_erase=0.0, **common)
    batch = whole_batch(trainer)
    total, retain = (slopes(each.compute_loss(each.model, batch), each) for each in (trainer, retaining))
    expected = slopes(sign * 3.0 * 0.5 * explicit_terms(trainer, batch)[term], trainer)
    assert max(grad.abs().max() for grad in expected.values()) > 1e-3
    assert max(grad.abs().max() for grad in retain.values()) > 1e-3
    assert_same({name: total[name] - retain[name] for name in total}, expected, rtol=1e-3, atol=1e-5)


# Ensembles


def test_an_ensemble_of_one_is_no_ensemble() -> None:
    one, plain = adversaries(layers=(0, 3), ensemble=1), adversaries(layers=(0, 3))
    assert list(one.discriminators) == ["0", "3"]
    assert_same(state_of(one), state_of(plain), rtol=0, atol=0)


@pytest.mark.parametrize("bound", ["none", "confusion"])
def test_the_model_is_pushed_by_the_mean_of_an_ensemble(bound: str) -> None:
    game = adversaries(layers=(0, 3), ensemble=3, bound=bound, erase_side="both")
    names = list(game.discriminators)
    assert names == ["0", "3", "0/1", "3/1", "0/2", "3/2"]
    first = state_of(game)
    assert len({first[f"{name}.head.0.weight"].sum().item() for name in names}) == len(names)  # all start elsewhere
    alone = state_of(adversaries(layers=(0, 3)))
    assert_same({name: first[name] for name in alone}, alone, rtol=0, atol=0)  # the first as without the others
    game = adversaries(ensemble=3, bound=bound, erase_side="both")
    domain = domains(states(5).requires_grad_(), states(3, seed=1).requires_grad_())
    loss, metrics = game.loss({0: domain}, 1.7)
    each = []
    for name in ("0", "0/1", "0/2"):
        single = adversaries(bound=bound, erase_side="both")
        single.discriminators["0"].load_state_dict(game.discriminators[name].state_dict())
        each.append(single.loss({0: domain}, 1.7))
    torch.testing.assert_close(loss, sum(found for found, _ in each) / 3)
    of_each = [gradients(found, domain.benign, domain.toxic) for found, _ in each]
    for i, found in enumerate(gradients(loss, domain.benign, domain.toxic)):
        torch.testing.assert_close(found, sum(grads[i] for grads in of_each) / 3)
        assert found.abs().max() > 1e-4
    for name in ("adversary/bce/0", "adversary/balanced_accuracy/0"):
        assert metrics[name] == pytest.approx(sum(found[name] for _, found in each) / 3)


def test_members_learn_as_each_would_alone() -> None:
    """Adam does not see by what the loss is divided; clipping, which is of all together, would."""
    game, alone = (adversaries(ensemble=n, max_grad_norm=0.0, lr=1e-2) for n in (3, 1))
    for each in (game, alone):
        train(each, 5)
    learnt = state_of(game)
    assert_same({name: learnt[name] for name in state_of(alone)}, state_of(alone), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(learnt["0.head.0.weight"], learnt["0/1.head.0.weight"], atol=1e-2)
    assert len(set(game.last_bce.values())) == 3


def test_the_bound_closes_for_each_member_apart() -> None:
    game = adversaries(ensemble=2, bound="layer")
    game.last_bce = {"0": LN2 + 1e-6, "0/1": LN2}
    domain = domains(states(5), states(3, seed=1).requires_grad_())
    (found,) = gradients(game.loss({0: domain}, 1.0)[0], domain.toxic)
    half = (
        -0.5 * torch.autograd.grad(0.5 * F.softplus(-game.discriminators["0/1"](domain.toxic)).mean(), domain.toxic)[0]
    )
    torch.testing.assert_close(found, half)


# Adversaries drawn anew


def test_discriminators_are_drawn_anew_in_the_right_steps() -> None:
    game = adversaries(reinit=2, lr=0.0, seed=5)  # without learning, the weights are what was drawn
    random_state = torch.get_rng_state()
    trace, adam = [state_of(game)], []
    for step in range(1, 6):
        game.loss({0: apart()}, 1.0)
        game.update(step=step)
        trace.append(state_of(game))
        adam.append(int(game.optimizer.state_dict()["state"][0]["step"]))
    assert torch.equal(torch.get_rng_state(), random_state)
    name = "0.head.0.weight"
    drawn = [not torch.equal(before[name], after[name]) for before, after in zip(trace, trace[1:], strict=False)]
    assert drawn == [False, True, False, True, False]
    assert adam == [2, 2, 4, 2, 4]  # two updates a step
    assert not torch.equal(trace[2][name], trace[4][name])
    # The draw is a matter of seed and step, not of what went before.
    for seed, same in ((5, True), (6, False)):
        late = adversaries(reinit=4, lr=0.0, seed=seed)
        late.loss({0: apart()}, 1.0)
        late.update(step=4)
        assert torch.equal(state_of(late)[name], trace[4][name]) == same


def test_a_fresh_discriminator_has_learnt_from_the_step_it_was_drawn_in() -> None:
    game, untrained = (adversaries(reinit=1, lr=lr, bound="layer") for lr in (1e-2, 0.0))
    for each in (game, untrained):
        each.last_bce = {"0": 2.0}
        each.loss({0: apart()}, 1.0)
        each.update(step=1)
    assert reference_bce(game, apart()) < reference_bce(untrained, apart()) - 1e-3
    assert game.last_bce == {"0": LN2}  # its bound is open as at the start


def test_the_trainer_counts_optimizer_steps(build: Build) -> None:
    trainer = build(per_device_train_batch_size=4, gradient_accumulation_steps=2, discriminator_reinit=2)
    update, steps = trainer.adversaries.update, []
    trainer.adversaries.update = lambda accelerator, step: (steps.append(step), update(accelerator, step))[1]  # type: ignore[method-assign,func-returns-value]
    trainer.train()
    assert steps == [1, 2, 3] and trainer.adversaries.reinit == 2


VARIANTS: list[dict[str, Any]] = [
    {"discriminator_ensemble": 2, "discriminator_reinit": 3},
    {"adversary": "wasserstein", "discriminator_reinit": 2, "erase_schedule": "ramp"},
    {"npo_weight": 0.5, "erase_schedule": "decay", "bound": "layer"},
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    variant: dict[str, Any], build: Build, tmp_path: Path
) -> None:
    common: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "retain_text_list": PASSAGES}
    common |= {"per_device_train_batch_size": 3, "grl_schedule": "dann", **variant}
    whole = build(output_dir=str(tmp_path / "whole"), **common)
    whole.train()
    killed = build(output_dir=str(tmp_path / "killed"), callbacks=[StopAfterSave()], **common)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = build(output_dir=str(tmp_path / "killed"), **common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "killed" / "checkpoint-2"))
    assert_same(weights(resumed.model), weights(whole.model), rtol=0, atol=0)
    assert_same(state_of(resumed.adversaries), state_of(whole.adversaries), rtol=0, atol=0)
    assert resumed.adversaries.last_bce == whole.adversaries.last_bce


def test_a_checkpoint_of_other_discriminators_is_refused(tmp_path: Path) -> None:
    adversaries(ensemble=2).save(tmp_path / "d.safetensors")
    for other in ({"ensemble": 1}, {"ensemble": 2, "kind": "linear"}, {"ensemble": 2, "layers": (0, 1)}):
        with pytest.raises(UserError, match=r"d.safetensors holds other discriminators than these settings make"):
            adversaries(**other).load(tmp_path / "d.safetensors")


# The critic


def small_net(width: int = 16, inputs: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, 1)).double()


def test_the_penalty_is_that_of_finite_differences() -> None:
    net, benign, toxic = small_net(), states(4)[:, :3].double(), states(7, seed=1)[:, :3].double()
    found = slope_penalty(net, benign, toxic, generator(3))  # (7,)
    draw = generator(3)
    partner, share = torch.randint(4, (7,), generator=draw), torch.rand(7, 1, generator=draw)
    between = share * toxic + (1 - share) * benign[partner]  # (7, 3)
    h = 1e-5 * torch.eye(3, dtype=torch.double)
    with torch.no_grad():
        slope = torch.stack([(net(between + step) - net(between - step)).squeeze(-1) / 2e-5 for step in h], -1)
    torch.testing.assert_close(found.detach(), (slope.norm(dim=-1) - 1) ** 2, rtol=1e-6, atol=1e-8)
    assert not torch.equal(found, slope_penalty(net, benign, toxic, generator(4)))


@given(scale=st.floats(0.1, 5), n_benign=st.integers(1, 6), n_toxic=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_the_penalty_of_a_linear_critic_is_known(scale: float, n_benign: int, n_toxic: int) -> None:
    """(||w|| - 1)^2 wherever it is taken, with the gradient 2 (||w|| - 1) w / ||w||."""
    critic = Discriminator(D, "linear", 0)
    weight = critic.head.weight
    with torch.no_grad():
        weight.copy_(scale * F.normalize(torch.linspace(-1, 2, D), dim=0))
    counts = torch.tensor(2 * n_benign), torch.tensor(n_toxic + 2)  # of the step, cut into two
    parts = [Domains(states(n_benign), states(k, seed=k), *counts) for k in (2, n_toxic)]
    penalty = gradient_penalty(critic, parts, generator())
    assert penalty.item() == pytest.approx((scale - 1) ** 2, rel=1e-4, abs=1e-6)
    (slope,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(slope, 2 * (scale - 1) * weight / scale, rtol=1e-3, atol=1e-5)


def test_a_critic_comes_to_the_known_distance_in_one_dimension() -> None:
    """Two clouds of the same shape at a distance of 2 along the line: that is their Wasserstein distance."""
    benign = 0.3 * torch.randn(256, 1, generator=generator(), dtype=torch.double)
    toxic, net, draw = benign + 2, small_net(32, inputs=1), generator(1)
    with torch.no_grad():  # on a line the penalty walls off the wrong sign of the slope: begin with the right one
        net[-1].weight *= torch.sign(net(toxic).mean() - net(benign).mean())
    labels = torch.cat([torch.zeros(256), torch.ones(256)]).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss = critic_loss(net(torch.cat([benign, toxic])).squeeze(-1), labels).mean()
        (loss + 20 * slope_penalty(net, benign, toxic, draw).mean()).backward()
        optimizer.step()
    # A slope of s wins 2 s and pays 20 (s - 1)^2: best at 1 + 2 / 40.
    assert -loss.item() == pytest.approx(2 * 1.05, abs=0.1)


def test_a_linear_critic_comes_to_the_distance_of_the_means() -> None:
    game = adversaries(kind="linear", adversary="wasserstein", penalty=50.0, lr=3e-2, max_grad_norm=0.0)
    domain = apart()
    norm = game.discriminators["0"].norm
    expected = (norm(domain.toxic).mean(0) - norm(domain.benign).mean(0)).norm().item()  # type: ignore[operator]
    for step in range(1, 151):
        distance = game.loss({0: domain}, 1.0)[1]["adversary/distance/0"]
        game.update(step=step)
    assert expected > 1 and distance == pytest.approx(expected * (1 + expected / 100), rel=0.02)
    assert game.last_bce["0"] == pytest.approx(-distance)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_critic_moves_toxic_states_toward_the_benign_ones(kind: str) -> None:
    game = adversaries(kind=kind, adversary="wasserstein", lr=1e-2)
    domain = apart()
    for step in range(1, 41):
        game.loss({0: domain}, 1.0)
        game.update(step=step)
    moving = domains(domain.benign.clone().requires_grad_(), domain.toxic.clone().requires_grad_())
    loss, metrics = game.loss({0: moving}, 2.0)
    benign, toxic = gradients(loss, moving.benign, moving.toxic)
    assert metrics["adversary/distance/0"] == pytest.approx(-loss.item()) and loss.item() < -0.5
    assert benign.abs().max() == 0  # erase_side is toxic
    direction = domain.benign.mean(0) - domain.toxic.mean(0)
    assert ((-toxic @ direction) > 0).float().mean() > 0.9  # descent goes that way
    after = domains(domain.benign, domain.toxic - 50 * toxic)
    assert game.loss({0: after}, 1.0)[1]["adversary/distance/0"] < metrics["adversary/distance/0"] - 0.1
    # And the explicit formula: 2 * gradient of the distance.
    distance = game.discriminators["0"](moving.toxic).mean()
    torch.testing.assert_close(toxic, 2 * torch.autograd.grad(distance, moving.toxic)[0])


def chase(bound: str) -> list[float]:
    """Distances while free toxic states run from a critic that is too slow to follow."""
    game = adversaries(kind="linear", adversary="wasserstein", bound=bound, lr=1e-2, steps=1)
    benign, toxic = states(32), (states(32, seed=1) + torch.linspace(-1, 1, D)).requires_grad_()
    for step in range(1, 101):
        game.loss({0: domains(benign, toxic.detach())}, 1.0)
        game.update(step=step)
    game.optimizer.param_groups[0]["lr"] = 1e-5
    optimizer, trace = torch.optim.SGD([toxic], lr=0.15), []
    for step in range(101, 251):
        optimizer.zero_grad()
        loss, metrics = game.loss({0: domains(benign, toxic)}, 10.0)
        loss.backward()
        optimizer.step()
        game.update(step=step)
        trace.append(metrics["adversary/distance/0"])
    return trace


def test_a_slow_critic_needs_a_bound_too() -> None:
    unbounded, bounded = chase("none"), chase("layer")
    assert min(unbounded[0], bounded[0]) > 0.5
    assert unbounded[-1] < -1  # far past the benign states
    assert -0.2 < bounded[-1] < 0.2


def test_a_critic_in_the_loop(build: Build) -> None:
    trainer = build(adversary="wasserstein", erase_layers="all", discriminator_ensemble=2, max_steps=2)
    trainer.train()
    assert trainer.args.bound == "layer"
    names = {name for entry in trainer.state.log_history for name in entry if name.startswith("adversary/")}
    assert names == {"adversary/distance/0", "adversary/distance/1"}
    distances = [logged(trainer, f"adversary/distance/{layer}") for layer in (0, 1)]
    assert logged(trainer, "erase_loss") == pytest.approx([-(a + b) / 2 for a, b in zip(*distances, strict=True)])


# Micro-batches


@pytest.mark.parametrize("variant", VARIANTS)
def test_accumulated_micro_batches_equal_one_large_batch(variant: dict[str, Any], build: Build) -> None:
    """The penalty's draws too: they are of the whole step. (Several processes draw each from its own states.)"""
    results = []
    for size, accumulate in ((8, 1), (3, 3)):
        trainer = build(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulate,
            retain_text_list=PASSAGES,
            retain_text_per_pair=0.375,  # three a step either way
            erase_layers="all",
            optim="sgd",  # Adam would blow rounding up to a whole step
            learning_rate=0.02,
            **variant,
        )
        trainer.train()
        learnt = state_of(trainer.adversaries)
        if trainer.args.adversary == "wasserstein":  # a critic's offset cancels out: Adam moves it by rounding alone
            learnt = {name: tensor for name, tensor in learnt.items() if tensor.numel() > 1}
        results.append((weights(trainer.model), learnt, logged(trainer, "loss")))
    one, other = results
    start = weights(tiny_model("llama"))
    assert max((one[0][name] - start[name]).abs().max() for name in start) > 1e-4
    assert_same(other[0], one[0], rtol=1e-3, atol=3e-5)
    assert_same(other[1], one[1], rtol=1e-3, atol=5e-5)
    assert other[2] == pytest.approx(one[2], rel=1e-3, abs=1e-5)


# Schedules


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [("constant", [1, 1, 1, 1]), ("ramp", [0.25, 0.5, 0.75, 1]), ("decay", [0.75, 0.5, 0.25, 0])],
)
def test_w_erase_follows_its_schedule(schedule: str, shares: list[float], build: Build) -> None:
    trainer = build(erase_schedule=schedule, w_erase=2.0, w_retain=0.5, max_steps=4, eval_dataset=ROWS[:2])
    trainer.train()
    terms = zip(*(logged(trainer, name) for name in ("loss", "retain_loss", "erase_loss")), strict=True)
    found = [(loss - 0.5 * retain) / erase for loss, retain, erase in terms]
    assert found == pytest.approx([2 * share for share in shares], rel=1e-4, abs=1e-6)

    # An evaluation afterwards weighs as the last step did.
    whole, seen = trainer.loss, list[float]()

    def watched(step: Any) -> Any:
        loss, metrics = whole(step)
        seen.append((loss.item() - 0.5 * metrics["retain_loss"]) / metrics["erase_loss"])
        return loss, metrics

    trainer.loss = watched  # type: ignore[method-assign]
    trainer.evaluate()
    assert seen == pytest.approx([2 * shares[-1]] * len(seen), rel=1e-4, abs=1e-6) and seen


# NPO beside it


@pytest.mark.parametrize("precompute", ["on", "off"])
def test_npo_is_added_to_repo(precompute: str, build: Build) -> None:
    common = {"ref_model": tiny_model("llama", seed=1), "precompute_reference": precompute}
    both = build(npo_weight=0.7, npo_beta=0.3, retain_text_list=PASSAGES, **common)
    repo = build(retain_text_list=PASSAGES, **common)
    assert (both.sides, repo.sides) == (("chosen", "rejected"), ("chosen",))
    batch, plain = whole_batch(both), whole_batch(repo)
    reference = build(tiny_model("llama", seed=1))
    with torch.no_grad():
        expected = explicit_terms(reference, batch)["log_probability"]
    ratio = explicit_terms(both, batch)["log_probability"] - expected  # (B,)
    npo = (-2 / 0.3 * F.logsigmoid(-0.3 * ratio)).mean()
    losses = [trainer.compute_loss(trainer.model, inputs) for trainer, inputs in ((both, batch), (repo, plain))]
    torch.testing.assert_close(losses[0], losses[1] + 0.7 * npo, rtol=1e-4, atol=1e-5)  # type: ignore[operator]
    found, without, added = slopes(losses[0], both), slopes(losses[1], repo), slopes(0.7 * npo, both)
    assert_same({name: found[name] - without[name] for name in found}, added, rtol=1e-3, atol=1e-4)
    both.train()
    assert logged(both, "npo_loss")[0] == pytest.approx(npo.item(), rel=1e-4)
    assert not logged(repo, "npo_loss")


def test_npo_makes_the_rejected_text_less_likely(build: Build) -> None:
    found = {}
    for weight in (0.0, 2.0):
        trainer = build(npo_weight=weight, max_steps=5)
        trainer.train()
        found[weight] = explicit_terms(trainer, whole_batch(trainer))["log_probability"].mean().item()
    assert found[2.0] < found[0.0] - 1


# A sharpness-aware step


def test_a_sharpness_aware_step_is_the_two_pass_formula(build: Build) -> None:
    common: dict[str, Any] = {
        "ref_model": tiny_model("llama", seed=1),  # so that the retain term has a slope from the first step on
        "bound": "none",
        "erase_side": "both",
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
        "max_steps": 1,
        "retain_text_list": PASSAGES,
    }
    trainer, twin = build(sam_rho=0.3, **common), build(**common)
    start, batch = weights(twin.model), whole_batch(twin)
    twin.model.eval()  # type: ignore[union-attr]  # nothing of the first pass is kept for the discriminators
    slope = slopes(twin.compute_loss(twin.model, batch), twin)  # type: ignore[arg-type]
    length = math.sqrt(sum(grad.square().sum().item() for grad in slope.values()))
    with torch.no_grad():
        for name, parameter in twin.model.named_parameters():
            parameter += 0.3 * slope[name] / length
    twin.model.train()  # type: ignore[union-attr]
    climbed = slopes(twin.compute_loss(twin.model, batch), twin)  # type: ignore[arg-type]
    twin.adversaries.update()
    assert any((climbed[name] - slope[name]).norm() > 0.05 * slope[name].norm() for name in slope)

    events: list[bool | str] = []
    loss, update = trainer.adversaries.loss, trainer.adversaries.update

    def count_loss(domains: Any, strength: float, *, train: bool) -> Any:
        events.append(train)
        return loss(domains, strength, train=train)

    def count_update(*args: Any) -> None:
        events.append("update")
        update(*args)

    trainer.adversaries.loss, trainer.adversaries.update = count_loss, count_update  # type: ignore[method-assign]
    trainer.train()
    assert events == [False, True, "update"]  # of the second pass alone
    expected = {name: start[name] - 0.1 * climbed[name] for name in start}
    assert_same(weights(trainer.model), expected, rtol=1e-3, atol=2e-5)
    assert_same(state_of(trainer.adversaries), state_of(twin.adversaries), rtol=1e-3, atol=1e-5)
    assert len(logged(trainer, "retain_loss")) == 1


# Settings that cannot work


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adversary": "jury"}, "adversary='jury' is unknown. Choose one of bce, wasserstein"),
        ({"erase_schedule": "cosine"}, "erase_schedule='cosine' is unknown. Choose one of constant, ramp, decay"),
        ({"discriminator_ensemble": 0}, "discriminator_ensemble=0: a layer needs at least one discriminator"),
        ({"discriminator_reinit": -1}, "discriminator_reinit=-1: give a number of steps, or 0 to draw them once"),
        ({"gradient_penalty": 0.0}, "gradient_penalty=0.0: it must be a finite number above 0"),
        ({"npo_weight": -1.0}, "npo_weight=-1.0: it must be a finite number, 0 or more"),
        ({"npo_beta": 0.0}, "npo_beta=0.0: it must be a finite number above 0"),
        *(
            (
                {"adversary": "wasserstein", "bound": bound},
                f"bound='{bound}' needs a cross-entropy, which a critic has not .*choose one of layer, none",
            )
            for bound in ("token", "confusion")
        ),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        REPOConfig("out", use_cpu=True, **settings)


def test_the_bound_that_is_chosen() -> None:
    def chosen(**settings: Any) -> str:
        return REPOConfig("out", use_cpu=True, **settings).bound

    assert (chosen(), chosen(adversary="wasserstein")) == ("confusion", "layer")
    assert (chosen(bound="token"), chosen(adversary="wasserstein", bound="none")) == ("token", "none")
