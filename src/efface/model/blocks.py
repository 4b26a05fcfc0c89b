"""Where are a model's decoder blocks and its residual stream, and which arguments does its forward take?

With `forward.py` this is the only place that knows how a decoder is built; exceptions are in `families.py`.
"""

import contextlib
import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from efface.errors import UserError
from efface.model.families import BLOCK_OVERRIDES


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks in order: the outermost `nn.ModuleList` of length `config.num_hidden_layers`."""
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr,operator]
    override = BLOCK_OVERRIDES.get(config.model_type)
    if override is not None:
        return model.get_submodule(override)  # type: ignore[return-value]
    found = [
        (name.count("."), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    if not found:
        raise UserError(
            f"{type(model).__name__} has no nn.ModuleList of {config.num_hidden_layers} decoder blocks. "
            "Add its path to efface.model.families.BLOCK_OVERRIDES."
        )
    return min(found, key=lambda entry: entry[0])[2]


def parse_layers(spec: str | int | Sequence[int | float], n_layers: int) -> list[int]:
    """Layer numbers (0 = first block) from `last`, `all`, or numbers and fractions such as `8,16,-1` or `0.5,0.75`.

    A negative number counts from the end; a fraction strictly between 0 and 1 is a relative depth.

    Raises:
        UserError: for a word that is no layer, or a layer the model does not have.
    """
    if isinstance(spec, str):
        if spec == "all":
            return list(range(n_layers))
        items: Sequence[Any] = ["-1" if part.strip() == "last" else part.strip() for part in spec.split(",")]
    else:
        items = [spec] if isinstance(spec, int) else spec
    layers: list[int] = []
    for item in items:
        try:
            number = float(item)
            if not math.isfinite(number):
                raise ValueError
        except ValueError:
            raise UserError(
                f"layer {item!r} is neither a number, `last` nor `all` (as in `last`, `8,16,-1` or `0.5`)."
            ) from None
        index = int(number * n_layers) if 0 < number < 1 else int(number)
        if (index != number and not 0 < number < 1) or not -n_layers <= index < n_layers:
            raise UserError(
                f"layer {item} does not exist: "
                f"the model has {n_layers} layers, 0 to {n_layers - 1} (or -1 to -{n_layers})."
            )
        layers.append(index % n_layers)
    return sorted(set(layers))


@contextlib.contextmanager
def capture_residuals(model: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Within the context every forward writes the residual stream after each of `layers` into the yielded dict.

    The tensors are (batch, T, d), part of the graph, before any final norm (unlike `hidden_states[-1]`). A second
    forward, such as the recomputation of gradient checkpointing, overwrites.
    """
    captured: dict[int, Tensor] = {}
    blocks = decoder_blocks(model)

    def hook_for(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            captured[layer] = states_in(output)

        return hook

    handles = [blocks[layer].register_forward_hook(hook_for(layer)) for layer in layers]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def states_in(output: Any) -> Any:
    """The hidden states in what a decoder block gave: all of it, or its first part."""
    return output[0] if isinstance(output, tuple | list) else output


def accepted(model: Any, **inputs: Any) -> dict[str, Any]:
    """Those of `inputs` that a forward of the unwrapped `model` takes, and a router that keeps its scores to itself.

    A mixture of experts whose configuration says `output_router_logits` would compute its balancing loss in every
    forward, and fail where a mask is longer than the new tokens. That loss is not part of any method here.
    """
    while hasattr(model, "get_base_model"):  # PEFT's forward takes anything
        model = model.get_base_model()
    parameters = inspect.signature(model.forward).parameters
    if "output_router_logits" in parameters:
        inputs["output_router_logits"] = False
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return inputs
    return {name: value for name, value in inputs.items() if name in parameters}


def unwrap(model: nn.Module) -> Any:
    """The model inside DDP or torch.compile."""
    if not hasattr(model, "module") and not hasattr(model, "_orig_mod"):
        return model  # in neither; accelerate would walk through all its modules to see that
    from accelerate.utils import extract_model_from_parallel

    return extract_model_from_parallel(model, keep_fp32_wrapper=True)
