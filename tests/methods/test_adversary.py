"""Does the two-player game do what its docstring says? The gradient, the weights, the bound, the checkpoint."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from game import D, adversaries, domains, gradients, reference_bce, states, train
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efface.methods.adversary import ERASE_SIDES, Adversaries
from efface.methods.discriminators import KINDS, OBJECTIVES, Domains
from efface.methods.functional import LN2

BOUNDS = OBJECTIVES["bce"].bounds


# The gradient


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_gets_the_explicit_minimax_gradient(kind: str) -> None:
    game = adversaries(kind=kind, bound="none", erase_side="both")
    domain = domains(states(5).requires_grad_(), states(3, seed=1).requires_grad_())
    loss, metrics = game.loss({0: domain}, 1.7)
    plain = reference_bce(game, domain)
    torch.testing.assert_close(loss, plain)
    assert metrics["adversary/bce/0"] == pytest.approx(plain.item())
    for found, expected in zip(
        gradients(loss, domain.benign, domain.toxic), gradients(plain, domain.benign, domain.toxic), strict=True
    ):
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(found, -1.7 * expected)
    # The discriminators' own gradient is not reversed.
    parameters = list(game.discriminators.parameters())
    torch.testing.assert_close(gradients(loss, *parameters), gradients(plain, *parameters))


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("side", ERASE_SIDES)
def test_which_side_is_moved(side: str, bound: str) -> None:
    game = adversaries(bound=bound, erase_side=side)
    domain = domains(states(50).requires_grad_(), states(30, seed=1).requires_grad_())
    loss, _ = game.loss({0: domain}, 1.0)
    benign, toxic = gradients(loss, domain.benign, domain.toxic)
    assert toxic.abs().max() > 0
    assert (benign.abs().max() > 0) == (side == "both")


def test_a_strength_of_zero_moves_nothing() -> None:
    for bound in BOUNDS:
        game = adversaries(bound=bound, erase_side="both")
        domain = domains(states(5).requires_grad_(), states(3, seed=1).requires_grad_())
        loss, _ = game.loss({0: domain}, 0.0)
        assert all(grad.abs().max() == 0 for grad in gradients(loss, domain.benign, domain.toxic))
        assert gradients(loss, *game.discriminators.parameters())[0].abs().max() > 0


def test_the_layer_bound_closes_above_ln2_of_the_last_step() -> None:
    game = adversaries(layers=(0, 1), bound="layer")
    open_, closed = (domains(states(5, seed=i), states(3, seed=i + 9).requires_grad_()) for i in range(2))
    game.last_bce = {"0": LN2, "1": LN2 + 1e-6}
    loss, _ = game.loss({0: open_, 1: closed}, 1.0)
    assert gradients(loss, open_.toxic)[0].abs().max() > 0
    assert gradients(loss, closed.toxic)[0].abs().max() == 0


def test_the_token_bound_spares_the_tokens_that_fool_the_discriminator() -> None:
    game = adversaries(bound="token", erase_side="both")
    domain = domains(states(40).requires_grad_(), states(40, seed=1).requires_grad_())
    loss, _ = game.loss({0: domain}, 1.0)
    for side, sign in ((domain.benign, -1), (domain.toxic, 1)):
        caught = game.discriminators["0"](side) * sign > 0  # right about it: its BCE is below ln 2
        moved = gradients(loss, side)[0].abs().amax(1) > 0
        assert 0 < caught.sum() < 40 and torch.equal(caught, moved)


def test_the_confusion_bound_pulls_the_output_to_one_half() -> None:
    game = adversaries(bound="confusion", erase_side="both")
    domain = domains(states(5).requires_grad_(), states(3, seed=1).requires_grad_())
    loss, _ = game.loss({0: domain}, 2.0)
    torch.testing.assert_close(loss, reference_bce(game, domain))  # the value stays D's cross-entropy
    logits = game.discriminators["0"](domain.states)
    half = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, 0.5), reduction="none")
    expected = gradients(2.0 * (domain.weights * half).sum(), domain.benign, domain.toxic)
    torch.testing.assert_close(gradients(loss, domain.benign, domain.toxic), expected)
    parameters = list(game.discriminators.parameters())  # and D learns its own loss alone
    torch.testing.assert_close(gradients(loss, *parameters), gradients(reference_bce(game, domain), *parameters))


# Weights and figures


@given(n_benign=st.integers(1, 30), n_toxic=st.integers(1, 30))
@settings(max_examples=20)
def test_each_domain_carries_half_of_the_weight(n_benign: int, n_toxic: int) -> None:
    domain = domains(states(n_benign), states(n_toxic, seed=1))
    assert domain.weights[:n_benign].sum().item() == pytest.approx(0.5)
    assert domain.weights[n_benign:].sum().item() == pytest.approx(0.5)
    assert domain.labels.tolist() == [0.0] * n_benign + [1.0] * n_toxic
    game = adversaries()
    assert game.loss({0: domain}, 1.0)[0].item() == pytest.approx(reference_bce(game, domain).item(), rel=1e-5)


def test_repeating_one_domain_changes_nothing() -> None:
    game = adversaries()
    benign, toxic = states(4), states(6, seed=1)
    once, _ = game.loss({0: domains(benign, toxic)}, 1.0)
    often, _ = game.loss({0: domains(benign.repeat(7, 1), toxic)}, 1.0)
    torch.testing.assert_close(once, often)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    benign, toxic = states(9).requires_grad_(), states(5, seed=1).requires_grad_()
    whole, parts = adversaries(), adversaries()
    loss, metrics = whole.loss({0: domains(benign, toxic)}, 1.0)
    counts = torch.tensor(9), torch.tensor(5)
    pieces = [
        parts.loss({0: Domains(benign[:2], toxic[:4], *counts)}, 1.0),
        parts.loss({0: Domains(benign[2:], toxic[4:], *counts)}, 1.0),
    ]
    torch.testing.assert_close(pieces[0][0] + pieces[1][0], loss)
    for name, value in metrics.items():
        assert sum(piece[1][name] for piece in pieces) == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(
        gradients(pieces[0][0] + pieces[1][0], benign, toxic), gradients(loss, benign, toxic), rtol=1e-5, atol=1e-7
    )
    whole.update()
    parts.update()
    torch.testing.assert_close(
        parts.discriminators.state_dict(), whole.discriminators.state_dict(), rtol=1e-5, atol=1e-6
    )
    assert parts.last_bce["0"] == pytest.approx(whole.last_bce["0"]) == pytest.approx(metrics["adversary/bce/0"])


def test_the_loss_is_the_mean_over_layers() -> None:
    game = adversaries(layers=(0, 3))
    one, two = domains(states(4), states(6, seed=1)), domains(states(4, seed=2), states(6, seed=3))
    loss, metrics = game.loss({0: one, 3: two}, 1.0)
    torch.testing.assert_close(loss, (reference_bce(game, one, 0) + reference_bce(game, two, 3)) / 2)
    assert set(metrics) == {f"adversary/{name}/{layer}" for name in ("bce", "balanced_accuracy") for layer in (0, 3)}


def test_balanced_accuracy() -> None:
    game = adversaries(kind="linear")
    with torch.no_grad():
        game.discriminators["0"].head.weight.zero_()  # type: ignore[union-attr,operator]
        game.discriminators["0"].head.bias.fill_(1.0)  # type: ignore[union-attr,operator]
    _, metrics = game.loss({0: domains(states(9), states(1, seed=1))}, 1.0)
    assert metrics["adversary/balanced_accuracy/0"] == pytest.approx(0.5)  # says toxic to all, however many
    assert metrics["adversary/bce/0"] == pytest.approx(0.5 * math.log1p(math.e) + 0.5 * math.log1p(math.exp(-1)))


def test_the_discriminator_does_not_see_scale_or_offset() -> None:
    for kind in KINDS:
        discriminator = adversaries(kind=kind).discriminators["0"]
        hidden = 10 * states(6)
        torch.testing.assert_close(discriminator(hidden), discriminator(30 * hidden + 5), rtol=1e-4, atol=1e-4)
        assert discriminator(hidden.bfloat16()).dtype == torch.float32


# Updates


@pytest.mark.parametrize("kind", KINDS)
def test_the_discriminator_learns(kind: str) -> None:
    game = adversaries(kind=kind, lr=1e-2)
    start = train(game, 1)
    assert train(game, 60, seed=1) < 0.7 * start
    assert game.last_bce["0"] < 0.7 * start


def assert_next_update_is_the_same(*games: Adversaries) -> None:
    domain = domains(states(6, seed=2), states(4, seed=3))
    for game in games:
        loss, _ = game.loss({0: domain}, 1.0)
        game.update()
        assert game.last_bce["0"] == loss.item()
    one, other = (game.discriminators.state_dict() for game in games)
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_an_update_leaves_no_gradient_and_no_states(tmp_path: Path) -> None:
    game, twin = adversaries(), adversaries()
    domain = domains(states(5).requires_grad_(), states(3, seed=1).requires_grad_())
    loss, _ = game.loss({0: domain}, 1.0)
    loss.backward()
    assert any(parameter.grad is not None for parameter in game.discriminators.parameters())
    game.update()
    assert all(parameter.grad is None for parameter in game.discriminators.parameters())
    game.save(tmp_path / "game")  # which holds no states
    twin.load(tmp_path / "game")
    assert_next_update_is_the_same(game, twin)


def test_what_the_models_backward_leaves_does_not_reach_the_update() -> None:
    """So that `w_erase`, by which that gradient is multiplied, does not change the discriminators."""
    plain, heavy = adversaries(), adversaries()
    for game, weight in ((plain, 0.0), (heavy, 1e3)):
        loss, _ = game.loss({0: domains(states(5).requires_grad_(), states(3, seed=1).requires_grad_())}, 1.0)
        (weight * loss).backward()
        game.update()
    torch.testing.assert_close(plain.discriminators.state_dict(), heavy.discriminators.state_dict(), rtol=0, atol=0)


def test_one_update_is_one_adam_step_on_the_weighted_cross_entropy() -> None:
    game, twin = adversaries(steps=1), adversaries(steps=1)
    domain = domains(states(5), states(3, seed=1))
    game.loss({0: domain}, 1.0)
    game.update()
    optimizer = torch.optim.Adam(twin.discriminators.parameters(), lr=1e-3)
    reference_bce(twin, domain).backward()
    torch.nn.utils.clip_grad_norm_(twin.discriminators.parameters(), 1.0)
    optimizer.step()
    torch.testing.assert_close(game.discriminators.state_dict(), twin.discriminators.state_dict())


def test_several_steps_differ_from_one() -> None:
    domain = domains(states(16), states(16, seed=1) + torch.linspace(-1, 1, D))
    after = {}
    for steps in (1, 3):
        game = adversaries(steps=steps, lr=1e-2)
        game.loss({0: domain}, 1.0)
        game.update()
        after[steps] = reference_bce(game, domain).item()
    assert after[3] < after[1] - 1e-3 < reference_bce(adversaries(), domain).item() - 2e-3


def test_without_training_nothing_is_kept() -> None:
    game = adversaries()
    game.loss({0: domains(states(5), states(3, seed=1))}, 1.0, train=False)
    assert_next_update_is_the_same(game, adversaries())


def test_no_clipping_with_a_maximal_norm_of_zero() -> None:
    """As the Trainer reads it: 0 turns clipping off, it does not turn learning off."""
    game, unclipped = adversaries(max_grad_norm=0.0), adversaries(max_grad_norm=1e9)
    train(game, 2)
    train(unclipped, 2)
    torch.testing.assert_close(game.discriminators.state_dict(), unclipped.discriminators.state_dict(), rtol=0, atol=0)


class TwoProcesses:
    """Stands in for an Accelerator whose other process saw the same states."""

    num_processes = 2

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        return 2 * tensor


def test_two_processes_with_half_of_the_states_each_equal_one() -> None:
    benign, toxic = states(6), states(4, seed=1)
    alone, shared = adversaries(steps=1), adversaries(steps=1)
    alone.loss({0: domains(benign.repeat(2, 1), toxic.repeat(2, 1))}, 1.0)
    alone.update()
    shared.loss({0: Domains(benign, toxic, torch.tensor(12), torch.tensor(8))}, 1.0)
    shared.update(TwoProcesses())  # type: ignore[arg-type]
    torch.testing.assert_close(shared.discriminators.state_dict(), alone.discriminators.state_dict())
    assert shared.last_bce["0"] == pytest.approx(alone.last_bce["0"])  # or the bound would never close


def test_the_start_is_seeded_and_leaves_the_global_state() -> None:
    before = torch.get_rng_state()
    one, same, other = adversaries(seed=1), adversaries(seed=1), adversaries(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    name = next(iter(one.discriminators.state_dict()))
    assert torch.equal(one.discriminators.state_dict()[name], same.discriminators.state_dict()[name])
    assert not torch.equal(one.discriminators.state_dict()[name], other.discriminators.state_dict()[name])


# The bound


def play(bound: str, side: str = "both", steps: int = 150) -> list[float]:
    """Hidden states that are free to move, against a discriminator that lags: the worst case. BCE of each step.

    The states follow plain gradient descent. Adam's momentum would carry them on after a bound has stopped the push,
    and a discriminator this slow never catches up: how far is a matter of the learning rates, not of the bound.
    """
    game = adversaries(bound=bound, erase_side=side, lr=1e-5, steps=1, seed=3)
    benign = states(32).requires_grad_()
    toxic = (states(32, seed=1) + torch.linspace(-1, 1, D)).requires_grad_()
    warm_up = torch.optim.Adam(game.discriminators.parameters(), lr=1e-2)
    for _ in range(100):  # it has learnt to tell them, then falls behind
        warm_up.zero_grad()
        reference_bce(game, domains(benign.detach(), toxic.detach())).backward()
        warm_up.step()
    optimizer = torch.optim.SGD([benign, toxic], lr=0.05)
    trace = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss, metrics = game.loss({0: domains(benign, toxic)}, 10.0)
        loss.backward()
        optimizer.step()
        game.update()
        trace.append(metrics["adversary/bce/0"])
    return trace


@pytest.mark.parametrize("side", ERASE_SIDES)
def test_the_plain_objective_swaps_the_classes(side: str) -> None:
    trace = play("none", side)
    assert trace[0] < 0.3 and trace[-1] > 1.5  # far above ln 2 = 0.69


@pytest.mark.parametrize("side", ERASE_SIDES)
@pytest.mark.parametrize("bound", ["layer", "token", "confusion"])
def test_a_bound_stops_the_push_at_confusion(bound: str, side: str) -> None:
    trace = play(bound, side)
    assert trace[0] < 0.3
    assert 1.5 * trace[0] < sum(trace[-20:]) / 20 <= 1.15 * LN2  # pushed, but not past confusion


# The checkpoint


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_game_goes_on_as_the_saved_one(kind: str, tmp_path: Path) -> None:
    game = adversaries(kind=kind, lr=1e-2)
    train(game, 5)
    game.save(tmp_path / "d.safetensors")
    copy = adversaries(kind=kind, lr=1e-2, seed=9)
    copy.load(tmp_path / "d.safetensors")
    assert copy.last_bce == game.last_bce and game.last_bce["0"] != LN2
    train(game, 3, seed=77)
    train(copy, 3, seed=77)
    for name, tensor in game.discriminators.state_dict().items():
        assert torch.equal(copy.discriminators.state_dict()[name], tensor), name
    assert copy.last_bce == game.last_bce


def test_adams_state_is_part_of_the_checkpoint(tmp_path: Path) -> None:
    game = adversaries(lr=1e-2)
    train(game, 5)
    game.save(tmp_path / "d.safetensors")
    weights_only = adversaries(lr=1e-2)
    weights_only.discriminators.load_state_dict(game.discriminators.state_dict())
    whole = adversaries(lr=1e-2)
    whole.load(tmp_path / "d.safetensors")
    train(weights_only, 1, seed=77)
    train(whole, 1, seed=77)
    name = next(iter(whole.discriminators.state_dict()))
    assert not torch.equal(whole.discriminators.state_dict()[name], weights_only.discriminators.state_dict()[name])
