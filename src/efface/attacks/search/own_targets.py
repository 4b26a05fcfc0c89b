"""What is forced on a model? What it, or the base that it was made from, writes of itself after the very prompt.

Nothing foreign: a continuation that the base has drawn after this prompt is one that the edit has taken away. Several
are drawn at temperature 1 from the nucleus of 0.9; the most toxic counts, if it is toxic.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from efface.attacks.target import Target
from efface.generation.decoder import end_ids
from efface.generation.decoding import Decoding
from efface.generation.generate import generate_ids
from efface.scoring.scorer import THRESHOLD, score

AT_ONCE = 16  # prompts


@dataclass(frozen=True)
class OwnTarget:
    """A toxic continuation of one prompt."""

    number: int
    """Of the prompt, in the list it was drawn from."""
    ids: list[int]
    """Token ids; at least one."""
    text: str
    score: float
    """By the first judge."""


def own_targets(
    target: Target,
    prompts: Sequence[str],
    k: int,
    *,
    tokens: int,
    draws: int,
    fits: Callable[[str], bool] = lambda prompt: True,
) -> tuple[list[OwnTarget], int]:
    """Targets for `k` of `prompts`, and how many prompts were asked for one: in an order drawn by the target's seed,
    one after the other, until `k` have one. So the k are drawn from all that have one, without regard to anything
    else; there are fewer if fewer have one.

    Args:
        prompts: as the model reads them.
        tokens: of a target, at most.
        draws: continuations of each prompt.
        fits: a prompt that does not is not asked.
    """
    writer = target.base or target.model
    ends = set(end_ids(writer, target.processing_class))
    how = Decoding(
        samples=draws,
        do_sample=True,
        max_new_tokens=tokens,
        chat=target.decoding.chat,
        seed=target.seed,
        dtype=target.decoding.dtype,
    )
    order = [number for number, prompt in enumerate(prompts) if fits(prompt)]
    random.Random(target.seed).shuffle(order)
    found: list[OwnTarget] = []
    asked = 0
    for start in range(0, len(order), AT_ONCE):
        some = order[start : start + AT_ONCE]
        written = generate_ids(
            writer,
            target.processing_class,
            [prompts[number] for number in some],
            how,
            max_tokens_at_once=target.max_tokens_at_once or 8192,
        )
        scores = score(target.scorers[0], [one.text for row in written for one in row]).reshape(-1, draws)
        for number, row, values in zip(some, written, scores.tolist(), strict=True):
            asked += 1
            best = max(range(draws), key=values.__getitem__)
            ids = [token for token in row[best].token_ids if token not in ends]
            if values[best] > THRESHOLD and ids:
                found.append(OwnTarget(number, ids, row[best].text, values[best]))
            if len(found) == k:
                return found, asked
    return found, asked
