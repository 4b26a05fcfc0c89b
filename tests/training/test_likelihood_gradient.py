"""Is the gradient over pairs that of the mean log f, part by part, and is the model left as it was?"""

from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import build
from tiny import tiny_model
from torch import Tensor, nn
from trained import PASSAGES

from efface.data.batch import PairBatch
from efface.errors import RunError
from efface.files.results import write_jsonl
from efface.model.blocks import decoder_blocks
from efface.model.projections import mlp_output_projection
from efface.training.likelihood_gradient import first_batches, likelihood_gradient


def plain(model: Any, batches: list[PairBatch], rows_of: Any) -> Tensor:
    """Mean log f over the tokens of some rows, one row at a time."""
    found = []
    for batch in batches:
        for row in rows_of(batch):
            ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
            log = model(input_ids=ids[None]).logits[0].log_softmax(-1)
            wanted = batch["continuation_mask"][row][: len(ids)].nonzero()[:, 0]
            found += [log[t - 1, ids[t]] for t in wanted]
    return torch.stack(found).mean()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_is_the_gradient_of_the_weighted_means_over_all_batches(family: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in PASSAGES])
    settings: dict[str, Any] = {"retain_text": str(tmp_path / "texts.jsonl"), "per_device_train_batch_size": 3}
    trainer = build("dpo", tiny_model(family), tmp_path, **settings)
    model = trainer.model
    batches = first_batches(trainer, 7, 2)
    assert [batch["n_pairs"] for batch in batches] == [3, 3, 1]
    assert [len(batch["input_ids"]) - 2 * batch["n_pairs"] for batch in batches] == [0, 1, 1]
    weights: list[nn.Parameter] = [mlp_output_projection(block).weight for block in decoder_blocks(model)]
    weights[0].requires_grad_(False)  # also a frozen one may be asked about
    flags = [parameter.requires_grad for parameter in model.parameters()]
    held = torch.ones_like(weights[1])
    weights[1].grad = held
    found = likelihood_gradient(model, batches, {"chosen": -1.0, "rejected": 2.0, "passages": 0.5}, weights)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags and weights[1].grad is held
    weights[0].requires_grad_(True)
    value = (
        -plain(model, batches, lambda batch: range(batch["n_pairs"]))
        + 2 * plain(model, batches, lambda batch: range(batch["n_pairs"], 2 * batch["n_pairs"]))
        + 0.5 * plain(model, batches, lambda batch: range(2 * batch["n_pairs"], len(batch["input_ids"])))
    )
    for a, b in zip(found, torch.autograd.grad(value, weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_what_is_not_used_has_none_and_what_is_broken_is_said(tmp_path: Path) -> None:
    trainer = build("dpo", tiny_model("llama"), tmp_path)
    spare = nn.Parameter(torch.ones(2))
    batches = first_batches(trainer, 2)
    assert torch.equal(likelihood_gradient(trainer.model, batches, {"passages": 1.0}, [spare])[0], torch.zeros(2))
    weight = mlp_output_projection(decoder_blocks(trainer.model)[0]).weight
    with torch.no_grad():
        weight[0, 0] = float("nan")
    with pytest.raises(RunError, match="the gradient of log f is not finite"):
        likelihood_gradient(trainer.model, batches, {"chosen": 1.0}, [weight])
