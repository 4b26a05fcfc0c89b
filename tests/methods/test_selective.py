"""Is the selection the formula, is it linear, and does selective erasure change the erase gradient of MLPs alone?"""

from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import build
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model
from torch import Tensor
from trained import PASSAGES

from efface.errors import UserError
from efface.files.results import write_jsonl
from efface.methods import PLAIN
from efface.methods.selective import DAMPINGS, Components, mlp_matrices


def matrix(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(other: Tensor, gradient: Tensor, k: int, damping: str) -> Tensor:
    """The formula with dense matrices and a whole SVD, one side after the other."""
    u, s, vt = torch.linalg.svd(gradient)
    c = {"soft": s[k - 1] / s[:k], "quadratic": (s[k - 1] / s[:k]) ** 2, "hard": torch.zeros(k).double()}[damping]
    left = torch.eye(len(u)).double() - u[:, :k] @ torch.diag(1 - c) @ u[:, :k].T
    right = torch.eye(len(vt)).double() - vt[:k].T @ torch.diag(1 - c) @ vt[:k]
    return left @ other @ right


@settings(max_examples=25)
@given(rows=st.integers(2, 9), columns=st.integers(2, 9), seed=st.integers(0, 99), damping=st.sampled_from(DAMPINGS))
def test_it_is_the_formula_for_itself_and_for_another_gradient(
    rows: int, columns: int, seed: int, damping: str
) -> None:
    gradient, other = matrix(rows, columns, seed), matrix(rows, columns, seed + 1)
    components = Components.of(gradient, 0.5)
    k = max(round(0.5 * min(rows, columns)), 1)
    assert components.left.shape == (rows, k) and components.right.shape == (columns, k)
    for each in (gradient, other):
        torch.testing.assert_close(components.damp(each, damping), plain(each, gradient, k, damping))
    torch.testing.assert_close(  # linear: micro-batches and processes add up
        components.damp(gradient + 2 * other, damping),
        components.damp(gradient, damping) + 2 * components.damp(other, damping),
    )


@pytest.mark.parametrize("damping", DAMPINGS)
def test_of_itself_the_top_is_cut_to_what_comes_after_and_below_nothing_changes(damping: str) -> None:
    u, _ = torch.linalg.qr(matrix(6, 6, 0))
    v, _ = torch.linalg.qr(matrix(6, 6, 1))
    sizes = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.25]).double()
    found = Components.of(u @ torch.diag(sizes) @ v.T, 0.5).damp(u @ torch.diag(sizes) @ v.T, damping)
    expected = {  # both sides: c^2 times the size
        "soft": [8 / 16, 4 / 4, 2.0],
        "quadratic": [8 / 256, 4 / 16, 2.0],
        "hard": [0.0, 0.0, 0.0],
    }[damping]
    torch.testing.assert_close((u.T @ found @ v).diagonal(), torch.tensor([*expected, 1.0, 0.5, 0.25]).double())


def test_what_has_no_rank_is_not_divided_by() -> None:
    nothing = Components.of(torch.zeros(4, 3), 1.0)
    assert torch.equal(nothing.damp(torch.ones(4, 3), "soft"), torch.ones(4, 3))
    one = Components.of(torch.ones(4, 3), 1.0)
    assert len(one.sizes) == 1 and one.sizes.item() == pytest.approx(12**0.5)
    torch.testing.assert_close(one.damp(torch.ones(4, 3), "hard"), torch.zeros(4, 3), atol=1e-6, rtol=0)


SETTINGS: dict[str, Any] = {
    "max_steps": 1,
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "grl_schedule": "constant",
}


