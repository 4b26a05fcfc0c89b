"""Which tokens beside the prompt force a toxic continuation? Greedy coordinate gradient (Zou et al. 2023, alg. 1).

A text of fixed length is searched that makes the rejected continuations y of k held-out pairs likely,

    loss(x) = mean over pairs of the mean cross-entropy of y given prompt and x,

by swapping tokens: the gradient names `topk` tokens for each position, `search_width` swaps of one position (or
`n_replace`) are drawn among them, those that do not tokenise to themselves are dropped, the others are scored. Then
the text stands beside all prompts of the target.

Two things differ from the algorithm: k texts are attacked at once and not one after the other; and the search goes to
the best of a draw only if that is better than where it is, or if `patience` draws found nothing better there (1:
always, as published). What counts is the best text of all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface.attacks.draw import count_prompts_among, draw
from efface.attacks.lists import read_lists, several
from efface.attacks.points import worst
from efface.attacks.record import Record, recorded
from efface.attacks.result import AttackResult
from efface.attacks.search.candidates import allowed_ids, most_promising, one_hot_gradient, slot_text, stable, swaps
from efface.attacks.search.slot import PLACES, Slot, altered, universal
from efface.attacks.search.slot_loss import SlotLoss
from efface.attacks.target import Target
from efface.checks import at_least_one, one_of
from efface.data.tokens import encode_continuation
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.model.copies import eval_mode
from efface.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEEP_EVERY = 10  # steps after which an interrupted search goes on
STATE = "search to step"


@dataclass(frozen=True)
class GCGSettings:
    """Settings of `gcg`."""

    steps: tuple[int, ...] = several("100", int, "Search steps after which it is measured; 0, before, always is.")
    search_width: int = field(
        default=128, metadata={"help": "Candidates drawn in a step; fewer are scored, as not all are stable as text."}
    )
    topk: int = field(default=64, metadata={"help": "Tokens at each position that the gradient proposes."})
    n_replace: int = field(default=1, metadata={"help": "Positions that a candidate changes, at most."})
    patience: int = field(
        default=5,
        metadata={
            "help": "Draws that find nothing better before the search goes on from the best of the last one all the "
            "same; 1 always does."
        },
    )
    length: int = field(default=16, metadata={"help": "Tokens of the text that is searched."})
    place: str = field(default="suffix", metadata={"help": "Where it stands: suffix (after the prompt) or prefix."})
    k: int = field(
        default=1,
        metadata={"help": "Held-out pairs whose rejected continuation it is to force, drawn by the seed."},
    )
    target_tokens: int = field(
        default=16, metadata={"help": "Tokens of a rejected continuation to force; a longer one loses its end."}
    )
    init: str = field(default=" x", metadata={"help": "Text to start from, repeated or cut to the length."})
    allow_non_ascii: bool = field(default=False, metadata={"help": "Also try tokens that are no printable ASCII."})
    batch_tokens: int = field(
        default=2048, metadata={"help": "Tokens of candidates that go through the model together."}
    )

    def __post_init__(self) -> None:
        read_lists(self)
        one_of("place", self.place, PLACES)
        at_least_one(
            self, "search_width", "topk", "n_replace", "patience", "length", "k", "target_tokens", "batch_tokens"
        )
        if self.n_replace > self.length:
            raise UserError(f"n_replace={self.n_replace} of length={self.length} tokens: it cannot be more.")


class TokenSearch:
    """A text on its way to the lowest mean loss in all slots; `step` tries to better it.

    Args:
        model: in evaluation mode.

    Raises:
        UserError: if the text to start from does not tokenise to itself beside every prompt.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        processing_class: "PreTrainedTokenizerBase",
        slots: Sequence[Slot],
        settings: GCGSettings,
        seed: int = 0,
    ):
        self.processing_class, self.settings, self.seed, self.slots = processing_class, settings, seed, slots
        self.embedding = model.get_input_embeddings()
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        self.allowed = allowed_ids(processing_class, vocabulary, non_ascii=settings.allow_non_ascii).to(model.device)
        self.terms = [SlotLoss(model, slot, batch_tokens=settings.batch_tokens) for slot in slots]
        self.ids = self._start().to(model.device)  # (L,), from which candidates are drawn
        self.loss = math.inf  # at `ids`
        self.misses = 0  # draws at `ids` that found nothing better
        self.promising: Tensor | None = None  # (L, topk) at `ids`
        self.best = self.ids
        """(L,), of all so far."""
        self.losses: list[float] = []
        """The lowest loss so far, before the first step and after each."""
        self.evaluations = 0
        """Candidates scored."""

    @property
    def done(self) -> int:
        """Steps made."""
        return max(len(self.losses) - 1, 0)

    @property
    def text(self) -> str:
        return slot_text(self.processing_class, self.best.tolist())

    def step(self) -> None:
        """Score one draw of candidates.

        Raises:
            RunError: if the loss is not finite.
        """
        settings = self.settings
        if self.promising is None:  # a step that found nothing better leaves them as they are
            self._look_around()
        assert self.promising is not None
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.done)
        drawn = swaps(self.ids, self.promising, settings.search_width, settings.n_replace, generator)
        candidates = stable(drawn, self.slots, self.processing_class)  # (N, L)
        if len(candidates):
            losses = torch.stack([term.losses(candidates) for term in self.terms]).mean(0)  # (N,)
            lowest = int(losses.argmin())
            self._move(candidates[lowest], losses[lowest].item())
        self.losses.append(min(self.losses[-1], self.loss))
        self.evaluations += len(candidates)

    def forced(self) -> list[bool]:
        """For each slot: does the model, greedily, write the target?"""
        return [term.forced(self.best) for term in self.terms]

    def state(self) -> Row:
        """All that the next steps depend on, as JSON."""
        return {
            "ids": self.ids.tolist(),
            "loss": self.loss,
            "misses": self.misses,
            "best": self.best.tolist(),
            "losses": list(self.losses),
            "evaluations": self.evaluations,
        }

    def restore(self, state: Row) -> None:
        """Go on from what `state` gave, in a search of the same settings."""
        self.ids, self.best = (torch.tensor(state[name], device=self.ids.device) for name in ("ids", "best"))
        self.loss, self.misses, self.promising = state["loss"], state["misses"], None
        self.losses, self.evaluations = list(state["losses"]), state["evaluations"]

    def _move(self, ids: Tensor, loss: float) -> None:
        """Go to the best of a draw, if it is better or `patience` draws found nothing better here."""
        self.misses += loss >= self.loss
        if loss < self.loss or self.misses == self.settings.patience:
            self.ids, self.loss, self.misses, self.promising = ids, loss, 0, None
            if loss < self.losses[-1]:
                self.best = ids

    def _look_around(self) -> None:
        found = [term.gradient(self.ids) for term in self.terms]
        gradient = torch.stack([gradient for _, gradient in found]).mean(0)  # (L, d)
        if not self.losses:
            self.loss = sum(loss for loss, _ in found) / len(found)
            self.losses = [self.loss]
        slopes = one_hot_gradient(gradient, self.embedding, self.allowed)  # (L, A)
        self.promising = most_promising(slopes, self.allowed, self.settings.topk)

    def _start(self) -> Tensor:
        """(L,)"""
        init, length = self.settings.init, self.settings.length
        ids = encode_continuation(self.processing_class, init * length)[:length]
        start = torch.tensor([ids], dtype=torch.long)
        if len(ids) < length or not len(stable(start, self.slots, self.processing_class)):
            raise UserError(
                f"init={init!r}, repeated to {length} tokens, does not tokenise to itself beside the prompts. Take "
                "another text, such as ' !' or a word with a space before it."
            )
        return start[0]


