"""Which token comes next? A draw from the warped distribution that nothing else in the batch can change.

A sequence draws one uniform number a step, a function of (seed, prompt number, sample number, step) alone, and its
token is found by inverting the cumulative distribution of the tokens in falling order of probability. Hence batches do
not matter, and two models can be compared with common random numbers: where one writes what it finds likely, so does
the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from efface.errors import NotFinite

# How many of the most likely tokens are looked at, before all are: sorting a whole vocabulary is slow.
HEADS = (512, 8192)
# Logits that are worked on at once; more would not stay in the processor's cache.
MAX_WORKED = 2**22


def draw_uniforms(seed: int, sequences: Sequence[tuple[int, int]], steps: int) -> Tensor:
    """(B, steps) float64 numbers in [0, 1), of sequences given as (prompt number, sample number).

    Philox (Salmon et al. 2011) computes them from a key, the seed, and a counter that holds the numbers.
    """
    key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    draws = [
        np.random.Generator(np.random.Philox(key=key, counter=[0, 0, sample, prompt])).random(steps)
        for prompt, sample in sequences
    ]
    return torch.from_numpy(np.stack(draws))


@dataclass(frozen=True)
class Warp:
    """Temperature, then top-k, then nucleus (Holtzman et al. 2020), in this order as in transformers.

    `top_k` = 0 and `top_p` = 1 leave them out. The nucleus is the smallest set of the most likely tokens that has at
    least the mass `top_p`.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    without: tuple[int, ...] = ()
    """Tokens that are never chosen: their probability goes to the others."""

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """(B, V) logits and (B,) numbers in [0, 1) -> (B,) token ids.

        Raises:
            NotFinite: if a row of logits is not finite.
        """
        if self.without:
            _check_finite(logits.amax(-1))  # before infinite ones are put in
            ruled_out = torch.tensor([token for token in self.without if token < logits.shape[-1]])
            logits = logits.index_fill(-1, ruled_out.to(logits.device), -torch.inf)
        if self.top_k == 1:  # greedy; of equal logits the first, as in transformers
            best, tokens = logits.max(-1)
            _check_finite(best)
            return tokens
        rows = max(MAX_WORKED // logits.shape[-1], 1)
        pieces = zip(logits.split(rows), uniform.split(rows), strict=True)
        return torch.cat([self._choose(part, draws) for part, draws in pieces]).to(logits.device)

    def _choose(self, logits: Tensor, draws: Tensor) -> Tensor:
        scores = logits.float()  # (n, V)
        if self.temperature != 1.0:
            scores = scores / self.temperature
        vocabulary, top_k = scores.shape[-1], self.top_k
        sizes = [top_k] if 0 < top_k < vocabulary else [size for size in HEADS if size < vocabulary] + [vocabulary]
        total = None if len(sizes) == 1 else scores.logsumexp(-1).cpu()  # (n,)
        tokens = torch.empty(len(scores), dtype=torch.long)
        rows = torch.arange(len(scores))
        for size in sizes:
            values, ids = (found.cpu() for found in scores.topk(size))  # (n, size), falling
            normalizer = values.logsumexp(-1) if total is None else total[rows]
            _check_finite(normalizer)
            mass = (values - normalizer[:, None]).double().exp().cumsum(-1)
            uniform = draws[rows, None]  # (n, 1)
            if self.top_p < 1.0:
                edge = (mass < self.top_p).sum(-1, keepdim=True).clamp(max=size - 1)  # last of the nucleus
                target, enough = uniform * mass.gather(-1, edge), mass[:, -1] >= self.top_p
            else:
                edge, target, enough = torch.tensor(size - 1), uniform, mass[:, -1] > uniform[:, 0]
            if size == sizes[-1]:
                enough = torch.ones_like(enough)  # up to rounding
            place = torch.searchsorted(mass, target, right=True).minimum(edge)
            tokens[rows[enough]] = ids.gather(-1, place)[enough, 0]
            rest = (~enough).nonzero()[:, 0]
            if not len(rest):
                break
            rows, scores = rows[rest], scores[rest.to(scores.device)]
        return tokens


GREEDY = Warp(top_k=1)


def _check_finite(values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise NotFinite("the model's output is not finite (NaN or infinite logits): no text can be generated.")
