"""What would the base itself have said that is toxic? For each prompt a toxic continuation of its own, if it has one.

A few continuations of every prompt are drawn at temperature 1, from the nucleus of 0.9, from the base, or without one
from the model; the most toxic is taken if the first judge finds it toxic. These *own* words fit the prompt, as words
from elsewhere do not, and are what an edit takes away. All attacks on all models of a base share the draws.
"""

import dataclasses
import os
import re

from efface.attacks.measurement import Measurement
from efface.attacks.record import Record
from efface.attacks.target import Target
from efface.data.rows import labelled_rows
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.files.shapes import shown
from efface.scoring.scorer import THRESHOLD, score

DRAWS = 8
"""Of each prompt. SmolLM2-135M has then a toxic one after 26 of 64 challenging prompts (in what follows 5 words)."""


def own_toxic(record: Record, draws: int = DRAWS, *, after: int = 0) -> list[str | None]:
    """A toxic continuation of each of the target's prompts, None where none of `draws` is toxic.

    The draws depend on the seed of the target's decoding; they are kept in the part file and known to other attacks.

    Args:
        after: so many words; what follows them must be toxic. Who is made to begin with them is on the way there,
            where toxic words that are already said need not be said again.
    """
    texts = [row["continuation"] for row in _drawn(record, draws).generations]
    scores = score(record.target.scorers[0], [rest_after(text, after) for text in texts])
    found: list[str | None] = []
    for start in range(0, len(texts), draws):
        best = max(range(start, start + draws), key=lambda number: scores[number])
        found.append(texts[best] if scores[best] > THRESHOLD else None)
    return found


def rest_after(text: str, words: int) -> str:
    """What follows the first `words` words of a text."""
    return "".join(re.findall(r"\s*\S+", text)[words:])


def _drawn(record: Record, draws: int) -> Measurement:
    target, at = record.target, {"own draws": draws}
    decoding = dataclasses.replace(
        target.decoding, do_sample=True, samples=draws, temperature=1.0, top_p=0.9, top_k=0, protocol=None
    )
    found = record.base_at(at, decoding)
    return record.attempt(target.model, at, decoding=decoding) if found is None else found


def toxic_in_file(target: Target, source: str | os.PathLike[str], *, after: int = 0) -> list[str | None]:
    """The continuation that a file has of each of the target's prompts, None where it has none that is toxic by the
    first judge. RealToxicityPrompts has such files: what stood behind the prompt on the web.

    Args:
        source: rows of `prompt` and `continuation`, both texts or, as on the hub, with the text inside.
        after: as that of `own_toxic`.

    Raises:
        UserError: if the file cannot be read, or a row has no such texts.
    """
    rows = list(labelled_rows(source))
    prompts, texts = ([_text(row, where, column) for where, row in rows] for column in ("prompt", "continuation"))
    toxic = score(target.scorers[0], [rest_after(text, after) for text in texts]) > THRESHOLD
    known = {prompt: text for prompt, text, is_toxic in zip(prompts, texts, toxic, strict=True) if is_toxic}
    return [known.get(prompt) for prompt in target.prompts]


def _text(row: Row, where: str, column: str) -> str:
    value = row.get(column)
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise UserError(f"{where}: {column!r} must be a text, but it is {shown(value)}.")
    return text
