"""Does the untrained model, in a batch of the run's own making, say what its reference says?

What attends by blocks of the padded batch (BigBird) does not: it would be trained to imitate another model. Whatever
else can make a reference another one (a cache, a precision, a layout) shows here as well.
"""

import logging
from typing import TYPE_CHECKING, Any

import torch

from efface.errors import UserError
from efface.model.blocks import unwrap
from efface.model.chunked import weighted_kl
from efface.model.copies import eval_mode
from efface.training.frozen import tolerance
from efface.training.passes import policy_forward

if TYPE_CHECKING:
    from efface.training.trainer import PairTrainer

logger = logging.getLogger(__name__)


@torch.no_grad()
def check_first_batch(trainer: "PairTrainer") -> None:
    """Raise a `UserError` if there is a KL between the model, as long as it is untrained, and its reference."""
    dataset: Any = trainer.train_dataset
    collate: Any = trainer.data_collator
    args, model, head = trainer.args, trainer.model, trainer.reference_head
    batch = collate([dataset[i] for i in range(min(len(dataset), args.train_batch_size))])
    batch = dataset.add_passages(batch, trainer.passage_stream.numbers(0), trainer.padding)
    inputs: Any = trainer._prepare_inputs(batch)
    project = trainer.project(inputs)
    if head is None or not project.any():
        return
    nothing = torch.zeros_like(project)
    with eval_mode(model), trainer.accelerator.autocast():  # type: ignore[arg-type]
        model.train(args.disable_dropout)  # type: ignore[union-attr]  # as it will run: some families then do otherwise
        policy = policy_forward(model, inputs, project, [], nothing, trainer.layout, exact=bool(args.bf16))  # type: ignore[arg-type]
    states = inputs["reference"] if trainer.reference is None else trainer.reference(inputs, project, [])
    hidden = policy.hidden.to(trainer.head.weight.dtype)
    _, kl = weighted_kl(hidden, trainer.head, states["hidden"].to(hidden), head, hidden.new_ones(len(hidden)))
    off = float(kl.mean())
    if args.bf16 and trainer.reference is None and off > 0:
        logger.warning(
            "the reference from its cache rounds otherwise than the run's own batches: a KL of %.1e nats a token at "
            "the start, which training will chase. --precompute_reference off has none",
            off,
        )
    if off > tolerance(args.reference_dtype if trainer.reference is None else "float32", half=bool(args.bf16)):
        raise UserError(
            f"the untrained {type(unwrap(model)).__name__} differs from its own reference by a KL of {off:.1e} nats a "  # type: ignore[arg-type]
            "token in the run's batches: what it says of a text depends on the batch, so nothing could be retained. "
            "Use another model or attention implementation."
        )