def step_of(family: str, folder: Path, **more: Any) -> dict[str, Tensor]:
    """How the weights move in one plain step of gradient descent: minus their gradient."""
    model = tiny_model(family)
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = build("repo", model, folder, **PLAIN | SETTINGS | more)
    trainer.train()
    return {name: weight.detach() - start[name] for name, weight in model.named_parameters()}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_erase_gradient_of_mlps_is_damped_and_nothing_else(family: str, tmp_path: Path) -> None:
    """Against another reference the retain terms have a gradient: it is there untouched."""
    write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in PASSAGES])
    more: dict[str, Any] = {"retain_text": str(tmp_path / "texts.jsonl"), "retain_text_per_pair": 0.25}
    model = tiny_model(family)
    names = {name for name, w in model.named_parameters() if any(w is each for each in mlp_matrices(model))}
    full = step_of(family, tmp_path / "full", **more)
    kept = step_of(family, tmp_path / "retain", w_erase=0.0, w_retain=0.5, **more)
    selective: dict[str, Any] = more | {"erase_gradient": "selective", "selective_damping": "hard"}
    everything = step_of(family, tmp_path / "all", selective_share=1.0, **selective)
    some = step_of(family, tmp_path / "some", selective_share=0.25, **selective)
    for name in full:
        if name not in names:  # to the bit what they were
            assert torch.equal(some[name], full[name]), name
            continue
        # All components gone, what is left is the retain terms' gradient (here rounding) alone.
        torch.testing.assert_close(everything[name], kept[name], atol=2e-4, rtol=1e-3)
        assert (some[name] - full[name]).norm() > 1e-3 * full[name].norm(), name
        assert some[name].norm() < full[name].norm(), name


def test_accumulated_steps_are_one_large_one_and_autocast_works(tmp_path: Path) -> None:
    common = {"erase_gradient": "selective", "selective_share": 0.25}
    one = step_of("llama", tmp_path / "one", **common)
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    several = step_of("llama", tmp_path / "several", **common, **parts)
    for name in one:
        torch.testing.assert_close(one[name], several[name], rtol=1e-3, atol=1e-5)
    again = step_of("llama", tmp_path / "again", **common, gradient_checkpointing=True)
    assert all(torch.equal(again[name], one[name]) for name in one)
    half = step_of("llama", tmp_path / "half", **common, bf16=True, gradient_checkpointing=True)
    cosines = [torch.cosine_similarity(half[n].flatten(), one[n].flatten(), dim=0) for n in one if one[n].any()]
    assert min(cosines) > 0.9


def test_weights_in_half_precision_train_too(tmp_path: Path) -> None:
    trainer = build("repo", tiny_model("llama").bfloat16(), tmp_path, max_steps=1, erase_gradient="selective")
    trainer.train()
    assert all(weight.isfinite().all() for weight in trainer.model.parameters()) and 0 < trainer.selective.kept < 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_run_goes_on_to_the_bit_and_says_what_is_kept(family: str, tmp_path: Path) -> None:
    common: dict[str, Any] = {"erase_gradient": "selective", "max_steps": 3}
    whole = build("repo", tiny_model(family), tmp_path, save_strategy="steps", save_steps=2, **common)
    whole.train()
    kept = [entry["erase_gradient_kept"] for entry in whole.state.log_history if "loss" in entry]
    assert len(kept) == 3 and all(0 < each < 1 for each in kept)
    again = build("repo", tiny_model(family), tmp_path, **common)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))


def test_with_chosen_neurons_the_rest_still_does_not_move(tmp_path: Path) -> None:
    model = tiny_model("llama")
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = build("repo", model, tmp_path, **SETTINGS, erase_gradient="selective", trainable="toxic_neurons:0.1")
    trainer.train()
    masks = {id(weight): mask.expand(weight.shape) for weight, mask, _ in trainer.neurons._masks}
    for name, weight in model.named_parameters():
        moved = weight.detach() != start[name]
        assert not moved.any() if id(weight) not in masks else torch.equal(moved, moved & masks[id(weight)]), name
    assert sum(int((w.detach() != start[n]).sum()) for n, w in model.named_parameters()) > 600, "of 1,248"


def test_without_mlp_matrices_and_for_no_share_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="damps the gradient of MLP matrices, and none is trained here"):
        build("repo", tiny_model("llama"), tmp_path, erase_gradient="selective", lora_r=2)
    with pytest.raises(UserError, match="erase_gradient='some' is unknown"):
        build("repo", tiny_model("llama"), tmp_path, erase_gradient="some")
    for share in (0.0, 1.5):
        with pytest.raises(UserError, match=f"selective_share={share}: it must be above 0 and at most 1"):
            build("repo", tiny_model("llama"), tmp_path, selective_share=share)
