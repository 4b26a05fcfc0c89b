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

from efface.model.forward import Head

Finish = Callable[[Tensor], Tensor]

# Logits of one piece: 2^24 floats are 64 MB, that is 64 tokens of Gemma 3's 262,144 words.
PIECE = 2**24


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
        buffers = _buffers(3, len(hidden), weight)
        for piece in _pieces(len(hidden), weight):
            first, second, third = (buffer[: len(hidden[piece])] for buffer in buffers)  # (n, V) each
            scores = _scores(reference[piece], reference_head.weight, reference_head.bias, first)
            expected = torch.log_softmax(reference_head.finish(scores), -1, dtype=third.dtype, out=third)
            scores, logits = _traced(_scores(hidden[piece], weight, bias, first), finish)
            found = torch.log_softmax(logits.detach(), -1, dtype=second.dtype, out=second)
            # The scores are still needed where the model's own code stands between them and the logits.
            probability = torch.exp(expected, out=first) if _is_same(scores, logits, first) else expected.exp()
            kl[piece] = expected.sub_(found).mul_(probability).sum(-1)
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
            logits = _wide(finish(F.linear(hidden[piece], weight, bias)))  # (n, V)
            chosen = logits.gather(-1, targets[piece, None])
            highest = logits.amax(-1, keepdim=True)
            total = logits.sub_(highest).exp_().sum(-1, keepdim=True)  # in place: a copy is as large as the piece
            found[piece] = (chosen - highest - total.log()).squeeze(-1)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        gradients = _Gradients(ctx, hidden, weight, bias)
        for piece in _pieces(len(hidden), weight):
            scores, logits = _traced(F.linear(hidden[piece], weight, bias), ctx.finish)
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
        slope = slope.to(logits.dtype)
        if not _is_same(scores, logits, scores):
            (slope,) = torch.autograd.grad(logits, scores, slope)  # through the model's own code
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


def _scores(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """(n, V) output of the linear map; in `out` where precision allows."""
    if torch.is_autocast_enabled(hidden.device.type) or not hidden.dtype == weight.dtype == out.dtype:
        return F.linear(hidden, weight, bias)
    torch.mm(hidden, weight.T, out=out)
    return out if bias is None else out.add_(bias)


def _traced(scores: Tensor, finish: Finish) -> tuple[Tensor, Tensor]:
    """The scores as a leaf, and (n, V) logits, whose graph begins at that leaf."""
    with torch.enable_grad():
        leaf = scores.detach().requires_grad_()
        return leaf, finish(leaf)


def _is_same(scores: Tensor, logits: Tensor, memory: Tensor) -> bool:
    """Are the logits the scores, at most seen through views, and both in `memory`?"""
    return logits.shape == scores.shape and logits.data_ptr() == scores.data_ptr() == memory.data_ptr()


def _buffers(number: int, n: int, weight: Tensor) -> list[Tensor]:
    """Room for pieces, used again for each: fresh memory of this size costs as much as what is written to it."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return [weight.new_empty(min(n, _piece(weight)), len(weight), dtype=dtype) for _ in range(number)]


def _piece(weight: Tensor) -> int:
    return max(PIECE // len(weight), 1)


def _pieces(n: int, weight: Tensor) -> list[slice]:
    size = _piece(weight)
    return [slice(start, start + size) for start in range(0, n, size)]


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: a softmax over the vocabulary in half precision is not worth its name."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
