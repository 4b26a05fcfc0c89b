"""How does RMU unlearn? It steers the states of y- at one layer to a fixed random vector and keeps those of y+.

Representation misdirection for unlearning (Li et al. 2024, arXiv 2403.03218, section 4): with h the residual stream
after layer l, h0 the reference's, d its width and u a random direction of length 1,

    L = w_forget * mean over tokens of y- of || h(t) - c u ||^2 / d
      + w_retain * mean over tokens of y+ of || h(t) - h0(t) ||^2 / d
      + w_retain_text * mean over tokens of ordinary passages of KL( f0 || f )                          (optional)

where only the MLP output projections of layers l-2 .. l are trained. The paper's c is an absolute number that every
model needs anew; here c = steering_norm * the model's own mean norm at layer l, measured once before training.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from efface.checks import not_negative, positive
from efface.errors import UserError
from efface.model.blocks import decoder_blocks, parse_layers
from efface.model.copies import eval_mode
from efface.model.projections import mlp_output_projection
from efface.training.config import PairConfig
from efface.training.passes import policy_forward
from efface.training.step import Loss, Needs, Step
from efface.training.trainer import PairTrainer

MEASURED_PAIRS = 16  # whose mean norm sets c; always as many, so that c does not depend on the batch size


@dataclass
class RMUConfig(PairConfig):
    """Settings of RMU. Numbers of the paper's authors are named as such; the others are ours and not tuned."""

    learning_rate: float = field(
        # The authors' 5e-5 is for 7B parameters: here the states would stay where they are. Chosen by a sweep on the
        # embedded model (benchmarks/rates.py).
        default=5e-3,
        metadata={"help": "Peak learning rate of the model."},
    )
    w_forget: float = field(default=1.0, metadata={"help": "Weight of the distance of y- from the random vector."})
    w_retain: float = field(
        default=100.0, metadata={"help": "Weight of the distance of y+ from the reference (authors' code: 100)."}
    )
    steer_layer: str = field(
        default="0.25", metadata={"help": "The layer that is steered, one number or depth (authors: 7 of 32)."}
    )
    steering_norm: float = field(
        default=3.0,
        metadata={"help": "Length of the random vector, in multiples of the layer's own mean norm on the pairs."},
    )
    rmu_layers: str | None = field(
        default=None,
        metadata={
            "help": "Layers whose MLP output projection is trained; default steer_layer and the two before it. Not "
            "with LoRA or trainable_layers, which choose for themselves."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative("w_forget", self.w_forget)
        not_negative("w_retain", self.w_retain)
        positive("steering_norm", self.steering_norm)


class RMUTrainer(PairTrainer):
    """Train with RMU. Arguments as `PairTrainer`; settings as `RMUConfig`."""

    config_class = RMUConfig
    args: RMUConfig

    def set_up_(self) -> None:
        self.steer_layer = self.layers[0]
        self._choose_weights_(self.model)  # type: ignore[arg-type]
        self.mean_norm = self._measure()
        width = self.model.config.get_text_config(decoder=True).hidden_size  # type: ignore[union-attr,operator]
        direction = random_direction(width, self.args.seed).to(self.args.device)
        self.target = self.args.steering_norm * self.mean_norm * direction  # (d,)

    @classmethod
    def needs(cls, args: Any, n_blocks: int) -> Needs:
        layers = parse_layers(args.steer_layer, n_blocks)
        if len(layers) != 1:
            raise UserError(f"steer_layer={args.steer_layer!r} names {len(layers)} layers; RMU steers one.")
        return Needs(sides=(), layers=layers, reference=args.w_retain > 0, residuals=("chosen",))

    def _choose_weights_(self, model: PreTrainedModel) -> None:
        """Leave trainable what RMU trains; an adapter, the neurons of trainable and the blocks of
        trainable_layers stay as they are."""
        from peft import PeftModel

        blocks, args = decoder_blocks(model), self.args
        adapted, masked = isinstance(model, PeftModel), self.neurons is not None
        if args.rmu_layers is not None and (adapted or masked or args.trainable_layers is not None):
            raise UserError(
                f"rmu_layers={args.rmu_layers!r} chooses MLP projections for training in full; LoRA, trainable and "
                "trainable_layers choose other weights. Give one of them."
            )
        if self.neurons is not None and not any(
            each.any() for layer, each in self.neurons.chosen.items() if layer <= self.steer_layer
        ):
            raise UserError(
                f"no neuron of trainable={args.trainable!r} lies in a block up to steer_layer={self.steer_layer}, and "
                "no other can change what is steered. Choose among those blocks, with trainable_layers."
            )
        if adapted or masked:
            return
        spec = args.trainable_layers if args.rmu_layers is None else args.rmu_layers
        near = list(range(max(self.steer_layer - 2, 0), self.steer_layer + 1))
        layers = near if spec is None else parse_layers(spec, len(blocks))
        if layers[0] > self.steer_layer:
            raise UserError(
                f"the layers to be trained begin at {layers[0]}, above steer_layer={self.steer_layer}, and so cannot "
                "change what is steered. Choose some up to it, or a higher steer_layer."
            )
        if args.trainable_layers is None:
            model.requires_grad_(False)
            for layer in layers:
                try:
                    projection = mlp_output_projection(blocks[layer], whole=False)
                except UserError as error:
                    raise UserError(
                        f"rmu trains the output projection of the MLP, and {type(blocks[layer]).__name__} has not one "
                        "under a known name (a mixture of experts has many). Choose other weights with "
                        "trainable_layers or lora_r."
                    ) from error
                projection.weight.requires_grad_(True)

    @torch.no_grad()
    def _measure(self) -> float:
        """Mean norm of the steered layer's states at the continuation tokens of the first pairs, before training."""
        pairs, model, layer = self.train_dataset.pairs, self.model, self.steer_layer  # type: ignore[union-attr]
        some = [pairs[i] for i in range(min(len(pairs), MEASURED_PAIRS))]
        batch: Any = self._prepare_inputs(self.data_collator(some))
        mask = batch["continuation_mask"]
        with eval_mode(model):  # type: ignore[arg-type]
            found = policy_forward(model, batch, torch.zeros_like(mask), [layer], mask, "plain")  # type: ignore[arg-type]
        return float(found.residuals[layer].float().norm(dim=-1).mean())

    def loss(self, step: Step) -> Loss:
        args, layer = self.args, self.steer_layer
        text, metrics = step.retain()
        forget = step.mean(squared_distance(step.states(layer, "rejected"), self.target), over="rejected")
        metrics["forget_loss"] = forget.item()
        total = text + args.w_forget * forget
        if args.w_retain:
            distances = squared_distance(step.states(layer, "chosen"), step.reference_states(layer, "chosen"))
            retain = step.mean(distances, over="chosen")
            metrics["retain_loss"] = retain.item()
            total = total + args.w_retain * retain
        return total, metrics

    def describe(self) -> list[str]:
        return [
            *super().describe(),
            f"steers layer {self.steer_layer} to a vector of length {self.target.norm().item():.3g} "
            f"(its mean norm is {self.mean_norm:.3g})",
        ]

    def record(self) -> dict[str, Any]:
        steering = {"layer": self.steer_layer, "mean_norm": self.mean_norm, "norm": self.target.norm().item()}
        return super().record() | {"steering": steering}


def random_direction(width: int, seed: int) -> Tensor:
    """(width,) of length 1: independent uniform entries of [0, 1), normalised (as the authors draw it)."""
    direction = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    return direction / direction.norm()


def squared_distance(states: Tensor, target: Tensor) -> Tensor:
    """(M,) mean over the d components of the squared difference of `states` (M, d) from `target`, (M, d) or (d,)."""
    return (states.float() - target.float()).square().mean(-1)
