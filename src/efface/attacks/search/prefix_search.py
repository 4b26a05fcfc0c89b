"""How is a prefix searched, step by step, within a budget? The loop of enhanced GCG, with a journal to resume from.

A step takes a parent from the buffer, applies one operator drawn at random, and scores the candidates that survive
being written out before the prompts (`flrt.py`, `candidates.py`, `prefix_objective.py`). It ends with the steps or
with the rows that may go through a model, whichever comes first.
"""

import random
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from efface.attacks.draw import count_prompts_among, draw
from efface.attacks.record import Record
from efface.attacks.search.candidates import allowed_ids, most_promising, one_hot_gradient, slot_text, stable
from efface.attacks.search.flrt import Buffer, deleted, inserted, picked, possible, sampled, swapped
from efface.attacks.search.prefix_objective import Ids, PrefixObjective, Scored
from efface.attacks.search.prefix_settings import EnhancedGCGSettings
from efface.attacks.search.slot import Slot
from efface.data.tokens import encode_prompt
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.model.vocabulary import pad_id
from efface.progress import track

KEEP_EVERY = 10  # steps between two entries of the part file
STATE = "search, step"


class PrefixSearch:
    """A search and its journal. What a step found goes into the journal, and the state follows from it: so a search
    that was interrupted is read again from the part file, not run again."""

    def __init__(self, record: Record, settings: EnhancedGCGSettings, slots: list[Slot], layers: list[int]):
        self.record, self.settings, self.slots = record, settings, slots
        self.target = record.target
        tokenizer = self.target.processing_class
        self.objective = PrefixObjective(
            self.target.model,
            self.target.base,
            slots,
            [bare_prompt(slot, tokenizer) for slot in slots],
            {name: getattr(settings, f"w_{name}") for name in ("hidden", "fluency", "repetition")},
            layers,
            enough=settings.enough,
            pad=pad_id(tokenizer, self.target.model),
            max_batch_tokens=self.target.max_tokens_at_once or 4096,
        )
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
        """Search until a budget is used up."""
        try:
            if not self.history:
                self._write(self._start())
            ahead = range(self.steps + 1, self.settings.steps + 1)
            for step in track(ahead, "search", show=self.target.progress):
                entry = self._step(random.Random(f"{self.target.seed} {step}"))
                if entry is None:
                    break
                self._write(entry)
        finally:
            self._flush()

    def found(self) -> dict[str, Any]:
        """What the attack has to say of the search."""
        rows = draw(self.target.rows, self.settings.k, self.target.seed)
        return {
            **self._described(self.buffer.best),
            "start": self._described(self.first),
            "history": self.history,
            "steps": self.steps,
            "forward_passes": self.objective.passes,
            "budget": "steps" if self.steps == self.settings.steps else "max_passes",
            "rows": len(self.slots),
            "prompts_among_rows": count_prompts_among(rows, self.target.prompts),
        }

    def _described(self, scored: Scored) -> dict[str, Any]:
        text = slot_text(self.target.processing_class, scored.ids)
        return {"prefix": text, "tokens": len(scored.ids), "loss": scored.loss, "parts": scored.parts}

    def _start(self) -> Row:
        """A prefix that the model samples, token by token."""
        objective, settings = self.objective, self.settings
        needed = objective.passes + settings.start_tokens + objective.cost(2) + len(self.slots)
        if needed > settings.max_passes:
            raise UserError(
                f"max_passes={settings.max_passes}: the first prefix and a step take up to {needed}. Raise it or "
                "lower k."
            )
        rng = random.Random(self.target.seed)
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
        return self._entry(objective.score([ids]))

    def _step(self, rng: random.Random) -> Row | None:
        """What one step finds; None if the passes that are left do not suffice for it."""
        settings, objective = self.settings, self.objective
        parent = self.buffer.parent.ids
        names = possible(settings.operators, len(parent), settings.min_tokens, settings.max_tokens)
        if not names:
            return self._entry([], parent)
        name = rng.choice(names)
        price = {"gradient": len(self.slots), "sample": 1, "insert": 1, "delete": 0}[name]
        width = min(settings.search_width, (settings.max_passes - objective.passes - price) // objective.cost(1))
        if width < 1:
            return None
        if name == "gradient":
            promising = most_promising(self._one_hot_gradient(parent), self.allowed, settings.choices)
            candidates = swapped(parent, promising.tolist())
        elif name == "sample":
            candidates = swapped(parent, self._samples(parent, rng)[: len(parent)])
        elif name == "insert":
            candidates = inserted(parent, self._samples(parent, rng))
        else:
            candidates = deleted(parent)
        fresh = (ids for ids in candidates if ids not in self.seen)
        return self._entry(objective.score(picked(fresh, width, self._keeps, rng)), parent)

    def _one_hot_gradient(self, ids: Ids) -> Tensor:
        """(P, A) on the CPU."""
        model = self.target.model
        gradient = self.objective.gradient(ids).to(model.dtype)
        return one_hot_gradient(gradient, model.get_input_embeddings(), self.allowed.to(model.device)).float().cpu()

    def _samples(self, ids: Ids, rng: random.Random) -> list[list[int]]:
        """P + 1 lists: what the model itself would put at each place of the prefix, and after it."""
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        return sampled(self.objective.next_logits(ids), self.allowed, self.settings.choices, generator)

    def _keeps(self, candidates: list[Ids]) -> list[Ids]:
        """Those that are tokenised to themselves when they are written before the prompts; all of one length."""
        kept = stable(torch.tensor(candidates), self.slots, self.target.processing_class).tolist()
        return [tuple(ids) for ids in kept]

    def _entry(self, scored: list[Scored], parent: Ids | None = None) -> Row:
        return {"parent": parent, "scored": [asdict(one) for one in scored], "passes": self.objective.passes}

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
        self.buffer.add(scored, None if entry["parent"] is None else tuple(entry["parent"]))
        self.seen |= {one.ids for one in scored}
        self.history.append(self.buffer.best.loss)
        self.objective.passes = entry["passes"]

    def _flush(self) -> None:
        if self.pending:
            self.record.keep(f"{STATE} {self.steps}", self.pending)
        self.pending = []


def bare_prompt(slot: Slot, processing_class: Any) -> list[int]:
    """The token ids of the slot's prompt without a prefix, and without the space that follows one."""
    first, last = slot.texts
    return encode_prompt(processing_class, first + last.removeprefix(" "), template=slot.template)
