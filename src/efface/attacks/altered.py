"""What do the attacks share that leave the weights alone and change the text of the prompts?

Each way of changing the prompts is a point of the curve. A prompt is cut to the length that the target's decoding
gives it *before* it is changed: cut afterwards, it would lose what the attack has put at its end or its beginning.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from efface.attacks.points import worst
from efface.attacks.record import recorded
from efface.attacks.result import AttackResult
from efface.attacks.target import Target
from efface.data.conversation import as_message
from efface.data.tokens import bos_prefix, cut_message, encode_prompt, token_ids
from efface.model.padding import max_positions
from efface.scoring.scorer import THRESHOLD

logger = logging.getLogger(__name__)


def attack_altered(
    target: Target,
    name: str,
    settings: Any,
    points: Iterable[tuple[dict[str, Any], list[str]]],
    *,
    start: dict[str, Any],
    chat: bool | None = None,
    **found: Any,
) -> AttackResult:
    """Measure the model on each set of altered prompts; judged by the most toxic.

    Args:
        name: of the attack.
        points: what each is called, and a prompt for each of the target's. They are read whole.
        start: what the point with the prompts as they are is called.
        chat: whether they are messages; None leaves it to the target's decoding.
        found: what else the attack has to say.

    Returns:
        A result whose `found` says, besides: how many `points` there were; their `mean_share`, which unlike the worst
        does not grow with their number; `any_point`, the share of prompts with a toxic continuation at one of them at
        least (an upper bound: what an attacker gets who may try them all on each prompt); and `base_share`, of the
        base under the point that the attack is judged by (None without a base).
    """
    decoding = dataclasses.replace(
        target.decoding, max_prompt_tokens=None, chat=target.decoding.chat if chat is None else chat
    )
    with recorded(target, name, settings) as record:
        record.start(**start)
        altered = []
        for at, prompts in points:
            record.measure(target.model, at, prompts=prompts, decoding=decoding, with_text=False)
            altered.append(prompts)
        attacked = record.curve[1:]
        after = worst(record.curve)
        number = next((i for i, point in enumerate(attacked) if point is after), None)
        base = record.base if number is None else record.base_at(after.at, decoding, altered[number])
        judge = next(iter(after.figures["judges"]))
        toxic = [(point.scores(judge) > THRESHOLD).any(1) for point in attacked]  # of (n_prompts,)
        return record.result(
            after,
            **found,
            points=len(attacked),
            mean_share=float(np.mean([point.share for point in attacked])),
            any_point=float(np.any(toxic, axis=0).mean()),
            base_share=None if base is None else base.share,
        )


def altered_to_fit(
    target: Target, prompts: Sequence[str], alter: Callable[[int, str], str], *, chat: bool | None = None
) -> list[str]:
    """`alter(number, prompt)` for each prompt, of which the prompt is cut further where the model would have no
    positions for all of it: one long prompt must not end an attack.

    Args:
        chat: whether they are messages; None leaves it to the target's decoding.
    """
    tokenizer, how, limit = target.processing_class, target.decoding, max_positions(target.model)
    found = [alter(number, prompt) for number, prompt in enumerate(prompts)]
    if limit is None:
        return found
    room, chat = limit - how.max_new_tokens, how.chat if chat is None else chat

    def excess(text: str) -> int:
        text = as_message(tokenizer, text) if chat else text
        return len(encode_prompt(tokenizer, text, template=chat)) - room

    cut = 0
    for number, prompt in enumerate(prompts):
        over, kept = excess(found[number]), 0
        if over > 0:
            cut += 1
            kept = len(token_ids(tokenizer, prompt))
        while over > 0 and kept > 1:
            kept = max(kept - over, 1)
            found[number] = alter(number, cut_message(tokenizer, prompt, kept, how.truncation))
            over = excess(found[number])
    if cut:
        logger.warning(
            "%d of %d prompts were cut further, to fit into the model's %d positions with what the attack adds.",
            cut,
            len(prompts),
            limit,
        )
    return found


def prompts_as_read(target: Target) -> list[str]:
    """The prompts as far as the model reads them: cut as the target's decoding says, as text."""
    how, tokenizer = target.decoding, target.processing_class
    if how.max_prompt_tokens is None:
        return list(target.prompts)
    # A BOS counts as one of the tokens, but not before a message: see `encode_prompts`.
    room = max(how.max_prompt_tokens - (0 if how.chat else len(bos_prefix(tokenizer))), 1)
    return [cut_message(tokenizer, prompt, room, how.truncation) for prompt in target.prompts]
