"""Which MLP neurons are trained, if not all weights are? `--trainable toxic_neurons:SHARE[/value|attribution]`.

Neuron i of a block's MLP is row i of its input projections (with their bias) and column i of its output projection,
its value vector v_i, which it writes into the residual stream a_i times over (Geva et al. 2021, arXiv 2012.14913).
Over all blocks the neurons with the highest scores are trained, and nothing else:

    value         cos(v_i, mean h(y-) - mean h(y+)), h after the last block      (Lee et al. 2024, arXiv 2401.01967,
                  whose direction is a probe's weight)
    attribution   sum over o of W_oi d(log f(y-) - log f(y+)) / dW_oi = sum over tokens of a_i d(...)/da_i: what
                  removing the neuron takes from y- and not from y+, to first order

Scores are those of the model that training starts from, on its first pairs. What is not chosen stays what it was to
the bit, whatever the optimizer does to a weight without gradient (weight decay).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from efface.data.batch import PairBatch
from efface.errors import UserError
from efface.model.blocks import decoder_blocks, parse_layers
from efface.model.copies import eval_mode
from efface.model.projections import gain_after, mlp_maps, output_weight
from efface.training.likelihood_gradient import first_batches, from_first_process, likelihood_gradient
from efface.training.optimizers import ChoosesOptimizer
from efface.training.passes import of_pairs, policy_forward

CRITERIA = ("value", "attribution")
LOOKED_AT = 64  # pairs: the first, as for all that is measured before training


@dataclass(frozen=True)
class Choice:
    """`--trainable`, read."""

    share: float
    """Of the neurons, above 0, at most 1."""
    criterion: str


def read_choice(spec: str) -> Choice | None:
    """What `trainable` asks for; None for `all`.

    Raises:
        UserError: for something else.
    """
    if spec == "all":
        return None
    name, _, rest = str(spec).partition(":")
    number, slash, criterion = rest.partition("/")
    try:
        choice = Choice(float(number), criterion if slash else CRITERIA[0])
    except ValueError:
        choice = Choice(0.0, "")
    if name != "toxic_neurons" or choice.criterion not in CRITERIA or not 0 < choice.share <= 1:
        raise UserError(
            f"trainable={spec!r} is neither `all` nor toxic_neurons:SHARE[/{'|'.join(CRITERIA)}] with a share of the "
            "neurons above 0 and at most 1, as in toxic_neurons:0.05 or toxic_neurons:0.1/attribution."
        )
    return choice


class Neurons:
    """The chosen neurons of a model, which alone are trained.

    Args:
        model: its flags of what is trained are set; it holds a second copy of the MLP's weights from here on.
        chosen: block -> (d_ff,) bool.
    """

    def __init__(self, model: PreTrainedModel, chosen: dict[int, Tensor]):
        self.chosen = chosen
        self._masks: list[tuple[Tensor, Tensor, Tensor]] = []  # weight, what of it is trained, what it was
        blocks = decoder_blocks(model)
        model.requires_grad_(False)
        for layer, neurons in chosen.items():
            if not neurons.any():  # nothing there moves, and no method may think so
                continue
            *inputs, last = mlp_maps(blocks[layer])
            for module in inputs:
                rows = neurons.repeat(
                    len(output_weight(module)) // len(neurons)
                )  # a fused gate stands before the rest
                weight = rows[:, None] if output_weight(module) is module.weight else rows
                self._hold(module.weight, weight)
                if module.bias is not None:
                    self._hold(module.bias, rows)
            self._hold(last.weight, neurons if output_weight(last) is last.weight else neurons[:, None])

    def _hold(self, parameter: Tensor, mask: Tensor) -> None:
        parameter.requires_grad_(True)
        self._masks.append((parameter, mask.to(parameter.device), parameter.detach().clone()))

    @torch.no_grad()
    def mask_gradients_(self) -> None:
        """Leave the chosen neurons alone a gradient: for clipping, for norms, for the optimizer's state."""
        for parameter, mask, _ in self._masks:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    @torch.no_grad()
    def restore_(self) -> None:
        """Put back what is not chosen."""
        for parameter, mask, start in self._masks:
            parameter.copy_(torch.where(mask, parameter, start))

    @property
    def nbytes(self) -> int:
        """Of the second copy."""
        return sum(start.nbytes for _, _, start in self._masks)

    @property
    def count(self) -> tuple[int, int, int]:
        """Neurons that are trained, neurons looked at, and weights that are trained."""
        trained = sum(int(mask.expand(weight.shape).sum()) for weight, mask, _ in self._masks)
        return sum(int(each.sum()) for each in self.chosen.values()), sum(map(len, self.chosen.values())), trained


