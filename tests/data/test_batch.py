"""Do token ids become exactly the batch they should, whatever pads it?"""

import torch

from efface.data.batch import Example, PairCollator, with_passages
from efface.data.pair_tokens import TokenizedPair


def test_the_collator_stacks_chosen_rows_first_and_passages_last() -> None:
    pairs = [TokenizedPair([5, 6], [7], [8, 9]), TokenizedPair([3], [4, 4, 4], [2])]
    batch = with_passages(PairCollator(pad_token_id=0)([Example(pairs[0]), pairs[1]]), [[11, 12, 13]], 0)
    assert batch["n_pairs"] == 2
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [3, 4, 4, 4], [5, 6, 8, 9], [3, 2, 0, 0], [11, 12, 13, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert batch["continuation_mask"].int().tolist() == [
        [0, 0, 1, 0],
        [0, 1, 1, 1],
        [0, 0, 1, 1],
        [0, 1, 0, 0],
        [0, 1, 1, 0],
    ]
    assert [batch[key].dtype for key in ("input_ids", "attention_mask", "continuation_mask")] == [
        torch.long,
        torch.long,
        torch.bool,
    ]


def test_the_example_in_the_collators_docstring() -> None:
    batch = PairCollator(pad_token_id=0)([TokenizedPair([5, 6], [7], [8, 9])])
    assert repr(batch["input_ids"]) == "tensor([[5, 6, 7, 0],\n        [5, 6, 8, 9]])"


def test_a_padding_id_that_is_also_a_token_is_not_counted() -> None:
    pairs = [TokenizedPair([9, 5], [9], [9, 9]), TokenizedPair([9], [9, 9, 9], [5])]
    batch = PairCollator(pad_token_id=9)(pairs)
    assert batch["attention_mask"].sum(1).tolist() == [3, 4, 4, 2]
    assert batch["continuation_mask"].sum(1).tolist() == [1, 3, 2, 1]


def test_a_passage_longer_than_the_pairs_widens_the_batch() -> None:
    batch = with_passages(PairCollator(pad_token_id=9)([TokenizedPair([5], [7], [8, 6])]), [[1, 2, 3, 4], [2, 3]], 9)
    assert batch["input_ids"].tolist() == [[5, 7, 9, 9], [5, 8, 6, 9], [1, 2, 3, 4], [2, 3, 9, 9]]
    assert batch["attention_mask"].sum(1).tolist() == [2, 3, 4, 2]
    assert batch["continuation_mask"].sum(1).tolist() == [1, 2, 3, 1]
