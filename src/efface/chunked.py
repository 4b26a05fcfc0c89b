"""How are KL and log-probabilities computed from hidden states without ever holding (tokens x vocabulary)?

A piece of tokens at a time goes through the output head. The weighted KL is a sum whose weights are known beforehand,
so its gradient with respect to hidden states and head is made in the forward, right after each piece (as liger's fused
losses do), and nothing of the size of the vocabulary is kept. Log-probabilities may enter any loss (DPO, NPO): their
backward computes each piece again. The head's own code after the linear map (soft-capping) is differentiated by
autograd.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from efface.forward import Head

Finish = Callable[[Tensor], Tensor]

# Logits of one piece: 2^25 floats are 128 MB, that is 128 tokens of Gemma 3's 262,144 words.
PIECE = 2**25


def weighted_kl(
    hidden: Tensor, head: Head, reference: Tensor, reference_head: Head, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum over tokens of weight * KL( f0(.|context) || f(.|context) ), over the whole vocabulary, in nats.

    Args:
        hidden: (N, d) final hidden states of the model f that is trained.
        head: f's head; its weight and bias get gradients too where they are trained.
        reference: (N, d) final hidden states of the frozen reference f0.
        reference_head: f0's head.
        weights: (N,) of the tokens; no gradient flows to them.

    Returns:
        The sum (differentiable once), and the KL of each token (N,), detached.
    """
    return _WeightedKL.apply(
        hidden, head.weight, head.bias, head.finish, reference.detach(), reference_head, weights.detach()
    )


def token_log_probabilities(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """(N,) log f(target | context) from final hidden states (N, d) and token ids (N,); differentiable once."""
    return _LogProbabilities.apply(hidden, head.weight, head.bias, head.finish, targets)


class _WeightedKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        finish: Finish,
        reference: Tensor,
        reference_head: Head,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        gradients = _Gradients(ctx, hidden, weight, bias)
        kl = _wide(hidden.new_empty(len(hidden)))
        for piece in _pieces(len(hidden), weight):
            expected = _log_softmax_of(reference[piece], reference_head)  # (n, V)
            scores, logits = _project(hidden[piece], weight, bias, finish)
            found = F.log_softmax(_wide(logits.detach()), -1)
            probability = expected.exp()
            kl[piece] = expected.sub_(found).mul_(probability).sum(-1)
            del expected  # a piece is large: nothing of it outlives its use
            if gradients.any:
                slope = found.exp_().sub_(probability).mul_(weights[piece].unsqueeze(-1))  # d(sum) / d(logits)
                gradients.add(piece, scores, logits, slope)
        ctx.save_for_backward(*gradients.tensors)
        ctx.mark_non_differentiable(kl)
        return (weights * kl).sum(), kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        if outer != 1:  # the usual case hands them on without a copy, which counts at a vocabulary of 262,144
            gradients = tuple(None if gradient is None else gradient * outer for gradient in gradients)
        return (*gradients, None, None, None, None)


class _LogProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, finish: Finish, targets: Tensor
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.finish = finish
        found = _wide(hidden.new_empty(len(hidden)))
        for piece in _pieces(len(hidden), weight):
            logits = _wide(_project(hidden[piece], weight, bias, finish)[1].detach())  # (n, V)
            found[piece] = logits.gather(-1, targets[piece, None]).squeeze(-1) - logits.logsumexp(-1)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        gradients = _Gradients(ctx, hidden, weight, bias)
        for piece in _pieces(len(hidden), weight):
            scores, logits = _project(hidden[piece], weight, bias, ctx.finish)
            slope = F.softmax(_wide(logits.detach()), -1).neg_()  # (n, V): onehot - softmax
            slope.scatter_add_(-1, targets[piece, None], torch.ones_like(slope[:, :1]))
            gradients.add(piece, scores, logits, slope.mul_(outer[piece].unsqueeze(-1)))
        return (*gradients.tensors, None, None)


class _Gradients:
    """Of a sum over tokens with respect to hidden, weight and bias, where autograd wants them; piece by piece."""

    def __init__(self, ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None):
        self.hidden, self.weight = hidden, weight
        wanted = zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        self.tensors = [
            torch.zeros_like(tensor) if needed and tensor is not None else None for tensor, needed in wanted
        ]
        self.any = any(tensor is not None for tensor in self.tensors)

    def add(self, piece: slice, scores: Tensor, logits: Tensor, slope: Tensor) -> None:
        """Add what a piece gives, from d(sum) / d(logits) (n, V)."""
        (slope,) = torch.autograd.grad(logits, scores, slope.to(logits.dtype))  # through the model's own code
        to_hidden, to_weight, to_bias = self.tensors
        if to_hidden is not None:
            to_hidden[piece] = slope @ self.weight.to(slope.dtype)
        if to_weight is not None:
            if slope.dtype == to_weight.dtype:
                to_weight.addmm_(slope.T, self.hidden[piece].to(slope.dtype))
            else:  # autocast
                to_weight += slope.T @ self.hidden[piece].to(slope.dtype)
        if to_bias is not None:
            to_bias += slope.sum(0)


def _log_softmax_of(hidden: Tensor, head: Head) -> Tensor:
    with torch.no_grad():
        return F.log_softmax(_wide(head(hidden)), -1)


def _project(hidden: Tensor, weight: Tensor, bias: Tensor | None, finish: Finish) -> tuple[Tensor, Tensor]:
    """(n, V) output of the linear map, as a leaf, and (n, V) logits, whose graph begins at that leaf."""
    with torch.no_grad():
        scores = F.linear(hidden, weight, bias)
    with torch.enable_grad():
        scores.requires_grad_()
        return scores, finish(scores)


def _pieces(n: int, weight: Tensor) -> list[slice]:
    size = max(PIECE // len(weight), 1)
    return [slice(start, start + size) for start in range(0, n, size)]


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: a softmax over the vocabulary in half precision is not worth its name."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
