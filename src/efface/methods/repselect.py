"""How does RepSelect forget? One selective step along the forget gradient, as far as a KL budget allows.

RepSelect (Sondej, Yang and Mahdi 2026, arXiv 2606.17168; the selection is that of CIR, arXiv 2509.11816):

    1. a throw-away adapter is trained on x + y-, so that the model says y- gladly
    2. with the adapter on, F = gradient of mean log f(y- | x) with respect to each MLP matrix W of the model itself
    3. the top principal components of F (or of the gradient for y+) are damped on both sides: P(F), `selective.py`
    4. without the adapter, W <- W - a P(F)

and a is as large as the KL to the model as it was, over ordinary text, allows. What is damped is what all text shares,
and what fine-tuning on toxic text would find first.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from efface.checks import at_least, at_least_one, one_of, positive
from efface.data.batch import PairBatch, PairCollator
from efface.data.pair_tokens import tokenize_pairs
from efface.data.rows import load_texts
from efface.data.tokens import tokens_of
from efface.errors import RunError
from efface.evaluation.divergence import Divergence
from efface.methods.selective import DAMPINGS, Components, mlp_matrices, share_of
from efface.model.copies import merged
from efface.model.padding import max_positions
from efface.model.vocabulary import pad_id
from efface.terminal.progress import track
from efface.training.editor import EditConfig, PairEditor
from efface.training.finetune import finetune
from efface.training.likelihood_gradient import likelihood_gradient

CLOSE = 0.95  # of the budget: nearer is not worth another look
LEAST = 1e-5  # of the forget gradient's length: less is rounding
LOOKS = 24  # at the KL, at most, in a round


@dataclass
class RepSelectConfig(EditConfig):
    """Settings of RepSelect. Those of the authors are named as such; the others are ours and not tuned."""

    kl_budget: float = field(
        default=0.05,
        metadata={"help": "Nats a token that the KL to the model as it was may reach on --retain_text."},
    )
    rounds: int = field(
        default=1,
        metadata={
            "help": "Gradients, each made anew where the last has led, for its share of the budget (authors: 1)."
        },
    )
    selective_of: str = field(
        default="forget",
        metadata={"help": "Whose components are damped: forget (of y-, as in the paper) or retain (of y+)."},
    )
    selective_share: float = field(
        default=0.125,
        metadata={"help": "How many, as a share of a matrix's smaller side (authors: 512 of some 4096)."},
    )
    selective_damping: str = field(
        default="soft", metadata={"help": "How much: soft (as in the paper), quadratic, or hard (nothing is left)."}
    )
    adversary_steps: int = field(default=24, metadata={"help": "Steps of the throw-away adapter; 0: without it."})
    adversary_learning_rate: float = field(default=5e-4, metadata={"help": "Constant rate of that adapter (AdamW)."})
    adversary_r: int = field(default=8, metadata={"help": "Rank of that adapter (authors: 8)."})
    max_pairs: int = field(default=256, metadata={"help": "Pairs that are used; if there are more, they are drawn."})
    retain_text: str = field(
        default="shipped:passages", metadata={"help": "JSON lines with `text`: ordinary passages for the KL."}
    )
    kl_tokens: int = field(default=4096, metadata={"help": "Tokens of those passages that the KL is measured on."})
    max_prompt_length: int = field(default=128, metadata={"help": "Tokens; a longer prompt loses its beginning."})
    max_completion_length: int = field(default=128, metadata={"help": "Tokens; a longer continuation loses its end."})

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("kl_budget", self.kl_budget)
        positive("adversary_learning_rate", self.adversary_learning_rate)
        one_of("selective_of", self.selective_of, ("forget", "retain"))
        one_of("selective_damping", self.selective_damping, DAMPINGS)
        share_of("selective_share", self.selective_share)
        at_least(self, 0, "adversary_steps")
        at_least(self, 2, "kl_tokens")  # the first is not predicted
        at_least_one(self, "rounds", "adversary_r", "max_pairs", "max_prompt_length", "max_completion_length")


class RepSelectEditor(PairEditor):
    """Edit by RepSelect. Arguments as `PairEditor`; settings as `RepSelectConfig`.

    Only MLP matrices are changed; an adapter is merged first. Beside the model it holds a frozen copy for the KL and,
    while the gradient is taken, the copy with the throw-away adapter; then gradient and start of the MLP matrices.
    """

    config_class = RepSelectConfig
    args: RepSelectConfig

    def set_up_(self) -> None:
        self.model = merged(self.model)
        self.passages = enough(load_texts(self.args.retain_text), self.processing_class, self.args.kl_tokens)
        self.pairs = tokenize_pairs(
            self.drawn(self.args.max_pairs),
            self.processing_class,
            **self.lengths,
            max_positions=max_positions(self.model),
        )
        self._measured: Divergence | None = None
        self.divergence: Callable[[PreTrainedModel, PreTrainedModel], float] = self._kl
        """Of the model from its frozen copy, in nats a token."""

    def edit_(self) -> dict[str, Any]:
        """Returns for each round how far the MLP matrices went (over their own length), the KL there, and what of the
        gradient's length the selection kept.

        Raises:
            RunError: if no step fits into the budget, or the adapter diverges; the model is then as it was.
        """
        named = matrices(self.model)
        reference = copy.deepcopy(self.model).requires_grad_(False)
        start = [weight.detach().clone() for weight in named.values()]
        length = norm_of(start)
        found = []
        try:
            for number in range(1, self.args.rounds + 1):
                direction, kept = self._direction(list(named))
                here = [weight.detach().clone() for weight in named.values()]

                def place_(
                    distance: float, here: list[Tensor] = here, direction: list[Tensor] = direction
                ) -> float:  # always from `here`: nothing adds up
                    move_(list(named.values()), here, direction, distance * length)
                    return self.divergence(self.model, reference)

                limit = self.args.kl_budget * number / self.args.rounds
                distance, kl = farthest(place_, limit)
                found.append({"distance": distance, "kl": kl, "gradient_kept": kept})
        except BaseException:
            move_(list(named.values()), start, start, 0.0)
            raise
        return {"rounds": found, "kl": found[-1]["kl"], "kl_budget": self.args.kl_budget}

    def _direction(self, names: list[str]) -> tuple[list[Tensor], float]:
        """Down the selective forget gradient, of length 1 over all matrices; and the share of its length kept."""
        student = self._eager()
        weights = named_weights(student, names)
        batches, show = self._batches(), not self.args.disable_tqdm

        def gradient_of(side: str) -> list[Tensor]:
            def watched(given: Any) -> Any:
                return track(given, f"gradient of {side}", show=show)

            return likelihood_gradient(student, batches, {side: 1.0}, weights, each=watched)

        forget = gradient_of("rejected")
        shared = forget if self.args.selective_of == "forget" else gradient_of("chosen")
        before, after = norm_of(forget), []
        for gradient, other in zip(forget, track(shared, "components", show=show), strict=True):
            components = Components.of(other, self.args.selective_share)
            after.append(components.damp(gradient, self.args.selective_damping))
        size = norm_of(after)
        if size <= LEAST * before:  # what rounding leaves where nothing is
            raise RunError("nothing is left of the forget gradient: lower selective_share. The model is as it was.")
        return [-each / size for each in after], size / before

    def _eager(self) -> PreTrainedModel:
        """A copy that says y- gladly, by its adapter; the model itself where there is to be none."""
        if not self.args.adversary_steps:
            return self.model
        return finetune(
            self.model,
            self.processing_class,
            [pair.prompt_ids + pair.rejected_ids for pair in self.pairs],
            steps=self.args.adversary_steps,
            batch_size=self.args.batch_size,
            learning_rate=self.args.adversary_learning_rate,
            max_length=self.args.max_prompt_length + self.args.max_completion_length,
            lora_r=self.args.adversary_r,
            lora_alpha=self.args.adversary_r,  # PEFT's default is 8 of 8
            seed=self.args.seed,
            progress=not self.args.disable_tqdm,
        )

    def _batches(self) -> list[PairBatch]:
        collate, size = PairCollator(pad_id(self.processing_class, self.model)), self.args.batch_size
        found = [collate(self.pairs[i : i + size]) for i in range(0, len(self.pairs), size)]
        for batch in found:
            for name in ("input_ids", "attention_mask", "continuation_mask"):
                batch[name] = batch[name].to(self.model.device)
        return found

    def _kl(self, model: PreTrainedModel, reference: PreTrainedModel) -> float:
        if self._measured is None or self._measured.reference is not reference:
            tokens = self.args.kl_tokens
            self._measured = Divergence(reference, self.processing_class, self.passages, max_tokens=tokens)
        return self._measured.of(model)

    def describe(self) -> list[str]:
        adversary = f"{self.args.adversary_steps} steps of a throw-away adapter, " if self.args.adversary_steps else ""
        return [
            f"{len(self.pairs)} of {len(self.train_dataset)} pairs, {adversary}"
            f"{self.args.rounds} selective gradient(s) followed up to a KL of {self.args.kl_budget:g} nats a token"
        ]


def enough(texts: list[str], processing_class: Any, tokens: int) -> list[str]:
    """The first of `texts` that have so many tokens together, or all: every look at the KL would encode the rest."""
    for number, text in enumerate(texts, 1):
        tokens -= len(tokens_of(processing_class, text))
        if tokens <= 0:
            return texts[:number]
    return texts


def matrices(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Name -> weight of every linear map of the MLPs."""
    wanted = {id(weight) for weight in mlp_matrices(model)}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in wanted}


