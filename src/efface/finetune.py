"""How is a model fine-tuned on plain text?

One function for every throw-away toxic copy: anti-expert, task vector, relearning.
"""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from efface.errors import UserError
from efface.models import position_ids, tokens_of
from efface.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def finetune(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    steps: int,
    batch_size: int = 16,
    learning_rate: float = 3e-5,
    max_length: int = 48,
    seed: int = 0,
    on_step: "Callable[[int, PreTrainedModel], None] | None" = None,
    progress: bool = False,
) -> "PreTrainedModel":
    """Train a copy of `model` on `texts` with next-token cross-entropy (AdamW, constant rate) and return the copy.

    Args:
        texts: drawn without replacement in a seeded order, begun again when used up.
        max_length: tokens of a text that are used.
        on_step: called after each step with its number (from 1) and the copy, for curves.

    Raises:
        UserError: if no text has two tokens.
    """
    rows = [ids for text in texts if len(ids := tokens_of(processing_class, text)[:max_length]) > 1]
    if not rows:
        raise UserError(f"none of the {len(texts)} texts to fine-tune on has two tokens or more. Give longer texts.")
    student = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(
        [p for p in student.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0.0
    )
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for step in track(range(1, steps + 1), "fine-tuning on toxic text", show=progress):
        while len(order) < batch_size:
            order += torch.randperm(len(rows), generator=generator).tolist()
        batch, order = order[:batch_size], order[batch_size:]
        _next_token_loss(student, [rows[i] for i in batch]).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if on_step is not None:
            on_step(step, student)
    return student.eval()


def _next_token_loss(model: "PreTrainedModel", rows: list[list[int]]) -> torch.Tensor:
    width = max(map(len, rows))
    input_ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)  # (batch, T)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    logits = model(input_ids=input_ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False).logits
    predicted = mask[:, 1:].bool()
    return F.cross_entropy(logits[:, :-1][predicted].float(), input_ids[:, 1:][predicted])
