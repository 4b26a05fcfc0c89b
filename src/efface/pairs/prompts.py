"""How are ordinary documents cut into prompts? The beginnings of their sentences, as in PairToxicity (Wikipedia)."""

import random
from collections.abc import Sequence

from efface.data.text import body_sentences
from efface.errors import UserError

REST = 4
"""A sentence goes on for at least so many words after the cut: there is something to say."""


def prompts_from_text(
    documents: Sequence[str], *, min_words: int = 8, max_words: int = 20, seed: int = 0
) -> list[str]:
    """The first `min_words` to `max_words` words of every sentence that is longer, in a seeded order.

    How many words of a sentence are taken is drawn. Headings, list items and lines that do not end like a sentence are
    left out; tokenised text (WikiText's `@-@`, spaced punctuation) is joined first. Equal prompts occur once.

    Args:
        documents: running text, an article each.
        min_words, max_words: of a prompt; its sentence goes on for `REST` words at least.
        seed: of the lengths and of the order.

    Raises:
        UserError: if the lengths cannot work, or no sentence is long enough.
    """
    if not 1 <= min_words <= max_words:
        raise UserError(
            f"min_words={min_words}, max_words={max_words}: the first must be at least 1, the second not below it."
        )
    draw = random.Random(seed)
    prompts = []
    for text in documents:
        for sentence in body_sentences(text):
            words = sentence.split()
            length = draw.randint(min_words, max_words)
            if len(words) >= length + REST:
                prompts.append(" ".join(words[:length]))
    if not prompts:
        raise UserError(
            f"no sentence of the {len(documents)} documents has {min_words + REST} words. Give running text, not "
            "headings or lists."
        )
    prompts = list(dict.fromkeys(prompts))
    draw.shuffle(prompts)
    return prompts
