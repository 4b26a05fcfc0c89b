"""How does one text get better, step by step? Greedy coordinate gradient (Zou et al. 2023, algorithms 1 and 2).

The gradient names `topk` tokens for each position, `search_width` swaps of one position (or `n_replace`) are drawn
among them, those that do not tokenise to themselves are dropped, the others are scored. With a draft (`drafts.py`) it
is the best few by the draft that are scored; losses that are reported are always the model's own.

With several slots the first is attacked alone, and the next is added when the text forces all of the present targets,
or after `add_after` steps. One thing differs from the algorithm: the search goes to the best of a draw only if that is
better than where it is, or if `patience` draws found nothing better there (1: always, as published). What counts is
the best text of all, or the last that forces all targets.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface.attacks.search.candidates import allowed_ids, most_promising, one_hot_gradient, slot_text, stable, swaps
from efface.attacks.search.drafts import VERIFIED
from efface.attacks.search.gcg_settings import PLAIN, TARGET, GCGSettings
from efface.attacks.search.slot import Slot
from efface.attacks.search.slot_loss import SlotLoss
from efface.data.tokens import encode_continuation
from efface.errors import UserError
from efface.files.jsonl import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEPT = ("loss", "misses", "best_loss", "losses", "evaluations", "active", "since", "success")


class TokenSearch:
    """A text on its way to the lowest mean loss in the slots; `step` tries to better it.

    Args:
        model: in evaluation mode.
        draft: a faster copy, see `drafts.py`.
        allowed: what `allowed_ids` says, if it is known.

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
        draft: "PreTrainedModel | None" = None,
        allowed: Tensor | None = None,
    ):
        self.processing_class, self.settings, self.seed, self.slots = processing_class, settings, seed, slots
        self.embedding = model.get_input_embeddings()
        if allowed is None:
            vocabulary = model.config.get_text_config(decoder=True).vocab_size
            allowed = allowed_ids(processing_class, vocabulary, non_ascii=settings.allow_non_ascii)
        self.allowed = allowed.to(model.device)
        self.terms = [SlotLoss(model, slot, batch_tokens=settings.batch_tokens, draft=draft) for slot in slots]
        self.verified = 1 if draft is None else VERIFIED
        self.ids = self._start().to(model.device)  # (L,), from which candidates are drawn
        self.loss = math.inf  # at `ids`
        self.misses = 0  # draws at `ids` that found nothing better
        self.promising: Tensor | None = None  # (L, topk) at `ids`
        self.active = 1
        """Slots that are attacked now: the first so many."""
        self.since = 0  # steps with so many
        self.best = self.ids
        """(L,), of all since the last slot was added."""
        self.best_loss = math.inf
        self.success = False
        """Whether `best` forces the targets of all slots."""
        self.losses: list[float] = []
        """That of `best`, before the first step and after each. It rises where a slot is added, or when a text forces
        the targets at another loss."""
        self.evaluations = 0
        """Candidates scored."""
        self.spent = 0  # tokens in earlier, interrupted runs

    @property
    def done(self) -> int:
        """Steps made."""
        return max(len(self.losses) - 1, 0)

    @property
    def over(self) -> bool:
        """Whether there is no reason to go on."""
        return self.success and self.settings.early_stop

    @property
    def text(self) -> str:
        return slot_text(self.processing_class, self.best.tolist())

    @property
    def tokens(self) -> int:
        """Put through a model, see `SlotLoss.tokens`."""
        return self.spent + sum(term.tokens for term in self.terms)

    def step(self) -> None:
        """Score one draw of candidates.

        Raises:
            RunError: if the loss is not finite.
        """
        settings = self.settings
        if self.promising is None:  # a step that found nothing better leaves them as they are
            self._look_around()
        assert self.promising is not None
        if self.over:
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.done)
        drawn = swaps(self.ids, self.promising, settings.search_width, settings.n_replace, generator)
        candidates = stable(drawn, self.slots, self.processing_class)  # (N, L)
        self.since += 1
        if len(candidates):
            self._choose(candidates)
        self.evaluations += len(candidates)
        self.losses.append(self.best_loss)
        if self.active < len(self.slots) and self.since >= settings.add_after:
            self._add()

    def forced(self) -> list[bool]:
        """For each slot: does the model, greedily, write the target?"""
        spent = [term.tokens for term in self.terms]
        found = [bool(term.judged(self.best[None])[1]) for term in self.terms]
        for term, tokens in zip(self.terms, spent, strict=True):  # a look at the end is no part of the search
            term.tokens = tokens
        return found

    def state(self) -> Row:
        """All that the next steps depend on, as JSON."""
        kept: dict[str, Any] = {name: getattr(self, name) for name in KEPT}
        kept |= {"ids": self.ids.tolist(), "best": self.best.tolist(), "tokens": self.tokens}
        return kept | {"losses": list(self.losses), "looked": self.promising is not None}

    def restore(self, state: Row) -> None:
        """Go on from what `state` gave, in a search of the same settings."""
        for name in KEPT:
            setattr(self, name, state[name])
        self.ids, self.best = (torch.tensor(state[name], device=self.ids.device) for name in ("ids", "best"))
        self.losses, self.promising = list(state["losses"]), None
        if state["looked"]:
            self._look_around()
        self.spent = state["tokens"] - sum(term.tokens for term in self.terms)

    def _choose(self, candidates: Tensor) -> None:
        """Go on from the best of `candidates` (N, L); one that forces all targets is better than any other."""
        terms = self.terms[: self.active]
        if len(candidates) > self.verified:
            rough = torch.stack([term.rough_losses(candidates) for term in terms]).mean(0)  # (N,)
            candidates = candidates[rough.topk(self.verified, largest=False).indices]
        judged = [term.judged(candidates) for term in terms]
        losses = torch.stack([losses for losses, _ in judged]).mean(0)
        forced = torch.stack([forced for _, forced in judged]).all(0)
        if forced.any():
            losses = torch.where(forced, losses, math.inf)
        chosen = int(losses.argmin())
        ids, loss = candidates[chosen], losses[chosen].item()
        if forced.any():
            self._succeed(ids, loss)
        else:
            self._move(ids, loss)

    def _move(self, ids: Tensor, loss: float) -> None:
        """Go to the best of a draw, if it is better or `patience` draws found nothing better here."""
        self.misses += loss >= self.loss
        if loss < self.loss or self.misses == self.settings.patience:
            self.ids, self.loss, self.misses, self.promising = ids, loss, 0, None
            if loss < self.best_loss and not self.success:
                self.best, self.best_loss = ids, loss

    def _succeed(self, ids: Tensor, loss: float) -> None:
        """`ids` forces all of the present targets."""
        if not self.success or loss < self.best_loss:
            self.best, self.best_loss = ids, loss
        self.ids, self.loss, self.misses, self.promising = ids, loss, 0, None
        if self.active < len(self.slots):
            self._add()
        else:
            self.success = True

    def _add(self) -> None:
        """Another slot, under which losses begin anew."""
        self.active, self.since = self.active + 1, 0
        losses = [term.losses(self.best[None]) for term in self.terms[: self.active]]
        self.loss = self.best_loss = torch.cat(losses).mean().item()
        self.ids, self.misses, self.promising = self.best, 0, None

    def _look_around(self) -> None:
        terms = self.terms[: self.active]
        found = [term.gradient(self.ids) for term in terms]
        gradient = torch.stack([gradient for _, gradient in found]).mean(0)  # (L, d)
        loss = sum(loss for loss, _ in found) / len(found)
        if not self.losses:
            self.loss, self.best_loss, self.losses = loss, loss, [loss]
        slopes = one_hot_gradient(gradient, self.embedding, self.allowed)  # (L, A)
        self.promising = most_promising(slopes, self.allowed, self.settings.topk)
        if len(terms) == len(self.slots) and all(term.is_forced for term in terms):
            self.success = True

    def _start(self) -> Tensor:
        """(L,)"""
        init, length = self.settings.init, self.settings.length
        if init == TARGET:
            target = self.slots[0].target
            start = torch.tensor([(target * length)[-length:]])
            if len(stable(start, self.slots, self.processing_class)):
                return start[0]
            init = PLAIN
        for text in (init * length, (init * length).strip()):  # the second where a template would trim the first
            ids = encode_continuation(self.processing_class, text)[:length]
            start = torch.tensor([ids], dtype=torch.long)
            if len(ids) == length and len(stable(start, self.slots, self.processing_class)):
                return start[0]
        raise UserError(
            f"init={init!r}, repeated to {length} tokens, does not tokenise to itself beside the prompts. Take "
            "another text, such as ' !' or a word with a space before it."
        )