def named_weights(model: Any, names: list[str]) -> list[nn.Parameter]:
    """The weights of these names, also where an adapter has been put around them."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    found = dict(inner.named_parameters())
    return [found[name] if name in found else found[name.replace(".weight", ".base_layer.weight")] for name in names]


def farthest(place_: Callable[[float], float], budget: float, first: float = 1e-3) -> tuple[float, float]:
    """The distance whose KL comes close to `budget` from below, and that KL; the model is left there.

    The step is doubled as long as the KL stays within the budget, and halved, from where it last did, ever after.

    Args:
        place_: takes the model to a distance and measures the KL there; a KL that is not finite is too large.

    Raises:
        RunError: if no distance fits.
    """
    distance, step, growing, kl = 0.0, first, True, 0.0
    for _ in range(LOOKS):
        try:
            there = place_(distance + step)
        except RunError:  # the model is broken there, which is an answer
            there = math.inf
        if there <= budget:
            distance, kl = distance + step, there
            if kl >= CLOSE * budget:
                return distance, kl
        else:
            growing = False
        step = 2 * step if growing else step / 2
    if distance == 0:
        raise RunError(
            f"no step stays within a KL of {budget:g} nats a token: raise kl_budget. The model is as it was."
        )
    return distance, place_(distance)


@torch.no_grad()
def move_(weights: list[nn.Parameter], start: list[Tensor], direction: list[Tensor], distance: float) -> None:
    """weights <- start + distance * direction, computed in float32 or better."""
    for weight, origin, way in zip(weights, start, direction, strict=True):
        wide = torch.promote_types(weight.dtype, torch.float32)
        weight.copy_(origin if distance == 0 else origin.to(wide) + distance * way.to(wide))


def norm_of(tensors: list[Tensor]) -> float:
    """The Euclidean length over all of `tensors`."""
    return math.sqrt(sum(float(tensor.float().norm()) ** 2 for tensor in tensors))
