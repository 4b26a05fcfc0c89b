"""Which way do weights have to go for some text to become likelier? A gradient over many pairs, in float32.

    sum over parts p of  coefficient_p * (1 / N_p) sum over the N_p tokens t of p of  d log f(t | context) / d W

A part is what a batch calls one: the chosen continuations, the rejected ones, ordinary passages (`step.py`). It is no
training step: nothing is moved, and the gradients that the weights hold stay. RepSelect takes its edit from it,
selective erasure what is common to benign text, and a mask of neurons what each of them does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from efface.data.batch import PairBatch, predicting_positions, with_passages
from efface.errors import RunError
from efface.model.chunked import token_log_probabilities
from efface.model.copies import eval_mode, frozen
from efface.model.forward import Head
from efface.training.passes import policy_forward
from efface.training.step import PARTS


def likelihood_gradient(
    model: PreTrainedModel,
    batches: Sequence[PairBatch],
    coefficients: Mapping[str, float],
    weights: Sequence[Tensor],
    each: Callable[[Sequence[PairBatch]], Sequence[PairBatch]] = lambda batches: batches,
) -> list[Tensor]:
    """The gradient above with respect to each of `weights`, of its shape; zero where a weight is not used.

    Args:
        model: also frozen weights of it may be asked about; as it is, an adapter that is on takes part.
        batches: on the model's device.
        coefficients: of the parts that count; of others not even the forward is run.
        each: what the batches go through, such as a progress bar.

    Raises:
        RunError: if the gradient is not finite.
    """
    found = [torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) for weight in weights]
    counts = {part: sum(int(_rows_of(part, batch).sum()) for batch in batches) for part in coefficients}
    with eval_mode(model), frozen(model):
        for weight in weights:
            weight.requires_grad_(True)
        try:
            head = Head.of(model)
            for batch in each(batches):
                value = _mean_log_probability(model, head, batch, coefficients, counts)
                if value is None:
                    continue
                for total, part in zip(found, torch.autograd.grad(value, weights, allow_unused=True), strict=True):
                    if part is not None:
                        total += part
        finally:
            for weight in weights:
                weight.requires_grad_(False)  # `frozen` gives back what was trained
    if not all(total.isfinite().all() for total in found):
        raise RunError("the gradient of log f is not finite: the model's weights are broken, or too large for it.")
    return found


def first_batches(trainer: Any, n_pairs: int, n_passages: int = 0) -> list[PairBatch]:
    """The first pairs of a trainer in batches of the size that it trains with, and the first passages spread over
    them; the same on every process, whichever it would train on."""
    dataset, args = trainer.train_dataset, trainer.args
    n_pairs, n_passages = min(n_pairs, len(dataset)), min(n_passages, len(dataset.passages))
    starts = range(0, n_pairs, args.per_device_train_batch_size)
    found = []
    for i, start in enumerate(starts):
        pairs = dataset.pairs
        batch = trainer.data_collator(
            [pairs[k] for k in range(start, min(start + args.per_device_train_batch_size, n_pairs))]
        )
        numbers = range(i * n_passages // len(starts), (i + 1) * n_passages // len(starts))
        batch = with_passages(batch, [dataset.passages[k] for k in numbers], trainer.padding)
        found.append(trainer._prepare_inputs(batch))
    return found


def _rows_of(part: str, batch: PairBatch) -> Tensor:
    """(rows, T) bool: the tokens of a part."""
    mask, n = batch["continuation_mask"], batch["n_pairs"]
    first, last = {"chosen": (0, n), "rejected": (n, 2 * n), "passages": (2 * n, len(mask))}[part]
    rows = torch.zeros_like(mask)
    rows[first:last] = mask[first:last]
    return rows


def _mean_log_probability(
    model: PreTrainedModel,
    head: Head,
    batch: PairBatch,
    coefficients: Mapping[str, float],
    counts: Mapping[str, int],
) -> Tensor | None:
    """What one batch adds to the weighted sum of means; None if it has no token of any part."""
    rows = {part: _rows_of(part, batch) for part in PARTS if coefficients.get(part)}
    mask = torch.stack(list(rows.values())).any(0)  # (rows, T): the tokens that count
    if not mask.any():
        return None
    share = torch.zeros(mask.shape, device=mask.device)
    for part, of_part in rows.items():
        share[of_part] = coefficients[part] / counts[part]
    states = policy_forward(model, batch, predicting_positions(mask), [], mask, "plain").hidden  # (tokens, d)
    found = token_log_probabilities(states.to(head.weight.dtype), head, batch["input_ids"][mask])
    return (share[mask].to(found.dtype) * found).sum()


def from_first_process(trainer: Any, found: Any) -> Any:
    """What the first process has found: what others have may differ in the last digit, and a choice then in a whole
    neuron. Tensors come on the device of the model."""
    if trainer.accelerator.num_processes == 1:
        return found
    carried = tree_map_only(Tensor, lambda tensor: tensor.cpu(), found)
    return tree_map_only(Tensor, lambda tensor: tensor.to(trainer.model.device), broadcast_object_list([carried])[0])
