"""Whose weights are changed, and whose stay? A copy's, with its adapter merged, so that an edit is not lost under it;
and what holds for a model while something looks at it: no dropout, no gradients of weights.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from efface.errors import UserError
from efface.model.blocks import decoder_blocks
from efface.model.whole import without_old_names

LORA: Any = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def check_adapter(model: Any) -> None:
    """Raise a `UserError` if an adapter has been put into `model` by transformers, and not around it by PEFT: it can
    be neither switched off nor merged here, and would not be saved with its base's name."""
    from peft import PeftModel  # on use: it costs a second

    if hasattr(model, "peft_config") and not isinstance(model, PeftModel):
        raise UserError(
            f"{type(model).__name__} holds an adapter that transformers has put into it, and no PeftModel is around "
            "it to merge it or switch it off. Pass what load_model gives for the adapter, or "
            "PeftModel.from_pretrained(base, adapter)."
        )


def merged(model: Any) -> PreTrainedModel:
    """`model` with an adapter, if it has one, merged into its weights, which are trainable again; changed in place.

    Raises:
        UserError: if the adapter is one of virtual tokens, or in the model without a `PeftModel` around it.
    """
    from peft import PeftModel  # on use: it costs a second

    check_adapter(model)
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
    if not _is_whole(student):
        raise UserError("the model's weights are quantised: they cannot be edited. Load them whole.")
    return student


def without_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """`model` itself, or if it has an adapter `merged_copy`: to be read, not changed."""
    from peft import PeftModel  # on use: it costs a second

    adapted = isinstance(model, PeftModel)
    return merged_copy(model) if adapted else model


def trainable_copy(
    model: PreTrainedModel, lora_r: int | None = None, lora_alpha: int | None = None, last_blocks: int | None = None
) -> PreTrainedModel:
    """A copy of `model` with its adapter merged, whose weights are all trained, in float32, or a new adapter's alone.

    The random start of a new adapter is drawn from the global random state.

    Args:
        lora_r: rank of the new adapter.
        lora_alpha: its scale times the rank; None for twice the rank.
        last_blocks: without an adapter, train only so many of the last decoder blocks, the norms outside of the blocks
            and the output head, if its weight is not that of the embedding.

    Raises:
        UserError: if it cannot be trained: quantised weights without `lora_r`, an adapter that cannot be merged, fewer
            blocks than `last_blocks`.
    """
    student = merged(copy.deepcopy(model))
    if lora_r is not None:
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(r=lora_r, lora_alpha=lora_alpha or 2 * lora_r, **LORA)
        with without_old_names():
            return get_peft_model(student, settings)  # type: ignore[return-value]
    if not _is_whole(student):
        raise UserError("the model's weights are quantised: they cannot be trained. Load them whole, or set lora_r.")
    student = student.float().requires_grad_(True)
    if last_blocks is not None:
        _freeze_before_(student, last_blocks)
    return student


def _freeze_before_(student: Any, last_blocks: int) -> None:
    blocks, head = decoder_blocks(student), student.get_output_embeddings()
    if last_blocks > len(blocks):
        raise UserError(f"last_blocks={last_blocks}, but the model has {len(blocks)}. Lower it.")
    trained = {*blocks[len(blocks) - last_blocks :].parameters()}
    trained |= {parameter for parameter in student.parameters() if parameter.ndim == 1} - {*blocks.parameters()}
    if head.weight is not student.get_input_embeddings().weight:
        trained |= {*head.parameters()}
    for parameter in student.parameters():
        parameter.requires_grad_(parameter in trained)


def _is_whole(model: nn.Module) -> bool:
    """Whether no weight is packed into integers."""
    return all(parameter.is_floating_point() for parameter in model.parameters())


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


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No weight wants a gradient inside, so that a graph keeps nothing for one; afterwards those do that did."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
