"""Where do a block's MLP and attention write into the residual stream? At their output projections, in any family.

Both write W x + b, where W is (d_out, d_in) in `nn.Linear` and stored transposed in GPT-2's `Conv1D`: `output_weight`
hides the difference. (Gemma 2 and 3 normalise what is written before they add it.)
"""

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from efface.errors import UserError

MLP_OUTPUTS = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out")
ATTENTION_OUTPUTS = ("o_proj", "c_proj", "out_proj", "dense")


def mlp_output_projection(block: nn.Module) -> nn.Linear | Conv1D:
    """The last linear map of the MLP of a decoder block (`decoder_blocks(model)[i]`).

    Raises:
        UserError: if the block has none under a known name, or several (a mixture of experts).
    """
    return _only(block, "MLP", "MLP_OUTPUTS", MLP_OUTPUTS, in_attention=False)


def attention_output_projection(block: nn.Module) -> nn.Linear | Conv1D:
    """The linear map from the heads of a decoder block to its residual stream.

    Raises:
        UserError: if the block has none under a known name, or several.
    """
    return _only(block, "attention", "ATTENTION_OUTPUTS", ATTENTION_OUTPUTS, in_attention=True)


def output_weight(module: nn.Linear | Conv1D) -> Tensor:
    """(d_out, d_in), so that the module computes x W^T + b; shares its memory with `module.weight`."""
    return module.weight.t() if isinstance(module, Conv1D) else module.weight


def _only(
    block: nn.Module, part: str, table: str, names: tuple[str, ...], *, in_attention: bool
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
            f"{type(block).__name__} has {len(found)} {part} output projections under a known name "
            f"({', '.join(names)}), where one is needed. Merge an adapter first; add a new family's name to "
            f"efface.projections.{table}."
        )
    return found[0]
