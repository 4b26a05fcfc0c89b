"""What do tests put through a model, and what does the model say when it is asked plainly?"""

from functools import cache

import torch
from tiny import VOCAB_SIZE, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from efface.data.batch import PairBatch, PairCollator, with_passages
from efface.data.pair_tokens import TokenizedPair

TEXT = "The history of the town"


@cache
def model_of(family: str) -> PreTrainedModel:
    return tiny_model(family)


def batch(lengths: tuple[int, ...] = (20, 7, 13), *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Random rows of these lengths, padded with an id that is also an ordinary token."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, VOCAB_SIZE, (length,), generator=generator) for length in lengths]
    input_ids = torch.full((len(rows), max(lengths)), 5)
    mask = torch.zeros_like(input_ids)
    for i, row in enumerate(rows):
        place = slice(max(lengths) - len(row), None) if left else slice(0, len(row))
        input_ids[i, place], mask[i, place] = row, 1
    return input_ids, mask


def plain_logits(model: nn.Module, row: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=row[None]).logits[0]


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


Lengths = list[tuple[int, int, int]]  # of prompt, chosen and rejected
RAGGED: Lengths = [(7, 5, 9), (1, 12, 3), (4, 1, 1), (11, 4, 6)]


def batch_of(lengths: Lengths, passages: list[int] | None = None, seed: int = 0) -> PairBatch:
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist()

    batch = PairCollator(pad_token_id=0)([TokenizedPair(*(ids(n) for n in pair)) for pair in lengths])
    return with_passages(batch, [ids(n) for n in passages or []], 0)


Lengths = list[tuple[int, int, int]]
