"""Where do a block's MLP and attention write into the residual stream? At their output projections, in any family.

Both write W x + b, where W is (d_out, d_in) in `nn.Linear` and stored transposed in GPT-2's `Conv1D`: `output_weight`
hides the difference. (Gemma 2 and 3 normalise what is written before they add it.) `linear_maps` lists these and all
other linear maps of the blocks, for whoever edits weights; `expert_maps` those that are no modules of their own.
"""

import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from efface.errors import UserError
from efface.model.blocks import decoder_blocks
from efface.model.families import (
    ATTENTION_OUTPUTS,
    MLP_INPUTS,
    MLP_OUTPUTS,
    NORMS_AFTER_ATTENTION,
    NORMS_AFTER_MLP,
)

logger = logging.getLogger(__name__)


def mlp_output_projection(block: nn.Module, *, whole: bool = True) -> nn.Linear | Conv1D:
    """The last linear map of the MLP of a decoder block (`decoder_blocks(model)[i]`).

    Args:
        whole: nothing of what the MLP writes may come from elsewhere. False takes the one expert that every token goes
            through, beside a mixture of others.

    Raises:
        UserError: if the block has none under a known name, or several, or a mixture of experts.
    """
    if whole and any(_stacks(block)):
        raise UserError(
            f"{type(block).__name__} keeps experts in stacks of matrices, and no one output projection of its MLP "
            "writes all that they do. Use a model without a mixture of experts."
        )
    return _only(block, "MLP", "MLP_OUTPUTS", MLP_OUTPUTS, in_attention=False)


def mlp_input_projection(block: nn.Module) -> nn.Linear | Conv1D:
    """The linear map whose first d_ff outputs go through the activation function of the MLP: of a gated one the gate.

    Raises:
        UserError: if the block has none under a known name, or several.
    """
    return _only(block, "MLP", "MLP_INPUTS", MLP_INPUTS, in_attention=False, side="input")


def attention_output_projection(block: nn.Module) -> nn.Linear | Conv1D:
    """The linear map from the heads of a decoder block to its residual stream.

    Raises:
        UserError: if the block has none under a known name, or several.
    """
    return _only(block, "attention", "ATTENTION_OUTPUTS", ATTENTION_OUTPUTS, in_attention=True)


def output_weight(module: nn.Linear | Conv1D | nn.Embedding) -> Tensor:
    """(d_out, d_in), so that the module computes x W^T + b, of an embedding with x a one-hot row; shares its memory
    with `module.weight`."""
    return module.weight if isinstance(module, nn.Linear) else module.weight.t()


@torch.no_grad()
def gain_after(block: nn.Module, part: str = "MLP") -> Tensor | None:
    """(d,) float64 on the CPU, up to a factor: what the RMS norm after the "MLP" or the "attention" of a block
    multiplies by; None if there is no such norm."""
    names = NORMS_AFTER_MLP if part == "MLP" else NORMS_AFTER_ATTENTION
    found = [getattr(block, name) for name in names if hasattr(block, name)]
    if not found or not any(hasattr(block, name) for name in NORMS_AFTER_MLP):
        return None
    return found[0](torch.ones_like(found[0].weight)).cpu().double()  # Gemma adds 1 to its weight


def through_norm(basis: np.ndarray, block: nn.Module, part: str = "MLP") -> Tensor:
    """(d, k), orthonormal: what the "MLP" or the "attention" of a block must not write, so that `basis` (d, k,
    orthonormal) does not reach the residual stream.

    The same, unless there is an RMS norm (gain g) on the way: u * g / rms(u) has no component along v exactly if u has
    none along g * v.
    """
    directions, gain = torch.from_numpy(basis), gain_after(block, part)
    return directions if gain is None else torch.linalg.qr(gain[:, None] * directions).Q


@torch.no_grad()
def project_out_(module: nn.Linear | Conv1D | nn.Embedding, basis: Tensor) -> float:
    """W <- (I - V V^T) W, and the same for the bias, which is written too; V: `basis` (d_out, k), orthonormal.

    Returns the share of the squared norm of W that was in the subspace.
    """
    weight = output_weight(module)  # (d_out, d_in)
    basis = basis.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
    inside = basis.T @ weight.to(basis.dtype)  # (k, d_in)
    share = (inside.square().sum() / weight.to(basis.dtype).square().sum()).item()
    weight.copy_(weight.to(basis.dtype) - basis @ inside)
    if not isinstance(module, nn.Embedding) and module.bias is not None:
        bias = module.bias.to(basis.dtype)
        module.bias.copy_(bias - basis @ (basis.T @ bias))
    return share


