"""Whose weights does an attack edit? A copy's, with an adapter merged, so that the edit is not lost under it."""

import copy
from typing import TYPE_CHECKING

from efface.errors import UserError
from efface.model.copies import merged

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merged_copy(model: "PreTrainedModel") -> "PreTrainedModel":
    """A copy of `model` in its own precision, with its adapter merged and its interventions still attached.

    Raises:
        UserError: if the weights are packed (quantised), or the adapter cannot be merged.
    """
    student = merged(copy.deepcopy(model))
    if not all(parameter.is_floating_point() for parameter in student.parameters()):
        raise UserError("the model's weights are quantised: they cannot be edited. Load them whole.")
    return student


def without_adapter(model: "PreTrainedModel") -> "PreTrainedModel":
    """`model` itself, or if it has an adapter `merged_copy`: to be read, not changed."""
    from peft import PeftModel  # on use: it costs a second

    adapted = isinstance(model, PeftModel)
    return merged_copy(model) if adapted else model
