"""How is a model made ready for training? Adapter or chosen layers, no dropout, something to pad with."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from efface.errors import UserError
from efface.methods.config import PairConfig
from efface.models import decoder_blocks, parse_layers


def prepare_model_(model: PreTrainedModel, args: PairConfig, peft_config: Any) -> PreTrainedModel:
    """The model that will be trained: wrapped in a LoRA adapter, with chosen blocks alone trainable, or as it is."""
    if args.lora_r is not None:
        peft_config = peft_config or lora_config(args)
    if peft_config is not None:
        from peft import get_peft_model

        if args.trainable_layers is not None:
            raise UserError("--trainable_layers is for full fine-tuning; with LoRA choose by --lora_target_modules.")
        try:
            model = get_peft_model(model, peft_config)
        except ValueError as error:  # a rank of 0, modules the model does not have
            raise UserError(f"the LoRA adapter does not fit the model: {error}") from error
        if args.gradient_checkpointing:
            model.enable_input_require_grads()
    elif args.trainable_layers is not None:
        train_only_(model, parse_layers(args.trainable_layers, len(decoder_blocks(model))))
    if args.disable_dropout:
        disable_dropout_(model)
    return model


def disable_dropout_(model: nn.Module) -> None:
    """Set every dropout of `model` to 0, in place: the modules, and the rates that blocks keep as plain numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):  # OPT's `dropout` and `layerdrop`, `attention_dropout` of many
            if isinstance(value, float) and ("dropout" in name or name == "layerdrop"):
                setattr(module, name, 0.0)


def train_only_(model: nn.Module, layers: list[int]) -> None:
    """Freeze everything but the parameters of these decoder blocks, in place."""
    model.requires_grad_(False)
    blocks = decoder_blocks(model)
    for layer in layers:
        blocks[layer].requires_grad_(True)


def lora_config(args: PairConfig) -> Any:
    from peft import LoraConfig

    assert args.lora_r is not None
    names = args.lora_target_modules
    return LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha or 2 * args.lora_r,
        target_modules=names if names == "all-linear" else names.split(","),
        task_type="CAUSAL_LM",
    )