class TrainsNeurons(ChoosesOptimizer):
    """A trainer that may train chosen neurons alone, with any of its optimizers; a class, since it goes between those
    that override `Trainer`."""

    neurons: Neurons | None = None

    def choose_neurons_(self) -> None:
        """Do as `args.trainable` says; once there is a data set."""
        args: Any = self.args
        model: Any = self.model
        choice = read_choice(args.trainable)
        if choice is None:
            return
        if hasattr(model, "peft_config"):
            raise UserError(
                f"trainable={args.trainable!r} chooses weights for training in full, and the model has an adapter, "
                "which is trained instead of them. Leave one of the two out."
            )
        n_blocks = len(decoder_blocks(model))
        layers = parse_layers("all" if args.trainable_layers is None else args.trainable_layers, n_blocks)
        score = value_scores if choice.criterion == "value" else attribution_scores
        chosen = highest(score(model, first_batches(self, LOOKED_AT), layers), choice.share)
        self.neurons = Neurons(model, from_first_process(self, chosen))
        self.add_callback(_Restores(self.neurons))

    def account_of_neurons(self) -> dict[str, int]:
        """How many are trained, of how many, and how many weights those have; empty if all weights are."""
        if self.neurons is None:
            return {}
        return dict(zip(("neurons", "of", "weights"), self.neurons.count, strict=True))

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:  # before they are clipped
            self.mask_neurons_()
        return loss

    def mask_neurons_(self) -> None:
        """What is not trained has no gradient; again, where a method has added to it since."""
        if self.neurons is not None:
            self.neurons.mask_gradients_()


class _Restores(TrainerCallback):
    def __init__(self, neurons: Neurons):
        self.neurons = neurons

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.neurons.restore_()


def highest(scores: dict[int, Tensor], share: float) -> dict[int, Tensor]:
    """Block -> (d_ff,) bool: the `share` of all neurons, at least one, whose `scores`, block -> (d_ff,), are
    highest."""
    everything = torch.cat(list(scores.values()))
    order = everything.argsort(descending=True, stable=True)
    mask = torch.zeros(len(everything), dtype=torch.bool, device=everything.device)
    mask[order[: max(round(share * len(everything)), 1)]] = True
    return dict(zip(scores, mask.split([len(each) for each in scores.values()]), strict=True))


@torch.no_grad()
def value_scores(model: PreTrainedModel, batches: Sequence[PairBatch], layers: Sequence[int]) -> dict[int, Tensor]:
    """Block -> (d_ff,) cosine of each value vector with the difference of mean states, y- less y+.

    Where a norm with a gain follows the MLP (Gemma 2 and 3), the value vector counts as it comes out of it.
    """
    direction = _direction(model, batches)  # (d,)
    found = {}
    for layer in layers:
        block = decoder_blocks(model)[layer]
        values = output_weight(mlp_maps(block)[-1]).float()  # (d, d_ff)
        gain = gain_after(block)
        if gain is not None:
            values = values * gain.to(values)[:, None]
        found[layer] = nn.functional.cosine_similarity(values, direction[:, None], dim=0)
    return found


def attribution_scores(
    model: PreTrainedModel, batches: Sequence[PairBatch], layers: Sequence[int]
) -> dict[int, Tensor]:
    """Block -> (d_ff,) what each neuron does for y- rather than y+, to first order, in nats a token."""
    maps = [mlp_maps(decoder_blocks(model)[layer])[-1] for layer in layers]
    gradients = likelihood_gradient(
        model, batches, {"rejected": 1.0, "chosen": -1.0}, [module.weight for module in maps]
    )
    found = {}
    for layer, module, gradient in zip(layers, maps, gradients, strict=True):
        effect = module.weight.detach().float() * gradient
        found[layer] = effect.sum(0 if output_weight(module) is module.weight else 1)
    return found


def _direction(model: PreTrainedModel, batches: Sequence[PairBatch]) -> Tensor:
    """(d,) mean state after the last block at the tokens of y- less that at the tokens of y+."""
    last = len(decoder_blocks(model)) - 1
    sums: list[list[Tensor]] = [[], []]
    with eval_mode(model):
        for batch in batches:
            mask = of_pairs(batch)
            states = policy_forward(model, batch, torch.zeros_like(mask), [last], mask, "plain").residuals[last]
            n = int(mask[: batch["n_pairs"]].sum())
            for parts, side in zip(sums, (states[:n], states[n:]), strict=True):
                parts.append(side.float())
    benign, toxic = (torch.cat(parts).mean(0) for parts in sums)
    return toxic - benign
