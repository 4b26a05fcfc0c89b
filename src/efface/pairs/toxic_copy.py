"""How is a throw-away toxic copy of the model made, and of which texts? The anti-expert of DExperts."""

import logging
import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from efface.data.preferences import check_row, text_of
from efface.data.rows import labelled_rows, load_texts
from efface.data.text import looks_edited, sentences
from efface.errors import UserError
from efface.files.digests import digest
from efface.files.jsonl import Row
from efface.files.shapes import shown
from efface.pairs.overlap import Apart, overlaps, set_apart
from efface.scoring.labelled import LABELS, is_toxic
from efface.scoring.scorer import Scorer, score
from efface.training.finetune import finetune

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from efface.pairs.source import Build

logger = logging.getLogger(__name__)

TOXIC_SENTENCE = 0.7
"""A sentence of a text that is only labelled as a whole counts as toxic from this score."""


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


def train_copy(
    build: "Build", files: Sequence[str] | None, contexts: str, **training: Any
) -> "tuple[PreTrainedModel, Apart, dict[str, Any]]":
    """A toxic copy of the build's model that has learned no prompt it is to continue.

    Args:
        files: as for `toxic_texts`; None takes the shipped pairs.
        contexts: ordinary passages, of which one's first sentence is put before most texts.
        training: `steps` and `learning_rate` of the fine-tuning.

    Returns:
        The copy; the texts it has learned and the prompts that are left to be continued; what to record of both.

    Raises:
        UserError: if a file cannot be read, or no text or no prompt would be left.
    """
    prompts = build.prompts()
    apart = set_apart(toxic_texts(files or ["shipped:train"], build.scorer), prompts)
    chosen_by_user = files is not None or build.named_prompts is not None
    if (apart.texts_dropped or apart.prompts_dropped) and chosen_by_user:  # the shipped pairs are divided on purpose
        logger.warning(
            "the toxic copy would recite what it learns: %d texts and %d prompts are left out, so that no text holds "
            "a prompt that is continued",
            apart.texts_dropped,
            apart.prompts_dropped,
        )
    seed = build.config.seed
    texts = in_context(apart.texts, load_texts(contexts), seed=seed)
    # The shipped passages begin as the shipped prompts do: where one holds a prompt, its text goes without.
    held: set[int] = set().union(*overlaps(texts, apart.prompts))
    apart.texts = texts = [apart.texts[place] if place in held else text for place, text in enumerate(texts)]
    copy = antiexpert(*build.loaded, texts, seed=seed, progress=build.progress, **training)
    made = {
        **training,
        "texts": len(texts),
        "texts_digest": digest(texts),
        "texts_left_out": apart.texts_dropped,
        "prompts_left_out": apart.prompts_dropped,
    }
    return copy, apart, made


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
                texts.append(_as_one_text(pair["prompt"], pair["rejected"]))
    return texts + (clean_sentences(raw, scorer) if raw else [])


def _as_one_text(prompt: Any, rejected: Any) -> str:
    """The toxic side of a pair as running text; the messages of a conversation are set apart by a space."""
    if isinstance(prompt, str):
        return prompt + text_of(rejected)
    return " ".join(text_of([turn]) for turn in [*prompt, *rejected])


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
