"""Is every pair in one batch an epoch, no batch over its budget, little padding, and the order resumable?"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from efface.data.buckets import WINDOW, TokenBudgetBatchSampler, forward_epochs_
from efface.errors import UserError

RAGGED = np.random.default_rng(0).lognormal(4, 0.7, 999).astype(np.int32).clip(4, 512)  # (999,)
SETTINGS: dict[str, Any] = {"max_pairs": 8, "max_tokens": 1024, "seed": 3}


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    lengths = draw(st.lists(st.integers(0, 40), max_size=300))
    return {
        "lengths": lengths,
        "max_pairs": draw(st.integers(1, 9)),
        "max_tokens": draw(st.integers(max([1, *lengths]), 200)),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def padding(batches: list[list[int]], lengths: Any) -> int:
    return sum(len(batch) * max(lengths[i] for i in batch) - sum(lengths[i] for i in batch) for batch in batches)


@given(cases(), st.integers(0, 5))
def test_every_pair_once_an_epoch_and_within_the_budget(case: dict[str, Any], epoch: int) -> None:
    sampler = TokenBudgetBatchSampler(**case)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(i for batch in batches for i in batch) == list(range(len(case["lengths"])))
    assert len(batches) == len(sampler)
    for batch in batches:
        assert type(batch[0]) is int and 1 <= len(batch) <= case["max_pairs"]
        assert len(batch) * max(case["lengths"][i] for i in batch) <= case["max_tokens"]


@given(cases())
def test_batches_are_the_same_in_every_run_and_every_epoch_but_for_their_order(case: dict[str, Any]) -> None:
    one, other = TokenBudgetBatchSampler(**case), TokenBudgetBatchSampler(**case)
    first = list(one)
    assert first == list(one) == list(other)  # iterating does not turn the epoch
    one.set_epoch(1)
    assert sorted(one) == sorted(first) and len(one) == len(first)
    other.set_epoch(5)
    other.set_epoch(1)
    assert list(one) == list(other)


def test_epochs_and_seeds_differ() -> None:
    orders = []
    for seed in (3, 4):
        sampler = TokenBudgetBatchSampler(RAGGED, **SETTINGS | {"seed": seed})
        for epoch in range(3):
            sampler.set_epoch(epoch)
            orders.append(list(sampler))
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])
    assert sorted(orders[0]) != sorted(orders[3])  # another seed also composes other batches


@given(st.lists(st.integers(1, 40), min_size=9, max_size=WINDOW * 2), st.integers(2, 9), st.randoms())
def test_no_other_split_of_a_window_pads_less(lengths: list[int], max_pairs: int, random: Any) -> None:
    lengths = lengths[: len(lengths) // max_pairs * max_pairs]  # a left-over batch may be luckier elsewhere
    sampler = TokenBudgetBatchSampler(lengths, max_pairs=max_pairs, max_tokens=10_000, seed=0)
    order = list(range(len(lengths)))
    random.shuffle(order)
    batches = [order[i : i + max_pairs] for i in range(0, len(order), max_pairs)]
    assert padding(list(sampler), lengths) <= padding(batches, lengths)


def test_ragged_pairs_need_a_fraction_of_the_padding() -> None:
    sampler = TokenBudgetBatchSampler(RAGGED, **SETTINGS)
    order = np.random.default_rng(1).permutation(len(RAGGED)).tolist()
    plain = [order[i : i + 8] for i in range(0, len(order), 8)]
    assert padding(list(sampler), RAGGED) < 0.1 * padding(plain, RAGGED)
    # Not one long sorted list: pairs of a window are a sample of all pairs.
    firsts = [RAGGED[batch[0]] for batch in sampler]
    assert firsts != sorted(firsts) and firsts != sorted(firsts, reverse=True)


def test_batches_are_full_where_the_budget_allows() -> None:
    sampler = TokenBudgetBatchSampler([10] * 21, max_pairs=4, max_tokens=1000, seed=0)
    assert sorted(map(len, sampler)) == [1, 4, 4, 4, 4, 4]
    sampler = TokenBudgetBatchSampler([10] * 21, max_pairs=4, max_tokens=39, seed=0)
    assert sorted(map(len, sampler)) == [3] * 7


def test_a_pair_longer_than_a_batch_is_named() -> None:
    with pytest.raises(
        UserError,
        match=r"^row 2 has 90 tokens, but max_batch_tokens=64 .* Give max_batch_tokens=90 or more, shorten the pairs",
    ):
        TokenBudgetBatchSampler([3, 70, 90, 64], max_pairs=4, max_tokens=64, seed=0)
    assert len(TokenBudgetBatchSampler([3, 64], max_pairs=4, max_tokens=64, seed=0)) == 2


@pytest.mark.parametrize("name", ["max_pairs", "max_tokens"])
def test_limits_of_nothing(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}=0: a batch must hold something. Give a number of 1 or more"):
        TokenBudgetBatchSampler([1], **SETTINGS | {name: 0})


def test_no_pairs() -> None:
    sampler = TokenBudgetBatchSampler([], **SETTINGS)
    assert len(sampler) == 0 and list(sampler) == []


# Under accelerate and the Trainer


def orders(n_epochs: int) -> list[list[list[int]]]:
    """The batches of each epoch, from the sampler itself."""
    sampler, found = TokenBudgetBatchSampler(RAGGED, **SETTINGS), []
    for epoch in range(n_epochs):
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    return found


def loader(drop_last: bool = False) -> tuple[Any, TokenBudgetBatchSampler]:
    sampler = TokenBudgetBatchSampler(RAGGED, drop_last=drop_last, **SETTINGS)
    return DataLoader(range(len(RAGGED)), batch_sampler=sampler, collate_fn=list), sampler  # type: ignore[arg-type]


def test_accelerate_keeps_the_batches_and_turns_the_epoch() -> None:
    plain, sampler = loader()
    prepared = Accelerator(cpu=True).prepare(plain)
    assert prepared.batch_sampler is sampler and len(prepared) == len(sampler)
    assert [list(prepared), list(prepared)] == orders(2)
    prepared.set_epoch(0)
    assert list(prepared) == orders(1)[0]


@pytest.mark.parametrize("drop_last", [False, True])
def test_two_processes_share_the_batches(drop_last: bool) -> None:
    first, second = (
        prepare_data_loader(loader(drop_last)[0], num_processes=2, process_index=index) for index in (0, 1)
    )
    expected = orders(2)
    assert len(expected[0]) % 2 == 1  # the case where one batch is left over
    for order in expected:
        shares = list(first), list(second)
        assert len(shares[0]) == len(first) == len(shares[1]) == len(second)
        seen = [batch for pair in zip(*shares, strict=True) for batch in pair]
        assert seen == (order[:-1] if drop_last else [*order, order[0]])


@pytest.mark.parametrize("processes", [1, 2])
def test_a_skipped_epoch_goes_on_in_its_own_order(processes: int) -> None:
    """What the Trainer does to resume in the middle of an epoch: skip, then say which epoch it is."""
    for index in range(processes):
        plain, sampler = loader()
        prepared = prepare_data_loader(plain, num_processes=processes, process_index=index)
        resumed = skip_first_batches(forward_epochs_(prepared, sampler), 5)
        resumed.set_epoch(1)
        assert list(resumed)[:20] == orders(2)[1][index::processes][5:25]
        prepared.set_epoch(2)
        assert list(prepared)[:20] == orders(3)[2][index::processes][:20]


class Recorder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def forward(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.append(rows.tolist())
        return {"loss": (self.weight * rows).mean()}


class BucketTrainer(Trainer):
    def get_train_dataloader(self) -> DataLoader:
        sampler = TokenBudgetBatchSampler(RAGGED[:150], **SETTINGS)
        plain = DataLoader(
            range(150),  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=lambda rows: {"rows": torch.tensor(rows, dtype=torch.float)},
        )
        return forward_epochs_(self.accelerator.prepare(plain), sampler)


def test_the_trainer_resumes_with_the_same_batches(tmp_path: Path) -> None:
    n = len(TokenBudgetBatchSampler(RAGGED[:150], **SETTINGS))
    cut = (n + 1) // 2 + 4  # optimizer steps: in the middle of the second epoch

    def run(**resume: Any) -> list[list[float]]:
        args = TrainingArguments(
            str(tmp_path), num_train_epochs=3, gradient_accumulation_steps=2, use_cpu=True, report_to="none",
            save_strategy="steps", save_steps=cut, logging_strategy="no", disable_tqdm=True,
            remove_unused_columns=False,
        )  # fmt: skip
        trainer = BucketTrainer(Recorder(), args, train_dataset=list(range(150)))
        trainer.train(**resume)
        return trainer.model.seen

    whole = run()
    sampler = TokenBudgetBatchSampler(RAGGED[:150], **SETTINGS)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert whole[epoch * n : (epoch + 1) * n] == list(sampler)
    resumed = run(resume_from_checkpoint=str(tmp_path / f"checkpoint-{cut}"))
    assert resumed == whole[n + 8 :]