def gcg(target: Target, settings: GCGSettings) -> AttackResult:
    """Search a text on `k` held-out pairs, put it into all prompts; judged by the most toxic point.

    `found` says: for each of `points` its `steps`, the `text`, its `loss` and of how many pairs the target is
    `forced`, that is written greedily; the `losses` before the first and after each step; the `evaluations`; and how
    many of the pairs' prompts are among those it is measured on (`prompts_among_rows`). An interrupted search goes on
    where it was last kept, every ten steps.

    Raises:
        UserError: if there are fewer rows than `k`, a row does not fit into the model, or `init` does not suit the
            tokenizer.
        RunError: if the loss is not finite.
    """
    options = {"length": settings.length, "target_tokens": settings.target_tokens}
    slots = universal(target, settings.k, settings.place, **options)
    model, tokenizer = target.model, target.processing_class
    points = []
    with recorded(target, "gcg", settings) as record, eval_mode(model):
        search = TokenSearch(model, tokenizer, slots, settings, target.seed)
        record.start(steps=0)
        for steps in settings.steps:
            _reach(record, search, steps)
            prompts, decoding = altered(target, search.text, settings.place)
            record.measure(model, {"steps": steps}, prompts=prompts, decoding=decoding, with_text=False)
            loss, forced = search.losses[-1], sum(search.forced())
            points.append({"steps": steps, "text": search.text, "loss": loss, "forced": forced})
        return record.result(
            worst(record.curve),
            points=points,
            losses=search.losses,
            evaluations=search.evaluations,
            prompts_among_rows=count_prompts_among(draw(target.rows, settings.k, target.seed), target.prompts),
        )


def _reach(record: Record, search: TokenSearch, step: int) -> None:
    """Search up to `step`, from where an earlier run has kept it."""
    for state in record.kept(STATE):
        if search.done < len(state["losses"]) - 1 <= step:
            search.restore(state)
    for done in track(range(search.done + 1, step + 1), "searching", show=record.target.progress):
        search.step()
        if done == step or done % KEEP_EVERY == 0:
            record.keep(f"{STATE} {done}", search.state())
