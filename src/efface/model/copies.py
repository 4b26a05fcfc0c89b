"""How does an adapter become part of the weights? Merged, so that an edit of the weights is not lost under it."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from efface.errors import UserError


def merged(model: Any) -> PreTrainedModel:
    """`model` with an adapter, if it has one, merged into its weights, which are trainable again; changed in place.

    Raises:
        UserError: if the adapter is one of virtual tokens.
    """
    from peft import PeftModel  # on use: it costs a second

    if not isinstance(model, PeftModel):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise UserError(
            f"the model has an adapter of type {model.active_peft_config.peft_type.value}, whose virtual tokens "
            "cannot be merged into weights. Use the model without it."
        )
    return model.merge_and_unload().requires_grad_(True)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside; every module's own mode, which need not be the same for all, is restored at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
