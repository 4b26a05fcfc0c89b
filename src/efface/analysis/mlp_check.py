"""Does a block add to the residual stream what its MLP writes, as it is or through an RMS norm?

So it is in most families, and then what a neuron adds can be read from its value vector (`neurons.py`). Others
multiply it by a number (Granite), multiply the whole stream after it (Gemma 4) or put a norm over both (OPT-350m,
GPT-1). That is not read from a list: a block is tried.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface.errors import UserError
from efface.model.blocks import accepted, decoder_blocks, states_in
from efface.model.copies import eval_mode
from efface.model.devices import doubled
from efface.model.families import NORMS_AFTER_MLP
from efface.model.padding import position_ids
from efface.model.projections import gain_after, mlp_output_projection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 6
TOLERANCE = 1e-3
"""Relative, beside what rounding makes of it."""


def norm_factors(before: Tensor, after: Tensor, gain: Tensor) -> Tensor:
    """(N, 1) float64: by what an RMS norm has multiplied each of its inputs (N, d), beside its gain."""
    before = doubled(before) * gain.to(before.device)
    return (doubled(after) * before).sum(-1, keepdim=True) / before.square().sum(-1, keepdim=True).clamp_min(1e-30)


@torch.no_grad()
def check_writing(model: "PreTrainedModel") -> None:
    """Try, on a short text, whether each block gives as much more as is added to what its MLP writes.

    Raises:
        UserError: if one does not, so that <h, w> is no sum over neurons; if it has no MLP with one known output
            projection (a mixture of experts).
    """
    blocks, body = decoder_blocks(model), model.base_model
    embeddings: Any = model.get_input_embeddings()

    def hook_for(layer: int) -> Any:
        def try_it(block: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if not _adds_what_is_written(block, args, named):
                raise UserError(
                    f"{type(model).__name__}: block {layer} changes what its MLP writes before it is in the residual "
                    "stream (a factor, or a norm over both), so that <h, w> is no sum over its neurons. Leave "
                    "`neurons` out (--only names the blocks that are made)."
                )

        return try_it

    ids = torch.arange(3, 3 + TOKENS, device=model.device)[None] % len(embeddings.weight)
    mask = torch.ones_like(ids)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids(mask), "use_cache": False}
    handles = [
        block.register_forward_pre_hook(hook_for(layer), with_kwargs=True) for layer, block in enumerate(blocks)
    ]
    try:
        with eval_mode(model):
            body(**accepted(body, **inputs))
    finally:
        for handle in handles:
            handle.remove()


def _adds_what_is_written(block: Any, args: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether a block that is asked twice gives as much more as its MLP writes more the second time."""
    gain = gain_after(block)
    noise = torch.empty(0)
    given, written = list[Tensor](), list[Tensor]()  # (N, d) float64, of each time; `written` behind a norm

    def add(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        more = output if not given else output + noise.view_as(output).to(output)
        given.append(_flat(more))
        written.append(given[-1])
        return more

    def scale(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert gain is not None
        factors = norm_factors(_flat(args[0]), _flat(output), gain)
        written[-1] = given[-1] * gain.to(factors.device) * factors

    handles = [mlp_output_projection(block).register_forward_hook(add)]
    handles += [getattr(block, name).register_forward_hook(scale) for name in NORMS_AFTER_MLP if hasattr(block, name)]
    try:
        # `forward`, without what is hooked to the block: an intervention is another part of the stream.
        first = states_in(block.forward(*args, **named))
        drawn = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(0)).to(given[0])
        # As long as what it is added to, so that little of it is rounded away.
        noise = drawn * (given[0].norm() + _flat(first).norm()) / drawn.norm()
        second = states_in(block.forward(*args, **named))
    finally:
        for handle in handles:
            handle.remove()
    more, expected = _flat(second) - _flat(first), written[1] - written[0]
    lengths = sum(each.norm().item() for each in (_flat(first), _flat(second), *given, *written))
    limit = TOLERANCE * expected.norm().item() + 2 * torch.finfo(first.dtype).eps * lengths
    return not more.isfinite().all() or (more - expected).norm().item() <= limit


def _flat(states: Tensor) -> Tensor:
    """(..., d) -> (N, d) float64."""
    return doubled(states.reshape(-1, states.shape[-1]))