def linear_maps(model: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """Every linear map inside the decoder blocks that is a module, by "layer.path"; not the embedding, the head, the
    norms, or the experts that `expert_maps` lists.

    Raises:
        UserError: if there is none.
    """
    found = {
        f"{layer}.{path}": module
        for layer, block in enumerate(decoder_blocks(model))
        for path, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    if not found:
        raise UserError(f"{type(model).__name__} has no linear maps (nn.Linear, Conv1D) inside its decoder blocks.")
    return found


def expert_maps(model: nn.Module) -> dict[str, Tensor]:
    """Every linear map of experts whose weights lie in one tensor, as transformers 5 keeps a mixture of experts, by
    "layer.path.number": (d_out, d_in), sharing its memory with the model."""
    return {
        f"{layer}.{path}.{number}": one.t() if is_transposed else one
        for layer, block in enumerate(decoder_blocks(model))
        for path, stack, is_transposed in _stacks(block)
        for number, one in enumerate(stack)
    }


def _stacks(block: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Path, (experts, d_out, d_in), and whether it is transposed, of each tensor that holds a map of all experts."""
    for path, module in block.named_modules():
        if hasattr(module, "is_transposed"):  # transformers says so of the experts that it runs itself
            for name, stack in module.named_parameters(recurse=False):
                if stack.ndim == 3:
                    yield f"{path}.{name}", stack.detach(), bool(module.is_transposed)


def refuse_experts(model: nn.Module, what: str) -> None:
    """Raise a `UserError` if there are maps that only `expert_maps` lists: left alone, most of such a model would be.

    Args:
        model: that is edited.
        what: cannot edit them: "gptq".
    """
    if expert_maps(model):
        raise UserError(
            f"{type(model).__name__} keeps its experts in stacks of matrices, which {what} does not reach: most of "
            "its weights would be left as they are. Use a model without a mixture of experts."
        )


def part_unreached(model: nn.Module, reached: int, what: str) -> float:
    """Which part of the weights inside the decoder blocks an edit leaves alone that may change so many of them: of the
    matrices and stacks of matrices, not of the norms and biases. It is warned of: in a mixture of experts it may be
    most.

    Args:
        model: that is edited.
        reached: weights of its blocks that the edit may change.
        what: edits it, for the warning.
    """
    whole = sum(
        parameter.numel()
        for block in decoder_blocks(model)
        for name, parameter in block.named_parameters()
        if parameter.ndim > 1 and not name.endswith("bias")
    )
    if reached < whole:
        logger.warning(
            "%s reaches %d of the %d weights of the matrices in the blocks of %s, and leaves the others (such as "
            "experts and routers) as they are.",
            what,
            reached,
            whole,
            type(model).__name__,
        )
    return 1 - reached / whole


def mlp_maps(block: nn.Module) -> list[nn.Linear | Conv1D]:
    """The linear maps of the MLP of a decoder block, its output projection last.

    Raises:
        UserError: if it has no output projection under a known name, or several, or a mixture of experts.
    """
    last = mlp_output_projection(block)
    maps = [
        module
        for path, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and "att" not in path
    ]
    return [*(module for module in maps if module is not last), last]


def _only(
    block: nn.Module, part: str, table: str, names: tuple[str, ...], *, in_attention: bool, side: str = "output"
) -> nn.Linear | Conv1D:
    found = [
        module
        for path, module in block.named_modules()
        if path.rpartition(".")[2] in names
        and ("att" in path) == in_attention
        and isinstance(module, nn.Linear | Conv1D)
    ]
    if len(found) != 1:
        raise UserError(
            f"{type(block).__name__} has {len(found)} {part} {side} projections under a known name "
            f"({', '.join(names)}), where one is needed. Merge an adapter first; add a new family's name to "
            f"efface.model.families.{table}."
        )
    return found[0]
