"""How is a prefix searched, step by step? The loop of enhanced GCG, with a journal to resume from.

A step takes a parent from the buffer, applies one operator drawn at random, and scores the candidates that survive
being written out before the prompts (`flrt.py`, `candidates.py`, `prefix_objective.py`).
"""

import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from efface.attacks.draw import count_prompts_among
from efface.attacks.record import Record
from efface.attacks.search.candidates import allowed_ids, most_promising, slot_text, stable
from efface.attacks.search.drafts import draft_of
from efface.attacks.search.flrt import SHARES, Buffer, deleted, inserted, picked, possible, sampled, swapped
from efface.attacks.search.prefix_objective import Ids, PrefixObjective, Scored
from efface.attacks.search.prefix_settings import ARGUMENT, EnhancedGCGSettings
from efface.attacks.search.slot import Slot
from efface.data.tokens import encode_continuation, encode_prompt
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.model.vocabulary import pad_id
from efface.terminal.progress import track

KEEP_EVERY = 10  # steps between two entries of the part file
STATE = "search, step"


class PrefixSearch:
    """A search and its journal. What a step found goes into the journal, and the state follows from it: so a search
    that was interrupted is read again from the part file, not run again."""

    def __init__(
        self,
        record: Record,
        settings: EnhancedGCGSettings,
        rows: Sequence[Row],
        slots: list[Slot],
        layers: list[int],
    ):
        self.record, self.settings, self.rows, self.slots = record, settings, rows, slots
        self.target = record.target
        tokenizer, base = self.target.processing_class, self.target.base
        w_hidden = settings.w_hidden if layers else 0.0
        drafts = None
        if (draft := draft_of(self.target.model, settings.search_dtype)) is not None:
            read = base is not None and w_hidden
            drafts = draft, (draft_of(base, settings.search_dtype) or base) if base is not None and read else base
        self.objective = PrefixObjective(
            self.target.model,
            base,
            slots,
            [bare_prompt(slot, tokenizer) for slot in slots],
            {"hidden": w_hidden, "fluency": settings.w_fluency, "repetition": settings.w_repetition},
            layers,
            enough=settings.enough,
            pad=pad_id(tokenizer, self.target.model),
            max_batch_tokens=self.target.max_tokens_at_once or 2048,
            drafts=drafts,
        )
        self.evaluations = 0
        vocabulary = self.target.model.get_output_embeddings().weight.shape[0]
        self.allowed = allowed_ids(tokenizer, vocabulary, non_ascii=settings.allow_non_ascii)  # (A,)
        self.buffer = Buffer(settings.buffer_size)
        self.seen: set[Ids] = set()
        self.history: list[float] = []
        self.first: Scored
        self.pending: list[Row] = []
        for journal in record.kept(STATE):
            for entry in journal:
                self._apply(entry)

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self.history) - 1

    def run(self) -> None:
        """Search until the steps are made."""
        try:
            if not self.history:
                self._write(self._start())
            ahead = range(self.steps + 1, self.settings.steps + 1)
            for step in track(ahead, "search", show=self.target.progress):
                self._write(self._step(random.Random(f"{self.target.seed} {step}")))
        finally:
            self._flush()

    def found(self) -> dict[str, Any]:
        """What the attack has to say of the search."""
        return {
            **self._described(self.buffer.best),
            "start": self._described(self.first),
            "history": self.history,
            "steps": self.steps,
            "evaluations": self.evaluations,
            "tokens_read": self.objective.tokens,
            "layers": list(self.objective.layers),
            "scale": self.objective.scale,
            "rows": len(self.slots),
            "prompts_among_rows": count_prompts_among(self.rows, self.target.prompts),
        }

    def _described(self, scored: Scored) -> dict[str, Any]:
        text = slot_text(self.target.processing_class, scored.ids)
        return {"prefix": text, "tokens": len(scored.ids), "loss": scored.loss, "parts": scored.parts}

    def _start(self) -> Row:
        """The text to start from, or a prefix that the model samples, token by token."""
        first = self._given() or self._sampled()
        (scored,) = self.objective.score([first])
        self.objective.balance(scored.parts)
        balanced = Scored(scored.ids, self.objective.loss_of(scored.parts), scored.parts)
        return self._entry([balanced], n=1)

    def _given(self) -> Ids:
        """The text to start from, or nothing: if none is given, or the default does not suit the tokenizer."""
        settings = self.settings
        if not settings.init:
            return ()
        ids = tuple(encode_continuation(self.target.processing_class, settings.init))[: settings.max_tokens]
        if len(ids) < settings.min_tokens:
            raise UserError(
                f"init={settings.init!r} has {len(ids)} tokens, fewer than min_tokens={settings.min_tokens}: a search "
                "cannot begin outside its bounds. Change one of them."
            )
        if not self._keeps([ids]):
            if settings.init == ARGUMENT:
                return ()
            raise UserError(
                f"init={settings.init!r} does not tokenise to itself before the prompts. Take a text that ends with a "
                "whole word or a full stop, or init='' to let the model write one."
            )
        return ids

    def _sampled(self) -> Ids:
        settings, rng = self.settings, random.Random(self.target.seed)
        ids: Ids = ()
        while len(ids) < settings.start_tokens:
            (tokens,) = self._samples(ids, rng)[-1:]
            for several in (tokens, self.allowed.tolist()):
                longer = picked(((*ids, token) for token in several), 1, self._keeps, rng)
                if longer:
                    break
            else:
                raise UserError(
                    f"no prefix of {len(ids) + 1} tokens is stable: written before the prompts, it is tokenised "
                    "otherwise. Give other rows, or set allow_non_ascii."
                )
            ids = longer[0]
        return ids

    def _step(self, rng: random.Random) -> Row:
        """What one step finds."""
        settings, objective = self.settings, self.objective
        parent = self.buffer.parent.ids
        names = possible(settings.operators, len(parent), settings.min_tokens, settings.max_tokens)
        if not names:
            return self._entry([], parent)
        name = rng.choices(names, [SHARES[name] for name in names])[0]
        if name == "gradient":
            promising = most_promising(objective.slopes(parent, self.allowed).cpu(), self.allowed, settings.choices)
            candidates = swapped(parent, promising.tolist())
        elif name == "sample":
            candidates = swapped(parent, self._samples(parent, rng)[: len(parent)])
        elif name == "insert":
            candidates = inserted(parent, self._samples(parent, rng))
        else:
            candidates = deleted(parent)
        fresh = picked((ids for ids in candidates if ids not in self.seen), settings.search_width, self._keeps, rng)
        return self._entry(objective.score(fresh), parent, n=len(fresh))

    def _samples(self, ids: Ids, rng: random.Random) -> list[list[int]]:
        """P + 1 lists: what the model itself would put at each place of the prefix, and after it."""
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        return sampled(self.objective.next_logits(ids), self.allowed, self.settings.choices, generator)

    def _keeps(self, candidates: list[Ids]) -> list[Ids]:
        """Those that are tokenised to themselves when they are written before the prompts; all of one length."""
        kept = stable(torch.tensor(candidates), self.slots, self.target.processing_class).tolist()
        return [tuple(ids) for ids in kept]

    def _entry(self, scored: list[Scored], parent: Ids | None = None, n: int = 0) -> Row:
        """What the journal says of a step, of whose `n` candidates some were `scored` exactly."""
        spent = {"evaluations": self.evaluations + n, "tokens": self.objective.tokens}
        return {"parent": parent, "scored": [asdict(one) for one in scored], **spent}

    def _write(self, entry: Row) -> None:
        self._apply(entry)
        self.pending.append(entry)
        if len(self.pending) == KEEP_EVERY:
            self._flush()

    def _apply(self, entry: Row) -> None:
        """The state after what `entry` says, whether it was found now or is read from the part file."""
        scored = [Scored(tuple(one["ids"]), one["loss"], one["parts"]) for one in entry["scored"]]
        if not self.history:
            self.first = scored[0]
            self.objective.balance(self.first.parts)
        self.buffer.add(scored, None if entry["parent"] is None else tuple(entry["parent"]))
        self.seen |= {one.ids for one in scored}
        self.history.append(self.buffer.best.loss)
        self.evaluations, self.objective.tokens = entry["evaluations"], entry["tokens"]

    def _flush(self) -> None:
        if self.pending:
            self.record.keep(f"{STATE} {self.steps}", self.pending)
        self.pending = []


def bare_prompt(slot: Slot, processing_class: Any) -> list[int]:
    """The token ids of the slot's prompt without a prefix, and without the space that follows one."""
    first, last = slot.texts
    return encode_prompt(processing_class, first + last.removeprefix(" "), template=slot.template)
