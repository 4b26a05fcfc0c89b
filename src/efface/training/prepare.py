"""How is a model made ready for training? Adapter or chosen layers, no dropout, something to pad with."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from efface.errors import UserError
from efface.model.blocks import decoder_blocks, parse_layers
from efface.model.whole import without_old_names
from efface.training.config import PairConfig

logger = logging.getLogger(__name__)


def prepare_model_(
    model: PreTrainedModel, args: PairConfig, peft_config: Any, *, off_is_reference: bool
) -> PreTrainedModel:
    """The model that will be trained: wrapped in a LoRA adapter, with chosen blocks alone trainable, or as it is.

    Args:
        model: changed in place.
        args: say which of these.
        peft_config: the caller's own adapter; None: that of `args`, if they ask for one.
        off_is_reference: with its adapter off the model is to be its own reference.

    Raises:
        UserError: if an adapter does not fit the model or its reference, or nothing would be trained.
    """
    kept = list(model.parameters()) if peft_config is not None and off_is_reference else []
    before = _sums(kept)
    if args.lora_r is not None:
        peft_config = peft_config or lora_config(args)
    if peft_config is not None:
        from peft import get_peft_model

        if args.trainable_layers is not None:
            raise UserError("trainable_layers is for full fine-tuning; with LoRA choose by lora_target_modules.")
        try:
            with without_old_names():
                model = get_peft_model(model, peft_config)
        except ValueError as error:  # a rank of 0, modules the model does not have
            raise UserError(f"the LoRA adapter does not fit the model: {error}") from error
        if _sums(kept) != before:
            raise UserError(
                "peft_config changes weights of the base (as PiSSA, OLoRA and KaSA do), so that with the adapter off "
                "it is not the model that was given, and no reference. Pass ref_model, or another peft_config, such "
                "as one with init_lora_weights=True."
            )
        if args.gradient_checkpointing:
            model.enable_input_require_grads()
    elif args.trainable_layers is not None:
        train_only_(model, parse_layers(args.trainable_layers, len(decoder_blocks(model))))
    if args.disable_dropout:
        disable_dropout_(model)
    _check_trainable(model)
    return model


def _sums(parameters: list[nn.Parameter]) -> list[float]:
    return [parameter.detach().float().sum().item() for parameter in parameters]


def _check_trainable(model: PreTrainedModel) -> None:
    """Raise a `UserError` if nothing would be trained, or in a precision that swallows the steps; warn if it may."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    if not dtypes:
        advice = "Unfreeze some, or set trainable_layers or lora_r."
        if hasattr(model, "peft_config"):
            advice = "Load its adapter with is_trainable=True; trainable_layers must name blocks that it adapts."
        raise UserError(
            f"none of the parameters of {type(model).__name__} is trainable (requires_grad): training would leave it "
            f"as it is. {advice}"
        )
    if torch.float16 in dtypes:
        raise UserError(
            "the trained weights are float16, in which gradients overflow and small ones vanish. Load the model with "
            "dtype=torch.float32; bf16=True keeps the forward fast."
        )
    if torch.bfloat16 in dtypes:
        logger.warning(
            "the trained weights are bfloat16: an optimizer's small steps round away in most of them, and with them "
            "the edit. Load the model with dtype=torch.float32; bf16=True keeps the forward fast."
        )


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters are trained, and how many there are."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


class Trainable:
    """Which parameters require a gradient: in the caller's model, as long as it is not trained, and in training.

    Args:
        model: the caller's.
        adapted: it gets an adapter, whose flags are nobody else's business.
    """

    def __init__(self, model: nn.Module, *, adapted: bool):
        self._callers = {} if adapted else _flags_of(model)
        self._trained: dict[nn.Parameter, bool] = {}

    @contextlib.contextmanager
    def in_training(self, model: nn.Module) -> Iterator[None]:
        """Within, `model` is trainable as it was prepared; then the caller's parameters are as they were before."""
        _set_flags_(self._trained)  # trained before, and handed back
        try:
            yield
        finally:
            if self._callers:
                self._trained = _flags_of(model)
                _set_flags_(self._callers)


def _flags_of(model: nn.Module) -> dict[nn.Parameter, bool]:
    return {parameter: parameter.requires_grad for parameter in model.parameters()}


def _set_flags_(flags: dict[nn.Parameter, bool]) -> None:
    for parameter, trained in flags.items():
        parameter.requires_grad_(trained)


def raise_if_out_of_reach(model: nn.Module, layers: list[int], what: str) -> None:
    """Raise a `UserError` if no trained weight comes before the end of any of `layers`: their states cannot change.

    Args:
        what: the setting that names the layers.
    """
    blocks = decoder_blocks(model)
    behind = {parameter for block in blocks[max(layers) + 1 :] for parameter in block.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trained and all(parameter in behind for parameter in trained):
        raise UserError(
            f"the trained weights all lie in blocks above {max(layers)}, the highest of {what}, and so cannot change "
            "what is erased there. Train lower blocks, or choose higher layers."
        )


def disable_dropout_(model: nn.Module) -> None:
    """Set every dropout of `model` to 0, in place: the modules, and the rates that blocks keep as plain numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):  # OPT's `dropout` and `layerdrop`, `attention_dropout` of many
            if isinstance(value, float) and ("dropout" in name or name == "layerdrop"):
                setattr(module, name, 0.0)


def train_only_(model: nn.Module, layers: list[int]) -> None:
    """Freeze everything but the parameters of these decoder blocks, in place; of a model with an adapter, everything
    but what of that is trainable there, since the base's own weights are not saved with it."""
    blocks = decoder_blocks(model)
    chosen = [parameter for layer in layers for parameter in blocks[layer].parameters()]
    if hasattr(model, "peft_config"):
        chosen = [parameter for parameter in chosen if parameter.requires_grad]
    model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)


def lora_config(args: PairConfig) -> Any:
    from peft import LoraConfig

    names = args.lora_target_modules
    assert args.lora_r is not None and names is not None
    return LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha or 2 * args.lora_r,
        target_modules=names if isinstance(names, str) else list(names),  # a text is all-linear
        task_type="CAUSAL_LM",
    )
