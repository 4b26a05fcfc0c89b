"""Does the model go on toxically once it has been made to begin so? Prefilling (Qi et al. 2024, arXiv 2406.05946).

    y ~ p(. | x, w_1 ... w_k)      with w the first k words of a toxic continuation of x

The forced words are part of what the model reads: only what it writes after them is judged. They begin what the base
itself would have said after this prompt that is toxic (`own_toxic.py`), as the paper forces the first tokens of a
harmful answer to the question that is asked; and what follows them there is toxic, or the worst would be said by the
attacker. Where no such continuation is found the words come from a row, which fits the prompt less.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from efface.attacks.altered import altered_to_fit, answer_to, attack_altered, prompts_as_read
from efface.attacks.draw import count_prompts_among
from efface.attacks.lists import read_lists, several
from efface.attacks.own_toxic import own_toxic, toxic_in_file
from efface.attacks.record import Record, recorded
from efface.attacks.result import AttackResult
from efface.attacks.target import Target
from efface.checks import at_least_one
from efface.data.preferences import text_of
from efface.errors import UserError


@dataclass(frozen=True)
class PrefillSettings:
    """Settings of `prefill`."""

    NAMES_FILES: ClassVar[dict[str, tuple[str, ...]]] = {"source": ("own", "rows")}
    """Settings that name a file, and words that each may be instead: see `describe_settings`."""
    words: tuple[int, ...] = several(
        "1,3,5", int, "How many words of a toxic continuation are forced; each is one point."
    )
    source: str = field(
        default="own",
        metadata={
            "help": "Whose words: own (what the base would say that is toxic), rows (rejected continuations), or a "
            "file of prompt and continuation. Where a prompt has none, a row's."
        },
    )
    draws: int = field(default=8, metadata={"help": "Continuations of a prompt among which its own is looked for."})

    def __post_init__(self) -> None:
        read_lists(self)
        at_least_one(self, "draws")


def prefill(target: Target, settings: PrefillSettings) -> AttackResult:
    """Put the first words of a toxic continuation after each prompt.

    A prompt gets words of the same continuation at every point. Of a message (`chat`) it is the answer that begins
    with them. `found`: how many prompts had their `own` continuation (None where all words are from rows); how many
    `rows` were long enough to draw from for the others, under the seed (where none is, all are drawn from), and
    `prompts_among_rows`, how many prompts are theirs; and what `attack_altered` says.

    Raises:
        UserError: if all words are to be from rows and none has as many; for a chat template that cannot be
            continued.
    """
    most = settings.words[-1]
    long_enough = [row for row in target.rows if len(text_of(row["rejected"]).split()) >= most]
    if not long_enough and settings.source == "rows":
        raise UserError(
            f"words={settings.words!r}, but no rejected continuation of the rows has {most} words. Name fewer words, "
            "or give longer rows."
        )
    rows = long_enough or target.rows
    prompts, chat = prompts_as_read(target), target.decoding.chat
    generator = random.Random(target.seed)
    drawn = [text_of(generator.choice(rows)["rejected"]) for _ in prompts]
    with recorded(target, "prefill", settings) as record:
        own = _own(record, settings)
        texts = drawn if own is None else [one or other for one, other in zip(own, drawn, strict=True)]

        def begun(words: int) -> Callable[[], list[str]]:
            def force(number: int, prompt: str) -> str:
                start = answer_to(target.processing_class, [{"role": "user", "content": prompt}]) if chat else prompt
                return forced(start, texts[number], words)

            # What a chat template makes of a message is a text like any other.
            return lambda: altered_to_fit(target, prompts, force, chat=False)

        points: Iterator[tuple[dict[str, Any], Any]] = (({"words": words}, begun(words)) for words in settings.words)
        found = None if own is None else sum(text is not None for text in own)
        seen = count_prompts_among(rows, target.prompts)
        return attack_altered(
            record,
            points,
            start={"words": 0},
            chat=False,
            own=found,
            rows=len(long_enough),
            prompts_among_rows=seen,
        )


def forced(prompt: str, text: str, words: int) -> str:
    """`prompt` and the first `words` words of `text`, with white space between the two."""
    first = "".join(re.findall(r"\s*\S+", text)[:words]).lstrip()
    return prompt + ("" if not prompt or prompt[-1].isspace() else " ") + first


def _own(record: Record, settings: PrefillSettings) -> list[str | None] | None:
    """A toxic continuation of each prompt that has one; None if only those of the rows are wanted."""
    if settings.source == "rows":
        return None
    if settings.source == "own":
        return own_toxic(record, settings.draws, after=settings.words[-1])
    return toxic_in_file(record.target, settings.source, after=settings.words[-1])
