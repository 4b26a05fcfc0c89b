"""Do ragged rows go through a model in batches of like length, and does padding change nothing?"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model

from efface.model.padding import batches_by_length, most_columns, pad_batch, position_ids

LENGTHS = st.lists(st.integers(1, 30), max_size=40)
BOUND = st.one_of(st.none(), st.integers(1, 50))


@given(LENGTHS, BOUND, BOUND)
def test_every_item_is_in_one_batch_within_the_bounds(
    lengths: list[int], max_rows: int | None, max_tokens: int | None
) -> None:
    batches = batches_by_length(range(len(lengths)), lengths.__getitem__, max_rows, max_tokens=max_tokens)
    assert [number for batch in batches for number in batch] == sorted(
        range(len(lengths)), key=lambda number: (-lengths[number], number)
    )
    for i, batch in enumerate(batches):
        assert batch and (max_rows is None or len(batch) <= max_rows)
        assert max_tokens is None or len(batch) == 1 or len(batch) * lengths[batch[0]] <= max_tokens
        more = len(batch) + 1  # a batch that is not the last one is full
        room = (max_rows is None or more <= max_rows) and (
            max_tokens is None or more * lengths[batch[0]] <= max_tokens
        )
        assert i == len(batches) - 1 or not room


@given(LENGTHS, st.integers(1, 9))
def test_the_shortest_first(lengths: list[int], max_rows: int) -> None:
    batches = batches_by_length(range(len(lengths)), lengths.__getitem__, max_rows, longest_first=False)
    assert [number for batch in batches for number in batch] == sorted(range(len(lengths)), key=lengths.__getitem__)
    assert all(len(batch) == max_rows for batch in batches[:-1])


@pytest.mark.parametrize("left", [False, True])
def test_a_padded_batch(left: bool) -> None:
    ids, mask = pad_batch([[5], [6, 7, 8]], 9, torch.device("cpu"), left=left)
    assert ids.tolist() == [[9, 9, 5] if left else [5, 9, 9], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1] if left else [1, 0, 0], [1, 1, 1]]


def test_position_ids() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])
    assert position_ids(mask).tolist() == [[0, 1, 2, 2], [0, 0, 0, 1]]


def test_only_eager_attention_bounds_the_columns() -> None:
    model = tiny_model("gpt2")
    assert most_columns(model) is None
    model.set_attn_implementation("eager")
    assert most_columns(model) == model.config.n_positions
