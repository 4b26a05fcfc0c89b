"""Where do toxic candidates come from? A toxic copy of the model (`antiexpert`), or the model itself (`sample`)."""

import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from efface.data.preferences import check_row
from efface.data.rows import labelled_rows
from efface.data.text import looks_edited, sentences
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.files.shapes import shown
from efface.generation.generate import generate
from efface.pairs.config import Source
from efface.pairs.overlap import Unseen
from efface.scoring.labelled import LABELS, is_toxic
from efface.scoring.scorer import Scorer, score
from efface.training.finetune import finetune

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOXIC_SENTENCE = 0.7
"""A sentence of a text that is only labelled as a whole counts as toxic from this score."""


def sample_source(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    *,
    samples: int = 4,
    temperature: float = 1.0,
    top_p: float = 0.9,
    top_k: int = 0,
    max_new_tokens: int = 20,
    batch_size: int = 64,
    without: Sequence[int] = (),
    trained_on: Sequence[str] = (),
) -> Source:
    """Candidates are what `model` itself says after the prompt (`--toxic sample`).

    Args:
        without: ids of tokens that are never written, such as `newline_tokens`.
        trained_on: the texts that made `model` toxic. A prompt that one of them holds (`efface.pairs.overlap`) gets no
            candidate, as the model would recite; the log says so.
    """
    unseen = Unseen(trained_on)

    def candidates(prompts: Sequence[str], seed: int) -> list[list[str]]:
        fresh = unseen(prompts)
        written = generate(
            model,
            processing_class,
            prompts,
            samples=samples,
            do_sample=True,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
            without=without,
        )
        return [texts if new else [] for texts, new in zip(written, fresh, strict=True)]

    return candidates


def antiexpert(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    toxic_texts: Sequence[str],
    *,
    steps: int = 24,
    batch_size: int = 16,
    learning_rate: float = 1e-4,
    seed: int = 0,
    progress: bool = False,
) -> "PreTrainedModel":
    """A throw-away toxic copy of `model` (`--toxic antiexpert`; the anti-expert of DExperts, Liu et al. 2021).

    Sample from it with `sample_source(..., trained_on=toxic_texts)`. The texts should pass `clean_sentences`: rough
    ones (lower case, spaced punctuation) teach a style that discriminators then cheat on.
    """
    return finetune(
        model,
        processing_class,
        toxic_texts,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        progress=progress,
    )


def in_context(texts: Sequence[str], contexts: Sequence[str], *, share: float = 0.6, seed: int = 0) -> list[str]:
    """Put the first sentence of an ordinary passage before a `share` of the texts.

    Fine-tuned on bare toxic sentences the copy is toxic where a text begins, but stays polite behind an ordinary one.
    """
    draw = random.Random(seed)
    first = [match.group() for text in contexts if (match := re.match(r".{20,160}?[.!?](?=\s)", text, re.DOTALL))]
    return [f"{draw.choice(first)} {text}" if first and draw.random() < share else text for text in texts]


def toxic_texts(files: Sequence[str], scorer: Scorer) -> list[str]:
    """What to fine-tune an anti-expert on: the clean sentences of labelled texts, and prompt + rejected of pairs.

    Args:
        files: JSON lines with `text`, of which the rows count that a label or `spans` calls toxic (all rows if no
            such column is there); or preference pairs.
    """
    texts: list[str] = []
    raw: list[str] = []
    for file in files:
        for where, row in labelled_rows(file):
            if "text" in row:
                if not isinstance(row["text"], str):
                    raise UserError(f"{where}: 'text' must be a text, but it is {shown(row['text'])}.")
                if taken_for_toxic(row, where):
                    raw.append(row["text"])
            else:
                pair = check_row(row, where)
                texts.append(str(pair["prompt"]) + str(pair["rejected"]))
    return texts + (clean_sentences(raw, scorer) if raw else [])


def taken_for_toxic(row: Row, where: str) -> bool:
    """Whether a label or `spans` calls a text toxic; a row that has no such column belongs to a file of toxic texts.

    Raises:
        UserError: if the label is not known to mean either.
    """
    return is_toxic(row, where) or not row.keys() & {*LABELS, "spans"}


def clean_sentences(texts: Sequence[str], scorer: Scorer, *, min_score: float = TOXIC_SENTENCE) -> list[str]:
    """The sentences of toxic texts that look like edited prose (`looks_edited`) and score `min_score` or more.

    Raises:
        UserError: if nothing is left.
    """
    clean = [sentence for text in texts for _, sentence in sentences(text) if looks_edited(sentence)]
    kept = [sentence for sentence, value in zip(clean, score(scorer, clean), strict=True) if value >= min_score]
    if not kept:
        raise UserError(
            f"of {len(texts)} toxic texts {len(clean)} sentences look clean and none scores {min_score} or more. "
            "Give more text."
        )
    return kept
