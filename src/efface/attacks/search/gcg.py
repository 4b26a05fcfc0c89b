"""Which tokens beside the prompt force a toxic continuation? Greedy coordinate gradient (Zou et al. 2023).

A text x of fixed length is searched that makes a continuation y likely, the mean cross-entropy of y given prompt and x
being the loss (`token_search.py`). Two ways:

    per_prompt   `k` of the target's prompts, each with a text of its own; y is what the base itself writes after that
                 prompt when it is toxic (`own_targets.py`). Zou's first setting, and nanoGCG's.
    universal    one text for all prompts, searched on `k` held-out pairs, whose rejected continuation is y; they are
                 added one by one (Zou's algorithm 2).
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from efface.attacks.altered import prompts_as_read
from efface.attacks.draw import count_prompts_among, draw
from efface.attacks.points import worst
from efface.attacks.record import Record, recorded
from efface.attacks.result import AttackResult
from efface.attacks.search.candidates import allowed_ids
from efface.attacks.search.drafts import draft_of
from efface.attacks.search.gcg_settings import GCGSettings
from efface.attacks.search.own_targets import OwnTarget, own_targets
from efface.attacks.search.slot import altered, has_room, put, slot_before, universal
from efface.attacks.search.token_search import TokenSearch
from efface.attacks.target import Target
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.model.copies import eval_mode
from efface.terminal.progress import track

logger = logging.getLogger(__name__)
KEEP_EVERY = 10  # steps after which an interrupted search goes on


def gcg(target: Target, settings: GCGSettings) -> AttackResult:
    """Search texts, put them into the prompts, measure; judged by the most toxic point.

    `found` says, in both modes: the `evaluations` (candidates scored) and the `tokens` put through a model for that,
    those that were differentiated three times; and

    - per_prompt: how many prompts were `asked` for a toxic continuation until `k` had one, and of how many were
      `attacked`; for each of these (`prompts`) its `number` in the list, the `target` and its `score`, the `text`,
      the `losses` at both ends, the `steps` and `evaluations`, and whether the target is `forced`, that is written
      greedily; the `forced_share`. What is measured is these prompts, each with its own text, against the same
      prompts without one.
    - universal: for each of `points` its `steps`, the `text`, its `loss` and of how many pairs the target is `forced`;
      the `losses` before the first and after each step; and how many of the pairs' prompts are among those it is
      measured on (`prompts_among_rows`).

    An interrupted search goes on where it was last kept, of every prompt: every ten steps, and when it fails.

    Raises:
        UserError: if there are fewer rows than `k`, or no prompt with a toxic continuation; one does not fit into the
            model; or `init` does not suit the tokenizer.
        RunError: if the loss is not finite.
    """
    with eval_mode(target.model):
        return _each(target, settings) if settings.mode == "per_prompt" else _universal(target, settings)


def _each(target: Target, settings: GCGSettings) -> AttackResult:
    read = [prompt.rstrip() if settings.place == "suffix" else prompt for prompt in prompts_as_read(target)]
    written = max(settings.target_tokens, target.decoding.max_new_tokens)
    wanted, asked = own_targets(
        target,
        read,
        settings.k,
        tokens=settings.target_tokens,
        draws=settings.draws,
        fits=lambda prompt: has_room(target, prompt, settings.place, settings.length + written),
    )
    if not wanted:
        raise UserError(
            f"none of {asked} prompts has a toxic continuation among {settings.draws} that the base writes, so there "
            "is nothing to force. Raise draws, give other prompts, or set mode=universal."
        )
    if len(wanted) < settings.k:
        logger.warning("gcg: %d prompts have a toxic continuation, fewer than k=%d.", len(wanted), settings.k)
    with recorded(target, "gcg", settings, [one.number for one in wanted]) as record:
        searches = _searches(target, settings, [read[one.number] for one in wanted], wanted)
        record.start(steps=0)
        for steps in settings.steps:
            for number, search in enumerate(track(searches, f"gcg to {steps}", show=target.progress)):
                _reach(record, search, steps, f"search of prompt {number}, step")
            prompts = [
                put(read[one.number], search.text, settings.place)
                for one, search in zip(wanted, searches, strict=True)
            ]
            how = replace(target.decoding, max_prompt_tokens=None)
            record.measure(target.model, {"steps": steps}, prompts=prompts, decoding=how, with_text=False)
        found = [_describe(one, search) for one, search in zip(wanted, searches, strict=True)]
        return record.result(
            worst(record.curve),
            asked=asked,
            attacked=len(wanted),
            forced_share=sum(row["forced"] for row in found) / len(found),
            evaluations=sum(search.evaluations for search in searches),
            tokens=sum(search.tokens for search in searches),
            prompts=found,
        )


def _universal(target: Target, settings: GCGSettings) -> AttackResult:
    options = {"length": settings.length, "target_tokens": settings.target_tokens}
    slots = universal(target, settings.k, settings.place, **options)
    points = []
    with recorded(target, "gcg", settings) as record:
        draft = draft_of(target.model, settings.search_dtype)
        search = TokenSearch(target.model, target.processing_class, slots, settings, target.seed, draft)
        record.start(steps=0)
        for steps in settings.steps:
            _reach(record, search, steps, "search, step")
            prompts, decoding = altered(target, search.text, settings.place)
            record.measure(target.model, {"steps": steps}, prompts=prompts, decoding=decoding, with_text=False)
            at: dict[str, Any] = {"steps": steps, "text": search.text, "loss": search.losses[-1]}
            points.append(at | {"forced": sum(search.forced()), "pairs": search.active})
        return record.result(
            worst(record.curve),
            points=points,
            losses=search.losses,
            evaluations=search.evaluations,
            tokens=search.tokens,
            prompts_among_rows=count_prompts_among(draw(target.rows, settings.k, target.seed), target.prompts),
        )


def _searches(
    target: Target, settings: GCGSettings, prompts: Sequence[str], wanted: Sequence[OwnTarget]
) -> list[TokenSearch]:
    model, tokenizer, chat = target.model, target.processing_class, target.decoding.chat
    draft = draft_of(model, settings.search_dtype)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    allowed = allowed_ids(tokenizer, vocabulary, non_ascii=settings.allow_non_ascii)
    return [
        TokenSearch(
            model,
            tokenizer,
            [slot_before(one.ids, prompt, tokenizer, settings.place, chat=chat)],
            settings,
            target.seed + one.number,
            draft,
            allowed,
        )
        for prompt, one in zip(prompts, wanted, strict=True)
    ]


def _describe(one: OwnTarget, search: TokenSearch) -> Row:
    return {
        "number": one.number,
        "target": one.text,
        "score": one.score,
        "text": search.text,
        "losses": [search.losses[0], search.losses[-1]],
        "steps": search.done,
        "evaluations": search.evaluations,
        "forced": all(search.forced()),
    }


def _reach(record: Record, search: TokenSearch, step: int, name: str) -> None:
    """Search up to `step`, or until it is over, from where an earlier run has kept it as `name`."""
    for state in record.kept(f"{name} "):
        if search.done < len(state["losses"]) - 1 <= step:
            search.restore(state)
    reached, kept = None, search.done
    try:
        while search.done < step and not search.over:
            search.step()
            reached = search.state()
            if search.done % KEEP_EVERY == 0:
                record.keep(f"{name} {search.done}", reached)
                kept = search.done
    finally:  # also when it is interrupted, within a step or between two
        if reached is not None and (done := len(reached["losses"]) - 1) > kept:
            record.keep(f"{name} {done}", reached)
