"""How good is a prefix that is to bring an edit's toxicity back? The objective of enhanced GCG.

For a prefix x before prompt p and forced target y (tokens t):

    loss = mean_t max(-log p(y_t | x, p, y_<t), -log q)                                force: clamped cross-entropy
         + w_hidden * c * (static + dynamic)
         + w_fluency    * mean_i -log p(x_i | x_<i)                                    under the edited model
         + w_repetition * sum over the tokens v of x of (count(v) - 1)^1.5 / |x|

    static  = mean over layers of sum_t |h_t(x, p) - h'_t(p)|^2    / sum_t |h'_t(p)|^2       h edited, h' base, at y
    dynamic = mean over layers of sum_t |h_t(x, p) - h'_t(x, p)|^2 / sum_t |h'_t(x, p)|^2

All but the last two are means over the prompts too. c makes w_hidden = 1 mean that at the start the hidden terms weigh
as much as the force (`balance`): their own scale is that of the edit, a few hundredths. A token that is forced with
probability q or more gives no further reward, so that the search turns to those that are not. Lucki et al. 2024,
arXiv 2409.18025, whose weights of fluency and repetition are the defaults; Thompson and Sklar 2024, arXiv 2407.17447.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface.attacks.search.candidates import one_hot_gradient
from efface.attacks.search.drafts import VERIFIED
from efface.attacks.search.hidden_distance import NEGLIGIBLE, States, hidden_distance, states_at_targets
from efface.attacks.search.slot import Slot
from efface.attacks.search.slot_loss import TOLERANCE, leaf_embeddings
from efface.attacks.search.tree import read_as_rows, read_as_trees
from efface.errors import RunError
from efface.generation.likelihood import states_nll
from efface.model.copies import frozen
from efface.model.forward import Head, forward
from efface.model.layout import Layout, plain_layout, why_not_shared
from efface.model.padding import pad_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = tuple[int, ...]


def clamped(nll: Tensor, enough: float) -> Tensor:
    """(N,) -> (N,): negative log-likelihoods, none below that of the probability `enough`."""
    return nll.clamp(min=-math.log(enough))


def repetition(ids: Sequence[int]) -> float:
    """0 if no token stands twice."""
    return sum((count - 1) ** 1.5 for count in Counter(ids).values()) / max(len(ids), 1)


@dataclass(frozen=True)
class Scored:
    """A prefix and what the objective says of it."""

    ids: Ids
    loss: float
    parts: dict[str, float]
    """"force", "hidden" (static), "dynamic", "fluency" and "repetition", not weighted; without those that have no
    weight."""


@dataclass
class PrefixObjective:
    """The objective on the prompts and targets of `slots`. It counts the tokens that go through a model.

    Raises:
        RunError: (its methods) if the loss is not finite.
    """

    model: "PreTrainedModel"
    base: "PreTrainedModel | None"
    """Needed if "hidden" has a weight."""
    slots: list[Slot]
    """All with the same tokens before them."""
    bare: list[list[int]]
    """The prompt of each slot as the base reads it, without a prefix: token ids, at least one."""
    weights: dict[str, float]
    """Of "hidden", "fluency" and "repetition"; that of "force" is 1. A term of weight 0 is not computed."""
    layers: Sequence[int] = ()
    enough: float = 0.6
    """A forced token of this probability gives no further reward."""
    pad: int = 0
    max_batch_tokens: int = 4096
    drafts: "tuple[PreTrainedModel, PreTrainedModel | None] | None" = None
    """Faster copies of the model and the base, which say which prefixes are worth reading."""
    shares: bool | None = None
    """Whether a prefix is read once for all prompts; None: if the model allows it, which is tried out."""
    scale: float = field(default=1.0, init=False)
    """c of the hidden terms."""
    tokens: int = field(default=0, init=False)
    """Put through a model, padding included; those that are differentiated too count three times."""
    reference: list[dict[int, Tensor]] = field(default_factory=list, init=False)
    """For each slot layer -> (T, d) of the base at the target; empty if "hidden" has no weight."""

    def __post_init__(self) -> None:
        self.weights = {"force": 1.0} | {name: weight for name, weight in self.weights.items() if weight}
        self.layers = self.layers if "hidden" in self.weights else ()
        self.branches = [[*slot.after, *slot.target] for slot in self.slots]
        if "hidden" in self.weights:
            assert self.base is not None
            self.reference = states_at_targets(self.base, self.bare, self.slots, self.layers, self.pad)

    def balance(self, parts: Mapping[str, float]) -> None:
        """From now on the hidden terms weigh, by weight 1, as much as the force does in `parts`."""
        distance = parts.get("hidden", 0.0) + parts.get("dynamic", 0.0)
        self.scale = parts["force"] / distance if distance > NEGLIGIBLE else 0.0

    @torch.no_grad()
    def score(self, prefixes: Sequence[Ids]) -> list[Scored]:
        """Those of `prefixes` that were read by the models themselves, in their order: all without drafts, and with
        them the few that the drafts find best."""
        if self.drafts is not None and len(prefixes) > VERIFIED:
            rough = [one.loss for one in self._scored(prefixes, *self.drafts)]
            best = sorted(sorted(range(len(prefixes)), key=rough.__getitem__)[:VERIFIED])
            prefixes = [prefixes[i] for i in best]
        scored = self._scored(prefixes, self.model, self.base)
        for one in scored:
            if not math.isfinite(one.loss):
                raise RunError(
                    f"the loss of the search is {one.loss}: check that the weights of the models are finite."
                )
        return scored

    def loss_of(self, parts: Mapping[str, float]) -> float:
        """The weighted sum of `parts`."""
        return sum(self._weight(name) * value for name, value in parts.items())

    def slopes(self, ids: Ids, allowed: Tensor) -> Tensor:
        """(P, A) float32: derivative of the loss, without the repetition, by the one-hot vector of each allowed token
        at each of the P places, up to what all tokens of a place share."""
        layout = self._layout([ids], self.model)  # it may have to try out what the model allows, whose leaves are none
        with frozen(self.model), leaf_embeddings(self.model) as leaves, torch.enable_grad():
            terms, direct = self._terms([ids], layout, self.model, self.base)
            loss = sum(self._weight(name) * terms[name].mean() for name in terms)
            assert isinstance(loss, Tensor)
            (states,) = torch.autograd.grad(loss, leaves[0])  # (R, S, e)
        self.tokens += 2 * layout.input_ids.numel()
        start = len(self.slots[0].before)
        places = layout.place[:, start : start + len(ids)].unique(dim=0)  # (1 or K, P)
        gradient = states.flatten(0, 1)[places].float().sum(0)  # (P, e)
        if not torch.isfinite(gradient).all():
            raise RunError("the gradient of the search is not finite: check the weights, or load them in float32.")
        allowed = allowed.to(gradient.device)
        embeddings = self.model.get_input_embeddings()
        found = one_hot_gradient(gradient.to(self.model.dtype), embeddings, allowed).float()
        if direct is not None and len(direct):
            # The loss holds log p of the token at a place itself, which is linear in its one-hot vector.
            weight = self.weights["fluency"] / len(direct)
            found[-len(direct) :] -= weight * direct.detach().float().log_softmax(-1)[:, allowed]
        return found

    @torch.no_grad()
    def next_logits(self, ids: Ids) -> Tensor:
        """(P + 1, V) float32 on the CPU: what comes at each place of the prefix and after it, says the model.

        Where nothing stands before the prefix, it says nothing of the first place, and all tokens are equal.
        """
        before = self.slots[0].before
        head = Head.of(self.model)
        nothing = torch.zeros(0 if before else 1, head.weight.shape[0])
        if not before and not ids:
            return nothing
        input_ids, mask = pad_batch([[*before, *ids]], self.pad, self.model.device, left=False)
        asked = torch.arange(mask.shape[1], device=mask.device)[None] >= len(before) - 1  # (1, T)
        self.tokens += input_ids.numel()
        hidden = forward(self.model, plain_layout(input_ids, mask), asked).hidden  # (T', d)
        return torch.cat([nothing, head(hidden).float().cpu()])

    def _weight(self, name: str) -> float:
        if name in ("hidden", "dynamic"):
            return self.weights["hidden"] * self.scale
        return self.weights[name]

    def _scored(
        self, prefixes: Sequence[Ids], model: "PreTrainedModel", base: "PreTrainedModel | None"
    ) -> list[Scored]:
        parts: list[dict[str, float]] = []
        for batch in self._batches(prefixes):
            terms, _ = self._terms(batch, self._layout(batch, model), model, base)
            values = {name: tensor.tolist() for name, tensor in terms.items()}
            parts += [{name: values[name][i] for name in values} for i in range(len(batch))]
        if "repetition" in self.weights:
            for own, ids in zip(parts, prefixes, strict=True):
                own["repetition"] = repetition(ids)
        return [Scored(ids, self.loss_of(own), own) for ids, own in zip(prefixes, parts, strict=True)]

    def _terms(
        self, prefixes: Sequence[Ids], layout: Layout, model: "PreTrainedModel", base: "PreTrainedModel | None"
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """name -> (B,), a mean over the slots, of the terms that have a weight; and of the last prefix (F, V) the
        logits at its last F places, None without fluency."""
        before, n = len(self.slots[0].before), len(self.slots)
        rows, columns = layout.place.shape
        project = torch.zeros(rows, columns, dtype=torch.bool)
        at_target, told = torch.zeros_like(project), list[int]()  # tokens of a prefix that have a likelihood
        sizes = []
        for i, ids in enumerate(prefixes):
            start = before + len(ids)
            told.append(min(len(ids), start - 1) if "fluency" in self.weights else 0)
            sizes.append(told[-1])
            project[i * n, start - 1 - told[-1] : start - 1] = told[-1] > 0
            for k, slot in enumerate(self.slots):
                end = start + len(slot.after) + len(slot.target)
                at_target[i * n + k, end - len(slot.target) : end] = True
                project[i * n + k, end - len(slot.target) - 1 : end - 1] = True
                sizes.append(len(slot.target))
        found = forward(model, layout, project.to(layout.place.device), self.layers, at_target.to(layout.place.device))
        self.tokens += layout.input_ids.numel()
        targets = [
            token
            for ids, count in zip(prefixes, told, strict=True)
            for token in [*ids[len(ids) - count :], *(token for slot in self.slots for token in slot.target)]
        ]
        head = Head.of(model)
        nll = states_nll(head, found.hidden, torch.tensor(targets, device=found.hidden.device)).split(sizes)
        step = n + 1  # of each prefix its own tokens, then its slots'
        force = [clamped(row, self.enough).mean() for i, row in enumerate(nll) if i % step]
        terms = {"force": torch.stack(force).view(-1, n).mean(1)}
        if "hidden" in self.weights:
            terms |= self._distances(found.residuals, layout, at_target, base, len(prefixes))
        logits = None
        if "fluency" in self.weights:
            fluency = [row.mean() if len(row) else row.sum() for row in nll[::step]]
            terms["fluency"] = torch.stack(fluency)
            logits = head(found.hidden.split(sizes)[-step].detach())
        return terms, logits

    def _distances(
        self, residuals: States, layout: Layout, at_target: Tensor, base: "PreTrainedModel | None", n_prefixes: int
    ) -> dict[str, Tensor]:
        """The static and the dynamic term, (B,)."""
        assert base is not None
        with torch.no_grad():
            at = at_target.to(layout.place.device)
            attacked = forward(base, layout, torch.zeros_like(at), self.layers, at).residuals
        self.tokens += layout.input_ids.numel()
        sizes = [len(slot.target) for slot in self.slots] * n_prefixes
        own = {layer: states.split(sizes) for layer, states in residuals.items()}
        other = {layer: states.to(self.model.device).split(sizes) for layer, states in attacked.items()}
        static, dynamic = [], []
        for row in range(len(sizes)):
            here = {layer: own[layer][row] for layer in self.layers}
            static.append(hidden_distance(here, self.reference[row % len(self.slots)]))
            dynamic.append(hidden_distance(here, {layer: other[layer][row] for layer in self.layers}))
        n = len(self.slots)
        return {
            "hidden": torch.stack(static).view(-1, n).mean(1),
            "dynamic": torch.stack(dynamic).view(-1, n).mean(1),
        }

    def _layout(self, prefixes: Sequence[Ids], model: "PreTrainedModel") -> Layout:
        starts = [[*self.slots[0].before, *ids] for ids in prefixes]
        if self.shares is None:
            self.shares = False
            self.shares = self._can_share(prefixes[:1])
        if self.shares and all(starts):
            return read_as_trees(starts, self.branches, model)
        return read_as_rows(starts, self.branches, self.pad, model.device)

    @torch.no_grad()
    def _can_share(self, prefixes: Sequence[Ids]) -> bool:
        """Whether the prompts after one prefix have the same losses when they are read together."""
        spent, losses = self.tokens, []
        models = [self.model] if self.base is None else [self.model, self.base]
        if any(why_not_shared(model) is not None for model in models) or not all(prefixes):
            return False
        for self.shares in (False, True):
            terms, _ = self._terms(prefixes, self._layout(prefixes, self.model), self.model, self.base)
            losses.append(sum(float(terms[name].sum()) for name in terms))
        self.tokens = spent
        return abs(losses[1] - losses[0]) <= TOLERANCE * max(abs(losses[0]), 1.0)

    def _batches(self, prefixes: Sequence[Ids]) -> list[list[Ids]]:
        """So many prefixes at a time, in their order."""
        more = sum(map(len, self.branches))
        each = max(map(len, prefixes), default=0) + more
        if not self.shares:
            each = len(self.slots) * (max(map(len, prefixes), default=0) + max(map(len, self.branches)))
        size = max(self.max_batch_tokens // max(each, 1), 1)
        return [list(prefixes[start : start + size]) for start in range(0, len(prefixes), size)]
