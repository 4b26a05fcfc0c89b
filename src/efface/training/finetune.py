"""How is a model fine-tuned on plain text?

One function for every throw-away toxic copy: anti-expert, task vector, relearning. Whoever holds the weights can train
all of them, so the copy is trainable whatever the model's own flags say.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from efface.checks import one_of, positive
from efface.data.tokens import tokens_of
from efface.errors import RunError, UserError
from efface.generation.likelihood import mean_nll
from efface.model.blocks import accepted
from efface.model.copies import eval_mode, trainable_copy
from efface.model.devices import keep_random_state
from efface.model.padding import max_positions, pad_batch, position_ids
from efface.terminal.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SCHEDULES = ("constant", "linear")
OPTIMIZERS = ("adamw", "sgd")
MOMENTUM = 0.9
"""Of SGD."""


class Diverged(RunError):
    """Fine-tuning has left nothing that could be measured: the learning rate is too high."""


def finetune(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    texts: Sequence[str | Sequence[int]],
    *,
    steps: int,
    batch_size: int = 16,
    learning_rate: float = 3e-5,
    max_length: int = 48,
    lora_r: int | None = None,
    lora_alpha: int | None = None,
    last_blocks: int | None = None,
    schedule: str = "constant",
    optimizer: str = "adamw",
    bf16: bool = False,
    seed: int = 0,
    on_step: "Callable[[int, PreTrainedModel], None] | None" = None,
    progress: bool = False,
) -> "PreTrainedModel":
    """Train a copy of `model` on `texts` with next-token cross-entropy and return the copy.

    `model` and the global random state are left as they were, and what else is random (dropout, the adapter's start)
    is seeded.

    Args:
        model: also a frozen one; an adapter that it has is merged into the copy first.
        texts: drawn without replacement in a seeded order, begun again when used up. Token ids are taken as they are.
        max_length: tokens of a text that are used; never more than the model has positions.
        lora_r: rank of a LoRA adapter (on all linear maps), which alone is trained; the copy is then returned with it,
            as a `PeftModel`. None trains all weights, in float32: half precision would round most of AdamW's small
            steps away.
        lora_alpha: of the adapter; None for twice the rank.
        last_blocks: without an adapter, train only so many of the last blocks, see `trainable_copy`.
        schedule: of the rate: one of SCHEDULES, constant or linear, which falls to zero over the steps.
        optimizer: one of OPTIMIZERS; sgd has a momentum of 0.9, and wants far higher rates.
        bf16: multiply in bfloat16 (autocast; weights, gradients and optimizer stay in float32): a training of its own,
            and faster where the machine is (`is_fast_in_half`).
        on_step: called after each step with its number (from 1) and the copy, which is in training mode, for curves.

    Raises:
        UserError: if no text has two tokens, or the settings or the model do not allow it.
        Diverged: if the loss is not finite.
    """
    positive("learning_rate", learning_rate)
    positive("batch_size", batch_size)
    one_of("schedule", schedule, SCHEDULES)
    one_of("optimizer", optimizer, OPTIMIZERS)
    for name, value in (("lora_r", lora_r), ("lora_alpha", lora_alpha), ("last_blocks", last_blocks)):
        if value is not None:
            positive(name, value)
    encoded = (tokens_of(processing_class, text) if isinstance(text, str) else list(text) for text in texts)
    limit = max_positions(model)
    max_length = max_length if limit is None else min(max_length, limit)
    rows = [ids[:max_length] for ids in encoded if len(ids[:max_length]) > 1]
    if not rows:
        raise UserError(f"none of the {len(texts)} texts to fine-tune on has two tokens or more. Give longer texts.")
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    with keep_random_state():
        torch.manual_seed(seed)
        student = trainable_copy(model, lora_r, lora_alpha, last_blocks).train()
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        stepper: torch.optim.Optimizer
        if optimizer == "sgd":
            stepper = torch.optim.SGD(trained, lr=learning_rate, momentum=MOMENTUM)
        else:
            stepper = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0, fused=True)
        for step in track(range(1, steps + 1), "fine-tuning", show=progress):
            if schedule == "linear":
                for group in stepper.param_groups:
                    group["lr"] = learning_rate * (1 - (step - 1) / steps)
            while len(order) < batch_size:
                order += torch.randperm(len(rows), generator=generator).tolist()
            batch, order = order[:batch_size], order[batch_size:]
            with torch.autocast(student.device.type, torch.bfloat16, enabled=bf16):
                loss = next_token_loss(student, [rows[i] for i in batch])
            if not math.isfinite(loss.item()):
                raise Diverged(
                    f"the fine-tuning loss is {loss.item()} at step {step}. Lower learning_rate (now "
                    f"{learning_rate:g}), or check that the model's weights are finite."
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            stepper.step()
            stepper.zero_grad()
            if on_step is not None:
                on_step(step, student)
    return student.eval()


@torch.no_grad()
def raise_if_diverged(model: "PreTrainedModel", text: list[int], step: int, learning_rate: float) -> None:
    """Raise `Diverged` unless the loss of `model` on `text` (token ids) is finite after `step` steps."""
    with eval_mode(model):
        loss = next_token_loss(model, [text]).item()
    if not math.isfinite(loss):
        raise Diverged(
            f"the model's output is not finite after step {step}. Lower learning_rate (now {learning_rate:g})."
        )


def next_token_loss(model: "PreTrainedModel", rows: list[list[int]]) -> torch.Tensor:
    """Mean -log p over all tokens of `rows` (token ids) but the first of each."""
    input_ids, mask = pad_batch(rows, 0, model.device, left=False)  # (batch, T)
    inputs = {"input_ids": input_ids, "attention_mask": mask, "position_ids": position_ids(mask), "use_cache": False}
    logits = model(**accepted(model, **inputs)).logits
    predicted = mask[:, 1:].bool()
    return mean_nll(logits[:, :-1], input_ids[:, 1:], predicted)
