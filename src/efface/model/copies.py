"""How does an adapter become part of the weights? Merged, so that an edit of the weights is not lost under it."""

import contextlib
import copy
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


def merged_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of `model` in its own precision, with its adapter merged and its interventions still attached.

    Raises:
        UserError: if the weights are packed (quantised), or the adapter cannot be merged.
    """
    student = merged(copy.deepcopy(model))
    if not all(parameter.is_floating_point() for parameter in student.parameters()):
        raise UserError("the model's weights are quantised: they cannot be edited. Load them whole.")
    return student


def without_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """`model` itself, or if it has an adapter `merged_copy`: to be read, not changed."""
    from peft import PeftModel  # on use: it costs a second

    adapted = isinstance(model, PeftModel)
    return merged_copy(model) if adapted else model


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
