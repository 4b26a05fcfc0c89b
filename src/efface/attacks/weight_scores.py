"""How much does each weight of a model matter to a set of texts? Two scores of the pruning literature.

    gradient   mean over sequences of |W_ij| |d nll / d W_ij|     SNIP, as Wei et al. 2024 (arXiv 2402.05162, eq. 1)
    wanda      |W_ij| ||X_j||_2                                   Sun et al. 2023 (arXiv 2306.11695)

nll: the mean -log p of the counted tokens; ||X_j||: over the counted tokens, of the j-th input of the linear map W.

Memory, for gradient: the model, its gradients and one table as large as the linear maps, all in float32. Sequences go
through one at a time (or `batch_size` of them: then |.| is of their mean), and nothing is kept of any of them.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from efface.errors import NotFinite, UserError
from efface.generation.likelihood import mean_nll
from efface.model.blocks import accepted
from efface.model.copies import eval_mode
from efface.model.forward import forward
from efface.model.layout import plain_layout
from efface.model.padding import pad_batch, position_ids
from efface.model.projections import linear_maps, output_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
Norms = dict[str, Tensor]
"""Name of a linear map -> (d_in,), the norm of each of its inputs."""
Scores = dict[str, Tensor]
"""Name of a linear map -> (d_out, d_in), of its weights; float32."""
Batches = Iterable[tuple[Sequence[list[int]], Sequence[int]]]
"""Token sequences and, for each, how many of its last tokens count."""


@dataclass
class Data:
    """Token sequences, and of how many of the last tokens of each count."""

    sequences: list[list[int]]
    counted: list[int]

    def __len__(self) -> int:
        return len(self.sequences)


def gradient_scores(model: "PreTrainedModel", batches: Batches, pad: int) -> Scores:
    """|W| |gradient|, the mean over `batches`, of every linear map inside the decoder blocks.

    A batch whose gradients are not finite is left out.

    Args:
        model: in float32. Its gradients are used up.

    Raises:
        NotFinite: if no gradient is finite.
    """
    maps = linear_maps(model)
    weights = [module.weight for module in maps.values()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    totals: list[Tensor] = [torch.zeros_like(weight) for weight in weights]
    used = lost = 0
    try:
        model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        with eval_mode(model), torch.enable_grad():
            for sequences, counted in batches:
                gradients = torch.autograd.grad(_loss(model, sequences, counted, pad), weights, allow_unused=True)
                known = [gradient for gradient in gradients if gradient is not None]
                if not all(gradient.isfinite().all() for gradient in known):
                    lost += 1
                    continue
                used += 1
                for total, gradient in zip(totals, gradients, strict=True):
                    if gradient is not None:
                        total += gradient.abs()
    finally:
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)
    if not used:
        raise NotFinite("the model's gradients are not finite (NaN or infinite): nothing can be scored by them.")
    if lost:
        logger.warning("%d of %d batches are left out of the scores: a gradient is not finite.", lost, lost + used)
    scores = {name: (total / used) for name, total in zip(maps, totals, strict=True)}
    return {
        name: output_weight(module).detach().abs() * (scores[name] if _is_plain(module) else scores[name].t())
        for name, module in maps.items()
    }


def _is_plain(module: nn.Module) -> bool:
    """Whether the weight is stored as (d_out, d_in)."""
    return isinstance(module, nn.Linear)


def _loss(model: "PreTrainedModel", sequences: Sequence[list[int]], counted: Sequence[int], pad: int) -> Tensor:
    """Mean -log p of the counted tokens, but for the first of a sequence, which nothing predicts."""
    input_ids, mask = pad_batch(sequences, pad, model.device, left=False)  # (B, T)
    inputs = {"input_ids": input_ids, "attention_mask": mask, "position_ids": position_ids(mask), "use_cache": False}
    logits = model(**accepted(model, **inputs)).logits
    return mean_nll(logits[:, :-1], input_ids[:, 1:], _last(mask, counted)[:, 1:])


def wanda_scores(model: "PreTrainedModel", batches: Batches, pad: int) -> Scores:
    """|W| ||X||. Arguments and errors as those of `input_norms`."""
    norms = input_norms(model, batches, pad)
    return {name: scores(output_weight(module), norms[name]) for name, module in linear_maps(model).items()}


@torch.no_grad()
def scores(weight: Tensor, norms: Tensor) -> Tensor:
    """Wanda's |W_ij| ||X_j||, (out, in) float32, of a weight (out, in) and the norms (in,) of its inputs."""
    return weight.float().abs() * norms.to(weight.device)


@torch.no_grad()
def input_norms(model: "PreTrainedModel", batches: Batches, pad: int) -> Norms:
    """Of every linear map inside the decoder blocks, ||X_j||_2 over the counted tokens, float32 on the CPU.

    Raises:
        NotFinite: if a state is not finite.
    """
    squares: dict[str, Tensor] = {}
    with eval_mode(model):
        for sequences, counted in batches:
            input_ids, attention_mask = pad_batch(sequences, pad, model.device, left=False)  # (B, T)
            mask = _last(attention_mask, counted)
            with _summed(model, mask, squares):
                forward(model, plain_layout(input_ids, attention_mask), torch.zeros_like(mask))
    if not all(total.isfinite().all() for total in squares.values()):
        raise NotFinite("the model's hidden states are not finite (NaN or infinite): nothing can be scored by them.")
    return {name: total.sqrt().float() for name, total in squares.items()}


def _last(attention_mask: Tensor, counted: Sequence[int]) -> Tensor:
    """(B, T) bool: the last tokens of each sequence, as many as count; padding is to the right."""
    lengths = attention_mask.sum(1, keepdim=True)  # (B, 1)
    last = torch.tensor(list(counted), device=attention_mask.device)[:, None]
    position = torch.arange(attention_mask.shape[1], device=attention_mask.device)  # (T,)
    return (position < lengths) & (position >= lengths - last)


@contextlib.contextmanager
def _summed(model: "PreTrainedModel", mask: Tensor, squares: dict[str, Tensor]) -> Iterator[None]:
    """Within, a forward adds to `squares` the squared inputs of each linear map, summed over the tokens of `mask`."""

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor]) -> None:
            inputs = args[0].float().flatten(0, -2)  # (B T, d_in)
            if len(inputs) != mask.numel():  # an expert that is given some of the tokens
                raise UserError(
                    f"linear map {name!r} does not see every token: prune cannot score mixtures of experts."
                )
            total = inputs[mask.flatten()].square().sum(0).cpu().double()  # (d_in,)
            squares[name] = squares[name] + total if name in squares else total

        return hook

    handles = [module.register_forward_pre_hook(hook_for(name)) for name, module in linear_maps(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
