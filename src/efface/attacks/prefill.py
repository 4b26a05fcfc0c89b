"""Does the model go on toxically once it has been made to begin so? Prefilling (Qi et al. 2024, arXiv 2406.05946).

    y ~ p(. | x, w_1 ... w_k)      with w the first k words of a toxic continuation

The forced words are part of what the model reads: only what it writes after them is judged. They come from the
rejected continuations of the target's rows, not from the prompt's own (there is none), so that a base model is thrown
off too; `base_share` says what the same words do to it.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from efface.attacks.altered import altered_to_fit, attack_altered, prompts_as_read
from efface.attacks.lists import read_lists, several
from efface.attacks.result import AttackResult
from efface.attacks.target import Target
from efface.data.conversation import as_message
from efface.data.preferences import text_of
from efface.data.tokens import tokens_of
from efface.errors import UserError
from efface.generation.decoding import Decoding
from efface.generation.prompts import encode_prompts


@dataclass(frozen=True)
class PrefillSettings:
    """Settings of `prefill`."""

    words: tuple[int, ...] = several(
        "1,3,5", int, "How many words of a toxic continuation are forced; each is one point."
    )

    def __post_init__(self) -> None:
        read_lists(self)


def prefill(target: Target, settings: PrefillSettings) -> AttackResult:
    """Put the first words of a toxic continuation, drawn for each prompt under the seed, after the prompt.

    A prompt gets words of the same continuation at every point. Of a message (`chat`) it is the answer that begins
    with them. `found`: how many `rows` were long enough to draw from, and what `attack_altered` says.

    Raises:
        UserError: if no continuation has as many words as are asked for; for a chat template that cannot be continued.
    """
    most = settings.words[-1]
    texts = [text for row in target.rows if len((text := text_of(row["rejected"])).split()) >= most]
    if not texts:
        raise UserError(
            f"words={settings.words!r}, but no rejected continuation of the rows has {most} words. Name fewer words, "
            "or give longer rows."
        )
    starts = _answers(target) if target.decoding.chat else prompts_as_read(target)
    generator = random.Random(target.seed)
    drawn = [generator.choice(texts) for _ in starts]

    def points() -> Iterator[tuple[dict[str, Any], list[str]]]:
        for amount in settings.words:
            if target.decoding.chat:  # what the template has written stays whole
                pairs = zip(starts, drawn, strict=True)
                yield {"words": amount}, [forced(start, text, amount) for start, text in pairs]
            else:
                begun = partial(_begun, texts=drawn, words=amount)
                yield {"words": amount}, altered_to_fit(target, starts, begun)

    # What a chat template makes of a message is a text like any other, so nothing is left to the measurement's own.
    return attack_altered(target, "prefill", settings, points(), start={"words": 0}, chat=False, rows=len(texts))


def forced(prompt: str, text: str, words: int) -> str:
    """`prompt` and the first `words` words of `text`, with white space between the two."""
    first = "".join(re.findall(r"\s*\S+", text)[:words]).lstrip()
    return prompt + ("" if not prompt or prompt[-1].isspace() else " ") + first


def _begun(number: int, prompt: str, *, texts: list[str], words: int) -> str:
    return forced(prompt, texts[number], words)


def _answers(target: Target) -> list[str]:
    """What the chat template makes of each message, up to where the answer begins."""
    tokenizer = target.processing_class
    messages = prompts_as_read(target)
    expected = encode_prompts(target.model, tokenizer, messages, Decoding(chat=True))
    found = []
    for message, ids in zip(messages, expected, strict=True):
        text = as_message(tokenizer, message)
        if tokens_of(tokenizer, text) != ids and tokenizer.bos_token:  # which the tokenizer will put there again
            text = text.removeprefix(tokenizer.bos_token)
        if tokens_of(tokenizer, text) != ids:
            raise UserError(
                "the chat template writes no BOS but the tokenizer adds one, so that an answer's beginning cannot be "
                "given as text. Attack it with plain prompts (without chat)."
            )
        found.append(text)
    return found
