"""How does REPO erase? Representation Erasure-based Preference Optimization (arXiv 2602.23391), design section 2.

    L = w_retain * mean over tokens of y+ of KL( f0 || f )                          (as in `retain.py`)
      + w_erase  * mean over layers l of BCE( D_l( GRL_lambda( h_l(t) ) ), [t is a token of y-] )
      + w_retain_text * mean over tokens of ordinary passages of KL( f0 || f )                        (optional)
      + npo_weight * NPO( y- )                                                                        (optional)

The discriminators D_l (`adversary.py`) learn to tell toxic tokens from benign ones while the model, through the
reversed gradient, moves its hidden states so that they cannot. By default the gradient of all of it is taken where an
attacker who relearns would leave the weights (`training/perturbed.py`). Variants are flags: which layers,
discriminators of other kinds, a Wasserstein critic, a `w_erase` that changes over training.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from efface.checks import at_least, at_least_one, one_of, positive
from efface.data.preferences import SIDES
from efface.errors import UserError
from efface.methods.adversary import ERASE_SIDES, Adversaries
from efface.methods.discriminators import KINDS, OBJECTIVES, Domains
from efface.methods.functional import LN2, dann_ramp
from efface.methods.npo import npo_loss
from efface.methods.retain import RetainConfig, RetainTrainer
from efface.methods.selective import DAMPINGS, SelectiveErasure, selective_erasure, share_of
from efface.model.blocks import parse_layers
from efface.training.config import WITHSTAND_HELP, PairConfig
from efface.training.step import Loss, Needs, Step

logger = logging.getLogger(__name__)

DISCRIMINATORS = "discriminators.safetensors"
BOUNDS = ("layer", "token", "confusion", "none", "auto")
SCHEDULES = ("constant", "ramp", "decay")


@dataclass
class REPOConfig(RetainConfig):
    """Settings of REPO. No value of the paper is public: the defaults are ours, measured (docs/defaults.md).

    They are of an edit that is to outlast relearning (docs/comparison.md); the erasure of the paper alone is
    `efface.methods.PLAIN`.
    """

    default_steps: ClassVar[int] = 144
    w_retain_text: float = field(default=40.0, metadata={"help": "Weight of the KL on the passages of --retain_text."})
    withstand: str | None = field(default="relearn:1.2e-3/4/5/4", metadata={"help": WITHSTAND_HELP})
    w_erase: float = field(default=1.0, metadata={"help": "Weight of the adversarial loss."})
    erase_schedule: str = field(
        default="constant",
        metadata={"help": "Of w_erase: constant, ramp (from 0 up to w_erase, linearly) or decay (down to 0)."},
    )
    erase_layers: str = field(
        default="last", metadata={"help": "Where to erase: last, all, or such as `8,16,-1` or `0.5`."}
    )
    erase_side: str = field(
        default="toxic", metadata={"help": "Whose states the adversary moves: toxic (toward the benign ones) or both."}
    )
    erase_unit: str = field(
        default="token", metadata={"help": "token, or sequence (states averaged over a continuation)."}
    )
    erase_gradient: str = field(
        default="full",
        metadata={
            "help": "full, or selective: of the adversary's gradient of MLP matrices the directions that benign text "
            "uses most are damped (after RepSelect, arXiv 2606.17168); the retain terms keep theirs."
        },
    )
    selective_share: float = field(
        default=0.125,
        metadata={"help": "Directions that selective damps, as a share of a matrix's smaller side."},
    )
    selective_damping: str = field(
        default="soft", metadata={"help": "How much: soft, quadratic or hard (nothing is left of them)."}
    )
    adversary: str = field(
        default="bce",
        metadata={"help": "bce (discriminators) or wasserstein (critics of slope 1: WGAN-GP, arXiv 1704.00028)."},
    )
    gradient_penalty: float = field(
        default=10.0, metadata={"help": "Weight of the penalty on a wasserstein critic's slope (10 as in the paper)."}
    )
    bound: str = field(
        default="auto",
        metadata={
            "help": "How the model's side is bounded: layer (no push while the layer's BCE was above ln 2, or its "
            "distance below 0), token (none on tokens whose BCE is above ln 2), confusion (a loss toward one half "
            "instead), or none; auto is confusion for bce, layer for wasserstein, which has only that or none."
        },
    )
    grl_lambda: float = field(
        default=10.0, metadata={"help": "Strength of the gradient reversal at the end of its ramp."}
    )
    grl_schedule: str = field(
        default="dann", metadata={"help": "dann, 2/(1+exp(-10p))-1 of the progress p, or constant."}
    )
    discriminator: str = field(default="mlp", metadata={"help": "mlp (one hidden layer) or linear."})
    discriminator_width: int = field(default=256, metadata={"help": "Hidden units of an mlp discriminator."})
    discriminator_lr: float = field(default=1e-3, metadata={"help": "Learning rate of the discriminators' own Adam."})
    discriminator_steps: int = field(default=2, metadata={"help": "Discriminator updates for each model step."})
    discriminator_ensemble: int = field(
        default=1, metadata={"help": "Discriminators for each layer; the model is pushed by their mean."}
    )
    discriminator_reinit: int = field(
        default=0, metadata={"help": "Draw the discriminators anew every so many model steps; 0: never."}
    )
    npo_weight: float = field(
        default=1.0, metadata={"help": "Weight of an NPO loss on rejected continuations (arXiv 2404.05868); 0: none."}
    )
    npo_beta: float = field(default=0.05, metadata={"help": "NPO's inverse temperature."})

    def __post_init__(self) -> None:
        PairConfig.__post_init__(self)  # not RetainConfig's: beside an adversary w_retain may be 0
        one_of("erase_side", self.erase_side, ERASE_SIDES)
        one_of("erase_unit", self.erase_unit, ("token", "sequence"))
        one_of("erase_gradient", self.erase_gradient, ("full", "selective"))
        one_of("selective_damping", self.selective_damping, DAMPINGS)
        share_of("selective_share", self.selective_share)
        one_of("erase_schedule", self.erase_schedule, SCHEDULES)
        one_of("adversary", self.adversary, tuple(OBJECTIVES))
        positive("gradient_penalty", self.gradient_penalty)
        one_of("bound", self.bound, BOUNDS)
        bounds = OBJECTIVES[self.adversary].bounds
        if self.bound == "auto":
            self.bound = bounds[0]
        if self.bound not in bounds:
            raise UserError(
                f"bound={self.bound!r} needs a cross-entropy, which a critic has not (adversary={self.adversary!r}). "
                f"Leave it at auto or choose one of {', '.join(bounds)}."
            )
        one_of("grl_schedule", self.grl_schedule, ("dann", "constant"))
        one_of("discriminator", self.discriminator, KINDS)
        at_least(self, 0, "w_retain", "w_erase", "grl_lambda", "discriminator_lr", "npo_weight")
        at_least_one(self, "discriminator_width")
        positive("npo_beta", self.npo_beta)
        for name, least, why in (
            ("discriminator_steps", 1, "the discriminators need at least one update a step"),
            ("discriminator_ensemble", 1, "a layer needs at least one discriminator"),
            ("discriminator_reinit", 0, "give a number of steps, or 0 to draw them once"),
        ):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: {why}.")


class REPOTrainer(RetainTrainer):
    """Train with REPO. Arguments as `PairTrainer`; settings as `REPOConfig`."""

    config_class = REPOConfig
    args: REPOConfig
    terms_that_select = ("retain_loss", "npo_loss")
    checkpoint_files = (DISCRIMINATORS,)

    def set_up_(self) -> None:
        self.adversaries = Adversaries(
            self.layers,
            self.model.config.get_text_config(decoder=True).hidden_size,  # type: ignore[union-attr,operator]
            kind=self.args.discriminator,
            width=self.args.discriminator_width,
            adversary=self.args.adversary,
            penalty=self.args.gradient_penalty,
            ensemble=self.args.discriminator_ensemble,
            reinit=self.args.discriminator_reinit,
            lr=self.args.discriminator_lr,
            steps=self.args.discriminator_steps,
            bound=self.args.bound,
            erase_side=self.args.erase_side,
            seed=self.args.seed,
            max_grad_norm=self.args.max_grad_norm,
            device=self.args.device,
        )
        self._swapped_layers: set[int] = set()
        self.selective: SelectiveErasure | None = None
        if self.args.erase_gradient == "selective" and self.args.w_erase:
            self.selective = selective_erasure(self, self.args.selective_share, self.args.selective_damping)

    def loss_does_not_select(self, args: REPOConfig) -> str | None:
        return (
            "the loss and the adversary's figures are lowest where the adversary wins, and nothing is erased"
            if args.w_erase
            else None
        )

    @classmethod
    def needs(cls, args: Any, n_blocks: int) -> Needs:
        layers = parse_layers(args.erase_layers, n_blocks)
        sides = SIDES if args.npo_weight else SIDES[:1]  # NPO is about the logits of y-
        return Needs(sides=sides, layers=layers, pushes="erase_layers" if args.w_erase else None)

    def loss(self, step: Step) -> Loss:
        retain, metrics = super().loss(step)
        erase, of_adversary = self.erase_loss(step)
        metrics |= of_adversary | {"erase_loss": erase.item()} | self._norm_drift(step)
        loss = retain + self._noted(self._erase_weight() * erase)
        if self.args.npo_weight:
            npo = step.mean(npo_loss(step.log_ratio("rejected"), self.args.npo_beta), over="pairs")
            metrics["npo_loss"] = npo.item()
            loss = loss + self.args.npo_weight * npo
        return loss, metrics

    def _noted(self, erase: Tensor) -> Tensor:
        """The same, once its own gradient is known where `erase_gradient` is selective."""
        if self.selective is not None and self.recording:
            self.selective.note(erase)
        return erase

    def erase_loss(self, step: Step) -> Loss:
        """What the discriminators say of the states, with the gradient to the model reversed."""
        with torch.autocast(step.policy.hidden.device.type, enabled=False):  # discriminators stay in float32
            domains = {layer: self._domains(step, layer) for layer in self.layers}
            return self.adversaries.loss(domains, self._strength(), train=self.recording)

    def _domains(self, step: Step, layer: int) -> Domains:
        """Toxic and benign states of one layer."""
        if self.args.erase_unit == "sequence":
            benign, toxic = (step.sequence_states(layer, side) for side in SIDES)  # (B, d) each
            return Domains(benign, toxic, n_benign=step.counts.pairs, n_toxic=step.counts.pairs)
        benign, toxic = (step.states(layer, side) for side in SIDES)  # (tokens, d) each
        return Domains(benign, toxic, n_benign=step.counts.chosen, n_toxic=step.counts.rejected)

    @property
    def _progress(self) -> float:
        """In (0, 1]: 1 in the last step, and in an evaluation after it."""
        return min((self.state.global_step + 1) / max(self.state.max_steps, 1), 1.0)

    def _strength(self) -> float:
        ramp = 1.0 if self.args.grl_schedule == "constant" else dann_ramp(self._progress)
        return self.args.grl_lambda * ramp

    def _erase_weight(self) -> float:
        share = {"constant": 1.0, "ramp": self._progress, "decay": 1.0 - self._progress}
        return self.args.w_erase * share[self.args.erase_schedule]

    def _norm_drift(self, step: Step) -> dict[str, float]:
        """Per layer, by how much the mean norm of benign states has changed, relative to the reference's."""
        share = step.tokens["chosen"] / step.counts.chosen.item()
        drift = {}
        for layer in self.layers:
            norms = step.states(layer, "chosen").detach().float().norm(dim=-1)
            before = step.reference_norms(layer).float()
            drift[f"norm_drift/{layer}"] = share * (norms.mean() / before.mean() - 1).item()
        return drift

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:  # the last micro-batch of the optimizer step
            if self.selective is not None:
                self.selective.correct_(self.accelerator)
                self.mask_neurons_()
            self.adversaries.update(self.accelerator, self.state.global_step + 1)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.selective is not None and self.selective.kept is not None and "loss" in logs:
            logs["erase_gradient_kept"] = self.selective.kept
        super().log(logs, start_time)
        for layer in self.layers:
            bce = logs.get(f"adversary/bce/{layer}", 0.0)
            accuracy = logs.get(f"adversary/balanced_accuracy/{layer}", 1.0)
            if bce > 1.1 * LN2 and accuracy < 0.4 and layer not in self._swapped_layers:
                self._swapped_layers.add(layer)
                logger.warning(
                    "layer %d: the adversary is swapped, not confused (BCE %.2f above ln 2 = %.2f, balanced accuracy "
                    "%.2f): toxic states are pushed past the benign ones. Use bound=layer, more "
                    "discriminator_steps or a lower grl_lambda.",
                    layer,
                    bce,
                    LN2,
                    accuracy,
                )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            self.adversaries.save(Path(output_dir) / DISCRIMINATORS)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            file = Path(checkpoint) / DISCRIMINATORS
            if not file.exists():
                raise UserError(
                    f"{checkpoint} holds no {DISCRIMINATORS} (saved with save_only_model?): training cannot go "
                    "on from it. Train from its model into a new directory, or resume from a whole checkpoint."
                )
            self.adversaries.load(file)
