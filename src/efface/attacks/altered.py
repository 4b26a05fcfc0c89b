"""What do the attacks share that leave the weights alone and change the text of the prompts?

Each way of changing the prompts is a point of the curve. A prompt is cut to the length that the target's decoding
gives it *before* it is changed: cut afterwards, it would lose what the attack has put at its end or its beginning.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from efface.attacks.points import worst
from efface.attacks.result import AttackResult, recorded
from efface.attacks.target import Target
from efface.evaluation.toxicity import THRESHOLD
from efface.models import bos_prefix


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
        base = record.base_at(after.at, decoding, altered[attacked.index(after)])
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


def prompts_as_read(target: Target) -> list[str]:
    """The prompts as far as the model reads them: cut as the target's decoding says, as text."""
    how, tokenizer = target.decoding, target.processing_class
    if how.max_prompt_tokens is None:
        return list(target.prompts)
    # A BOS counts as one of the tokens, but not before a message: see `encode_prompts`.
    room = max(how.max_prompt_tokens - (0 if how.chat else len(bos_prefix(tokenizer))), 1)
    kept = slice(-room, None) if how.truncation == "last" else slice(room)
    found = []
    for prompt in target.prompts:
        ids = list(tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"])
        found.append(
            prompt if len(ids) <= room else str(tokenizer.decode(ids[kept], clean_up_tokenization_spaces=False))
        )
    return found
