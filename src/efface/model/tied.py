"""How does a tied embedding get its gradient without a second array of (vocabulary x d)?

Where input embedding and output head are one parameter, autograd first makes the head's gradient, then a dense one for
the lookup, almost all zeros, and adds them: 0.7 GB more at Gemma 3's 262,144 words, at the very peak of a step. Here
the lookup goes through an alias of the weight, whose gradient is sparse and is added where the head's already lies.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def sparse_lookup(model: Any) -> Iterator[None]:
    """Within, the lookup of a forward of `model` sends its gradient straight to `weight.grad`.

    Only `backward()` sees that gradient, `torch.autograd.grad` does not. Nothing changes for a model that is not tied,
    does not train its embedding, or is wrapped, by anything (what reduces gradients must see every one pass by).
    """
    # A wrapper may hand on the attributes of what it wraps (DeepSpeed, FSDP): its kind tells, not what it answers to.
    embedding = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    if not isinstance(embedding, nn.Embedding) or not torch.is_grad_enabled():
        yield
        return
    weight, sparse = embedding.weight, embedding.sparse
    head = model.get_output_embeddings()
    whole = type(weight.data) is Tensor  # not a part of it, as fully_shard leaves in the place of parameters
    if not weight.requires_grad or not whole or head is None or head.weight is not weight:
        yield
        return
    alias = nn.Parameter(weight.detach())

    def hand_over(alias: Tensor) -> None:
        gradient, alias.grad = alias.grad, None
        assert gradient is not None
        if weight.grad is None:
            weight.grad = gradient.to_dense()
        else:
            weight.grad.add_(gradient)

    alias.register_post_accumulate_grad_hook(hand_over)
    embedding.weight, embedding.sparse = alias, True
    try:
        yield
    finally:
        embedding.weight, embedding.sparse = weight, sparse
