"""Which neurons are chosen, and does nothing else move? With every method, optimizer and decay; resumed; masked."""

from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import TRAINED, build
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model
from torch import nn

from efface.errors import UserError
from efface.model.blocks import decoder_blocks
from efface.model.projections import gain_after, mlp_maps, output_weight
from efface.training.likelihood_gradient import first_batches
from efface.training.neurons import attribution_scores, highest, read_choice, value_scores

TENTH = "toxic_neurons:0.1"
MASKED = [name for name in TRAINED if name != "circuit_breakers"]  # which trains an adapter


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved_neurons(trainer: Any, start: dict[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Block -> (d_ff,) bool: what moved of the MLPs; fails if anything else did."""
    now, found, seen = weights(trainer.model), {}, set()
    for layer, block in enumerate(decoder_blocks(trainer.model)):
        *inputs, last = mlp_maps(block)
        width = output_weight(last).shape[1]
        moved = torch.zeros(width, dtype=torch.bool)
        for name, parameter in trainer.model.named_parameters():
            for module in (*inputs, last):
                if parameter is module.weight:
                    changed = now[name] != start[name]  # in the memory's own order
                    changed = changed if output_weight(module) is module.weight else changed.T
                    moved |= changed.any(0) if module is last else changed.any(1).view(-1, width).any(0)
                    seen.add(name)
                elif module is not last and parameter is module.bias:
                    moved |= (now[name] != start[name]).view(-1, width).any(0)
                    seen.add(name)
        found[layer] = moved
    assert all(torch.equal(now[name], start[name]) for name in now if name not in seen)
    return found


@pytest.mark.parametrize("method", MASKED)
@pytest.mark.parametrize(("family", "spec"), [("gpt2", TENTH), ("llama", f"{TENTH}/attribution")])
def test_with_every_method_the_chosen_neurons_move_and_nothing_else(
    method: str, family: str, spec: str, tmp_path: Path
) -> None:
    model = tiny_model(family)
    start = weights(model)
    layers = {"trainable_layers": "0"} if method == "rmu" else {}  # what is steered is the state after block 0
    trainer = build(method, model, tmp_path, trainable=spec, weight_decay=0.5, **layers)
    chosen = trainer.neurons.chosen
    trainer.train()
    moved = moved_neurons(trainer, start)
    assert all(each.any() for layer, each in moved.items() if layer in chosen and chosen[layer].any())
    assert all(
        not (each & ~chosen[layer]).any() if layer in chosen else not each.any() for layer, each in moved.items()
    )


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor", "normalized_sgd"])
def test_whatever_the_optimizer_the_rest_is_left_to_the_bit(optim: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    start = weights(model)
    trainer = build("repo", model, tmp_path, trainable=TENTH, weight_decay=0.5, optim=optim, bf16=optim == "sgd")
    trainer.train()
    moved = moved_neurons(trainer, start)
    assert all(torch.equal(moved[layer], each) for layer, each in trainer.neurons.chosen.items())


def test_a_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    common: dict[str, Any] = {"trainable": TENTH, "weight_decay": 0.1, "max_steps": 3}
    whole = build("dpo", tiny_model("llama"), tmp_path, save_strategy="steps", save_steps=2, **common)
    whole.train()
    again = build("dpo", tiny_model("llama"), tmp_path, **common)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 3
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))


def test_the_gradient_that_is_clipped_is_that_of_the_chosen_alone(tmp_path: Path) -> None:
    trainer = build("dpo", tiny_model("llama"), tmp_path, trainable=TENTH, max_steps=1)
    norms = []
    trainer._clip_grad_norm, inner = (
        lambda model: norms.append(gradient_norm(trainer)) or inner(model),
        trainer._clip_grad_norm,
    )
    trainer.train()
    (logged,) = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert norms == [pytest.approx(logged)]


def gradient_norm(trainer: Any) -> float:
    """Of what is trained."""
    found = [(parameter.grad * mask).norm() for parameter, mask, _ in trainer.neurons._masks]
    return float(torch.stack(found).norm())


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_scores_are_the_cosine_and_what_removing_a_neuron_does(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    trainer = build("dpo", model, tmp_path)
    batches, last = first_batches(trainer, 8), len(decoder_blocks(model)) - 1
    states: list[list[torch.Tensor]] = [[], []]
    log: list[list[torch.Tensor]] = [[], []]
    activations: list[torch.Tensor] = []

    def run() -> torch.Tensor:
        """log f(y-) - log f(y+), means over all tokens; row by row."""
        for lists in (states, log):
            lists[:] = [[], []]
        for batch in batches:
            for row in range(2 * batch["n_pairs"]):
                ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
                at = batch["continuation_mask"][row][: len(ids)].nonzero()[:, 0]
                kept: list[torch.Tensor] = []
                handle = decoder_blocks(model)[last].register_forward_hook(
                    lambda module, args, output, kept=kept: kept.append(
                        output[0] if isinstance(output, tuple) else output
                    )
                )
                logits = model(input_ids=ids[None]).logits[0].log_softmax(-1)
                handle.remove()
                side = row >= batch["n_pairs"]
                states[side].append(kept[0].reshape(len(ids), -1)[at])
                log[side].append(logits[at - 1, ids[at]])
        return torch.cat(log[1]).mean() - torch.cat(log[0]).mean()

    block = decoder_blocks(model)[0]
    handle = mlp_maps(block)[-1].register_forward_pre_hook(
        lambda module, args: activations.append(args[0].detach().requires_grad_()) or (activations[-1],)
    )
    margin = run()
    slopes = torch.autograd.grad(margin, activations)
    handle.remove()
    effect = sum((a * g).reshape(-1, a.shape[-1]).sum(0) for a, g in zip(activations, slopes, strict=True))
    torch.testing.assert_close(attribution_scores(model, batches, [0])[0], effect.detach(), rtol=1e-3, atol=1e-5)
    direction = torch.cat(states[1]).mean(0) - torch.cat(states[0]).mean(0)
    values = output_weight(mlp_maps(block)[-1])
    gain = gain_after(block)
    values = values if gain is None else values * gain[:, None].float()
    cosine = (values.T @ direction) / values.norm(dim=0) / direction.norm()
    torch.testing.assert_close(value_scores(model, batches, [0])[0], cosine.detach(), rtol=1e-3, atol=1e-5)


@settings(max_examples=25)
@given(share=st.floats(0.001, 1.0), seed=st.integers(0, 99))
def test_the_share_of_all_neurons_with_the_highest_scores_is_chosen(share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {layer: torch.randn(20, generator=generator) for layer in (1, 3)}
    chosen = highest(scores, share)
    inside = torch.cat([scores[layer][chosen[layer]] for layer in scores])
    outside = torch.cat([scores[layer][~chosen[layer]] for layer in scores])
    assert len(inside) == max(round(share * 40), 1)
    assert not len(outside) or inside.min() >= outside.max()


@pytest.mark.parametrize("spec", ["some", "toxic_neurons", "toxic_neurons:0", "toxic_neurons:1.5", "toxic_neurons:nan",
                                  "toxic_neurons:0.1/", "toxic_neurons:0.1/probe", "neurons:0.1"])  # fmt: skip
def test_what_is_no_choice_is_refused(spec: str) -> None:
    with pytest.raises(UserError, match="is neither `all` nor toxic_neurons:SHARE"):
        read_choice(spec)


def test_an_adapter_is_trained_instead_and_steering_below_all_of_them_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the model has an adapter, which is trained instead"):
        build("dpo", tiny_model("llama"), tmp_path, trainable=TENTH, lora_r=2)
    with pytest.raises(
        UserError, match="no neuron of trainable='toxic_neurons:0.1' lies in a block up to steer_layer=0"
    ):
        build("rmu", tiny_model("llama"), tmp_path, trainable=TENTH, trainable_layers="1", steer_layer="0")


def test_a_block_in_which_none_is_chosen_is_not_within_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """REPO erasing below all chosen neurons would erase nothing, without a word."""
    chosen = {0: torch.zeros(64, dtype=torch.bool), 1: torch.arange(64) < 4}
    monkeypatch.setattr("efface.training.neurons.highest", lambda scores, share: chosen)
    with pytest.raises(UserError, match="erase_layers|out of reach|no weight"):
        build("repo", tiny_model("llama"), tmp_path, trainable=TENTH, erase_layers="0")
    trainer = build("repo", tiny_model("llama"), tmp_path, trainable=TENTH, erase_layers="1")
    assert not any(each.requires_grad for each in trainer.model.model.layers[0].parameters())


def test_it_is_said_and_recorded_where_it_is_on(tmp_path: Path) -> None:
    trainer = build("dpo", tiny_model("llama"), tmp_path, trainable=TENTH)
    assert "of these only 1,248, those of 13 of 128 MLP neurons" in trainer.describe()
    assert trainer.record()["trainable"] == {"neurons": 13, "of": 128, "weights": 1248}
    assert "trainable" not in build("dpo", tiny_model("llama"), tmp_path).record()
