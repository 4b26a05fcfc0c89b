"""Are a step's terms those of whole rows' logits and states? Is a `loss(step)` with its `needs` all of a method?"""

from pathlib import Path
from typing import Any

import pytest
import torch
from formulas import token_kl, token_log_probabilities
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor
from trained import PASSAGES, ROWS, logged, whole_batch

from efface.data.preferences import SIDES
from efface.training.config import PairConfig
from efface.training.step import Loss, Needs, Step, pool_rows, sum_rows
from efface.training.trainer import PairTrainer


class Mine(PairTrainer):
    """A method of a third party that asks for everything."""

    @classmethod
    def needs(cls, args: Any, n_blocks: int) -> Needs:
        return Needs(sides=SIDES, layers=list(range(n_blocks)), residuals=SIDES)

    def loss(self, step: Step) -> Loss:
        self.seen = step
        text, metrics = step.retain()
        kl, means = step.kl({"rejected": 2.0})
        moved = [(step.states(0, side) - step.reference_states(0, side)).square().mean(-1) for side in SIDES]
        change = sum(step.mean(values, over=side) for values, side in zip(moved, SIDES, strict=True))
        return text + kl + change + step.mean(step.log_ratio("chosen"), over="pairs"), metrics | means


@pytest.fixture
def trainer(tmp_path: Path) -> Mine:
    """Its reference is another model, so that nothing is 0 by chance."""
    settings: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "max_steps": 2, "logging_steps": 1}
    return Mine(
        tiny_model("llama"),
        PairConfig(str(tmp_path), bf16=False, retain_text_per_pair=0.25, **settings),
        ROWS,
        processing_class=tiny_tokenizer(),
        ref_model=tiny_model("llama", seed=1),
        retain_text=PASSAGES,
    )


def test_terms_are_those_of_whole_rows(trainer: Mine) -> None:
    batch, n = whole_batch(trainer), len(ROWS)
    trainer.compute_loss(trainer.model, batch)  # type: ignore[arg-type]
    step, mask = trainer.seen, batch["continuation_mask"]
    with torch.no_grad():
        found, expected = (
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
            for model in (trainer.model, trainer.reference.model)  # type: ignore[union-attr,misc]
        )
    parts = {"chosen": slice(0, n), "rejected": slice(n, 2 * n), "passages": slice(2 * n, None)}

    def likely(output: Any, side: str) -> Tensor:  # the token at t is predicted at t - 1
        rows, ids = parts[side], batch["input_ids"][parts[side], 1:]
        every = token_log_probabilities(output.logits[rows, :-1].flatten(0, 1), ids.flatten()).view_as(ids)
        return torch.where(mask[rows, 1:], every, 0.0)

    for side in SIDES:
        rows = parts[side]
        assert step.tokens[side] == mask[rows].sum() == step.lengths(side).sum()
        assert torch.equal(step.mask(side), mask[rows]) and step.share(side) == 1
        same(step.log_probabilities(side), likely(found, side)[mask[rows, 1:]])
        same(step.sequence_log_probabilities(side), likely(found, side).sum(1))
        same(step.log_ratio(side), (likely(found, side) - likely(expected, side)).sum(1))
        # Of layer 0: the last entry of `hidden_states` is after the final norm.
        states = found.hidden_states[1][rows]
        same(step.states(0, side), states[mask[rows]])
        same(step.reference_states(0, side), expected.hidden_states[1][rows][mask[rows]])
        same(step.sequence_states(0, side)[3], states[3][mask[rows][3]].mean(0))
    same(step.reference_norms(0), step.reference_states(0, "chosen").norm(dim=-1))
    same(step.log_ratio(*SIDES), torch.cat([step.log_ratio(side) for side in SIDES]))
    kl = {
        part: token_kl(expected.logits[rows, :-1], found.logits[rows, :-1])[mask[rows, 1:]].mean()
        for part, rows in parts.items()
    }
    total, means = step.kl({"passages": 0.5, "chosen": 3.0})
    same(total, 3 * kl["chosen"] + 0.5 * kl["passages"])
    assert means == {part: pytest.approx(kl[part].item(), rel=1e-4) for part in ("chosen", "passages")}


def test_terms_of_micro_batches_add_up(trainer: Mine) -> None:
    batch = whole_batch(trainer)
    trainer.compute_loss(trainer.model, batch)  # type: ignore[arg-type]
    whole, counts = trainer.seen, torch.stack(list(trainer.seen.counts))
    dataset: Any = trainer.train_dataset
    steps = []
    for rows in (range(3), range(3, len(ROWS))):
        part: Any = trainer.data_collator([dataset[i] for i in rows])
        trainer.compute_loss(trainer.model, part, num_items_in_batch=counts)  # type: ignore[arg-type]
        steps.append(trainer.seen)
    same(sum(step.share("rejected") for step in steps), torch.tensor(1.0))
    for term in (
        lambda step: step.mean(step.log_probabilities("rejected"), over="rejected"),
        lambda step: step.mean(step.log_ratio("chosen"), over="pairs"),
        lambda step: step.kl({"chosen": 2.0})[0],
        lambda step: step.mean(step.states(1, "rejected").norm(dim=-1), over="rejected"),
    ):
        same(sum(map(term, steps)), term(whole))


def test_a_method_is_a_loss_and_what_it_needs(trainer: Mine) -> None:
    trainer.train()
    losses = logged(trainer, "loss")  # type: ignore[arg-type]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert all(kl > 0 for kl in logged(trainer, "rejected"))  # type: ignore[arg-type]


def test_rows_are_averaged_and_summed() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0]], dtype=torch.bool)
    states = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])  # at the three marked tokens
    assert pool_rows(states, mask).tolist() == [[2.0, 3.0], [0.0, 0.0], [5.0, 6.0]]  # an empty row is not NaN
    assert sum_rows(states[:, 0], mask).tolist() == [4.0, 0.0, 5.0]


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
