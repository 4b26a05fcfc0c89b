"""How does an adapter become part of the weights? Merged, so that an edit of the weights is not lost under it."""

from typing import Any

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
