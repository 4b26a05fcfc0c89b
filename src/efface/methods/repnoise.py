"""How is toxic text made hard to learn again? Its hidden states are turned into noise: RepNoise.

    L = w_forget * L_forget + w_retain * L_retain                             as in gradient difference (`graddiff.py`)
    L_forget = beta * L_noise - alpha * log(1 + L_ascent)                       Rosati et al. 2024 (arXiv 2405.14577)
    L_noise  = mean over layers l of MMD( h_l(t) at tokens t of y-, Gaussian noise )
    L_ascent = mean over the tokens of y- of -log f(token | context)

Neither the MMD nor the logarithm is a sum over tokens: a micro-batch counts by its share of the step's toxic tokens.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efface.checks import not_negative, one_of, positive
from efface.errors import UserError
from efface.methods.graddiff import GradDiffConfig, GradDiffTrainer
from efface.model.blocks import parse_layers
from efface.training.step import Loss, Needs, Step

SCALES = ("matched", "standard")


@dataclass
class RepNoiseConfig(GradDiffConfig):
    """Settings of RepNoise. `alpha` and `beta` are those of the authors' code."""

    learning_rate: float = field(
        default=2e-5,
        metadata={"help": "Peak learning rate; the default is ours, untuned: ascent spoils a model fast."},
    )
    retain: str = field(
        default="kl",
        metadata={"help": "Retain term on chosen continuations: kl (to the reference), nll (as published), or none."},
    )
    alpha: float = field(default=1.0, metadata={"help": "Weight of the ascent on rejected continuations."})
    beta: float = field(default=0.001, metadata={"help": "Weight of the distance to noise."})
    noise_layers: str = field(
        default="all", metadata={"help": "Whose states become noise: all, last, or such as `8,16,-1` or `0.5`."}
    )
    noise_scale: str = field(
        default="matched",
        metadata={"help": "Of the noise: matched (to the states of each layer), or standard (normal), as published."},
    )
    mmd_tokens: int = field(
        default=128,
        metadata={"help": "Rejected tokens of a micro-batch, drawn anew at every step, that are compared with noise."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative("alpha", self.alpha)
        not_negative("beta", self.beta)
        if not self.alpha and not self.beta:
            raise UserError("alpha and beta are both 0: nothing is forgotten. Set one of them, or train `retain`.")
        one_of("noise_scale", self.noise_scale, SCALES)
        positive("mmd_tokens", self.mmd_tokens)


class RepNoiseTrainer(GradDiffTrainer):
    """Train with RepNoise. Arguments as `PairTrainer`; settings as `RepNoiseConfig`."""

    config_class = RepNoiseConfig
    args: RepNoiseConfig

    @classmethod
    def needs(cls, args: Any, n_blocks: int) -> Needs:
        layers = parse_layers(args.noise_layers, n_blocks) if args.beta else []
        return replace(super().needs(args, n_blocks), layers=layers, pushes="noise_layers")

    def forget_loss(self, step: Step) -> Loss:
        args, share = self.args, step.share("rejected")
        loss, metrics = share.new_zeros(()), {}
        if args.alpha:
            nll = -step.log_probabilities("rejected").mean()
            loss = loss - args.alpha * share * nll.log1p()
            metrics["rejected_nll"] = (share * nll).item()
        if args.beta:
            noise = share * self._noise_loss(step)
            loss = loss + args.beta * noise
            metrics["noise_loss"] = noise.item()
        return loss, metrics

    def _noise_loss(self, step: Step) -> Tensor:
        """Mean MMD over the layers; of the same tokens in all of them, to noise that seed and step decide."""
        seed = np.random.SeedSequence([self.args.seed, self.state.global_step]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(seed))
        drawn = torch.randperm(step.tokens["rejected"], generator=generator)[: self.args.mmd_tokens]
        distances = []
        for layer in self.layers:
            states = step.states(layer, "rejected")
            states = states[drawn.to(states.device)]  # (N, d)
            distances.append(gaussian_mmd(states, noise_like(states, self.args.noise_scale, generator)))
        return torch.stack(distances).mean()


def noise_like(states: Tensor, scale: str, generator: torch.Generator) -> Tensor:
    """(N, d) Gaussian noise, drawn on the CPU and so alike on every device.

    Args:
        states: (N, d).
        scale: `standard`, or `matched`, which gives the noise the root mean square of the states.
    """
    noise = torch.randn(states.shape, generator=generator).to(states)
    return noise * states.detach().square().mean().sqrt() if scale == "matched" else noise


def gaussian_mmd(x: Tensor, y: Tensor, *, kernel_mul: float = 2.0, kernel_num: int = 5) -> Tensor:
    """Scalar: squared maximum mean discrepancy of two samples (Gretton et al. 2012, eq. 5, biased: never negative).

    The kernel is a sum of Gaussians exp(-|a - b|^2 / w), with w = `kernel_mul`^i times the mean |a - b|^2 over all
    pairs of both samples, i = -(kernel_num // 2), ...: 1/4 to 4 times the mean, as in the authors' code. No gradient
    flows through w.

    Args:
        x: (N, d).
        y: (M, d).
    """
    with torch.autocast(x.device.type, enabled=False):
        both = torch.cat([x, y]).to(torch.promote_types(x.dtype, torch.float32))  # (N + M, d)
        both = both - both.detach().mean(0)  # distances stay; what all states share would cost their precision
        norms = both.square().sum(1)
        squared = (norms[:, None] + norms - 2 * both @ both.T).clamp(min=0)  # (N + M, N + M)
        mean = squared.detach().sum() / (len(both) * (len(both) - 1))
        mean = mean.clamp(min=torch.finfo(mean.dtype).tiny ** 0.5)  # all states may be equal
        exponents = range(-(kernel_num // 2), kernel_num - kernel_num // 2)
        kernel = torch.stack([(-squared / (mean * kernel_mul**i)).exp() for i in exponents]).sum(0)
        n = len(x)
        return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()
