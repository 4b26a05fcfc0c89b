"""Does every micro-batch get its passages, and the reference's states in the order of the batch?"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efface.data.batch import PairCollator
from efface.data.dataset import PairDataset, PassageStream
from efface.data.pair_tokens import TokenizedPair


@given(st.integers(1, 20), st.integers(1, 7), st.integers(0, 5))
def test_every_micro_batch_has_as_many_passages_and_every_turn_has_all(n: int, per_batch: int, seed: int) -> None:
    stream = PassageStream(n, per_batch, seed)
    batches = [stream.numbers(i) for i in range(3 * n)]
    assert all(len(batch) == per_batch for batch in batches)
    dealt = [number for batch in batches for number in batch]
    for turn in range(len(dealt) // n):
        assert sorted(dealt[turn * n : (turn + 1) * n]) == list(range(n))
    assert PassageStream(n, per_batch, seed).numbers(3 * n - 1) == batches[-1]  # the number alone decides
    assert PassageStream(0, per_batch, seed).numbers(0) == []


def test_passages_are_shuffled_anew_in_each_turn() -> None:
    stream = PassageStream(50, 50, seed=1)
    assert stream.numbers(0) != stream.numbers(1) != sorted(stream.numbers(1))
    assert stream.numbers(0) != PassageStream(50, 50, seed=2).numbers(0)


@pytest.mark.parametrize("sides", [("chosen",), ("chosen", "rejected")])
def test_what_the_reference_is_asked_comes_back_in_the_order_of_the_batch(sides: tuple[str, ...]) -> None:
    pairs = [TokenizedPair([1, 2], [3, 4], [5]), TokenizedPair([6], [7], [8, 9]), TokenizedPair([1], [2, 2, 2], [3])]
    dataset = PairDataset(pairs, [[10, 11, 12], [13, 14]], sides)
    items = list(dataset.items)
    assert items[: len(sides)] == [([1, 2], [3, 4]), ([1, 2], [5])][: len(sides)]
    assert items[-2:] == [([10], [11, 12]), ([13], [14])] and len(items) == 3 * len(sides) + 2
    # A reference whose state at a predicted token is the token itself.
    dataset.states = [
        {"hidden": torch.tensor(ids)[:, None].float(), "norms": -torch.tensor(ids)[:, None].float()}
        for _, ids in items
    ]
    batch = dataset.add_passages(PairCollator(pad_token_id=0)([dataset[2], dataset[0]]), [1, 0], 0)
    mask, n = batch["continuation_mask"].clone(), 2
    assert batch["reference"]["norms"].flatten().tolist() == [-float(i) for i in batch["input_ids"][:n][mask[:n]]]
    if "rejected" not in sides:
        mask[n : 2 * n] = False
    assert batch["reference"]["hidden"].flatten().tolist() == batch["input_ids"][mask].tolist()
