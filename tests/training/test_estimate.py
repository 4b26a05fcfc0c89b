"""Is the estimate of memory made of what the run is made of, and near what autograd really keeps?"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_model
from trained import PASSAGES, Build, build, whole_batch

from efface.training.estimate import GIB, estimate, kept_per_token, largest_batch

__all__ = ["build"]  # the fixture


def test_what_is_counted_exactly(build: Build) -> None:
    model = tiny_model("llama")
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    live = estimate(build(tiny_model("llama"), precompute_reference="off"))
    head = 4 * model.lm_head.weight.numel()
    assert (live.parameters, live.gradients, live.optimizer, live.reference) == (size, size, 2 * size, size)
    assert live.cache == 0
    cached = estimate(build(tiny_model("llama"), precompute_reference="on", optim="sgd"))
    assert (cached.optimizer, cached.reference) == (0, head) and cached.cache > 4 * 32 * 8
    trainer = build(tiny_model("llama"), lora_r=2, precompute_reference="off")
    adapter = 4 * sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)  # type: ignore[union-attr]
    lora = estimate(trainer)
    assert (lora.gradients, lora.optimizer, lora.reference) == (adapter, 2 * adapter, 0)
    assert lora.parameters == size + adapter


@pytest.mark.parametrize("layout", ["plain", "shared"])
def test_activations_are_what_autograd_keeps(layout: str, build: Build) -> None:
    """Counted on two pairs and scaled, against all that hangs on the graph of a forward of eight."""
    trainer = build(layout=layout, retain_text_list=PASSAGES, precompute_reference="on")
    batch: Any = whole_batch(trainer)
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer.compute_loss(trainer.model, batch)  # type: ignore[arg-type]
    kept = sum(seen.values()) - sum(parameter.nbytes for parameter in trainer.model.parameters())  # type: ignore[union-attr]
    assert 0.5 * kept < kept_per_token(trainer) * batch["input_ids"].numel() < 1.5 * kept


def test_the_largest_batch(build: Build) -> None:
    widths = [
        len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))
        for pair in build().train_dataset.pairs
    ]  # type: ignore[union-attr]
    assert largest_batch(build()) == 2 * 8 * max(widths)
    assert largest_batch(build(max_batch_tokens=120)) == 120
    assert largest_batch(build(retain_text_list=PASSAGES, retain_text_tokens=10)) == 2 * 8 * max(widths) + 20


def test_checkpointing_and_a_token_budget_lower_it(build: Build) -> None:
    plain = estimate(build(precompute_reference="on")).activations
    assert estimate(build(precompute_reference="on", gradient_checkpointing=True)).activations < plain
    assert estimate(build(precompute_reference="on", max_batch_tokens=120)).activations < plain


def test_whether_it_fits_and_what_to_do(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build(precompute_reference="on")
    assert estimate(trainer).fits and "loaded: fits. Cache on disk: 0.000" in str(estimate(trainer))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    tight = estimate(trainer)
    assert not tight.fits
    assert "0.00 free with the model loaded: does not fit: lower per_device_train_batch_size" in str(tight)
    assert tight.total == sum((tight.parameters, tight.gradients, tight.optimizer, tight.reference, tight.activations))
    assert f"parameters {tight.parameters / GIB:.2f}, gradients" in str(tight)
