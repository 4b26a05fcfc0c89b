"""Does the model still write what the text went on with? Unigram F1 of greedy continuations, as in Lee et al. 2024.

A prompt is the first 32 tokens of a paragraph, the truth its next 20 tokens, the prediction 20 greedy tokens.
Precision is the share of predicted tokens that the truth has too, recall the share of the truth's tokens that were
predicted, both counted as multisets; F1 is their harmonic mean, 0 where nothing is shared; all three are means over
prompts.

Only generated tokens count. The code of the paper (github.com/ajyl/dpo_toxic, metric_funcs.py) compares whole
sequences, prompt and all, so what both share from the start is most of the overlap: its figures are far higher.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.data.tokens import tokens_of
from efface.errors import UserError
from efface.files.shapes import fill
from efface.generation.generate import generate_ids
from efface.resampling import interval

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FIGURES = ("precision", "recall", "f1")


@dataclass
class F1:
    """The `f1` block of the result files."""

    n_prompts: int
    prompt_tokens: int
    max_new_tokens: int
    precision: float
    recall: float
    f1: float
    ci95: dict[str, list[float]]
    """Of each of the three, [lower, upper], by a bootstrap over prompts."""

    def to_dict(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, block: dict[str, Any]) -> "F1":
        """The block as read from a result file."""
        return fill(cls, block)


def continuation_f1(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    documents: Sequence[str],
    *,
    prompts: int = 500,
    prompt_tokens: int = 32,
    max_new_tokens: int = 20,
    batch_size: int = 64,
    progress: bool = False,
) -> F1:
    """F1 of what `model` writes after the beginnings of paragraphs of `documents`.

    Args:
        documents: texts whose lines are paragraphs. Those with too few tokens (headings, say) are passed over.
        prompts: at most so many, spread evenly over all paragraphs; the same for every model with this tokenizer.
        prompt_tokens: length of a prompt, with the BOS where the tokenizer puts one.

    Raises:
        UserError: if no paragraph is long enough, or the settings cannot work.
    """
    if prompts < 1 or prompt_tokens < 1:
        raise UserError(f"prompts={prompts}, prompt_tokens={prompt_tokens}: both must be at least 1.")
    needed = prompt_tokens + max_new_tokens
    paragraphs = [line.strip() for document in documents for line in document.splitlines()]
    passages = [(text, ids) for text in paragraphs if len(ids := tokens_of(processing_class, text)) >= needed]
    if not passages:
        raise UserError(
            f"none of the {len(paragraphs)} paragraphs has {needed} tokens ({prompt_tokens} for the prompt, "
            f"{max_new_tokens} that follow): pass longer texts or smaller settings."
        )
    n = min(prompts, len(passages))
    chosen = [passages[number * len(passages) // n] for number in range(n)]
    written = generate_ids(
        model,
        processing_class,
        [text for text, _ in chosen],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        max_prompt_tokens=prompt_tokens,
        truncation="first",
        progress=progress,
    )
    special = set(processing_class.all_special_ids)
    table = np.array(
        [
            overlap([token for token in row[0].token_ids if token not in special], ids[prompt_tokens:needed])
            for row, (_, ids) in zip(written, chosen, strict=True)
        ]
    )  # (n, 3)
    lower, upper = interval(table)
    return F1(
        n_prompts=n,
        prompt_tokens=prompt_tokens,
        max_new_tokens=max_new_tokens,
        **dict(zip(FIGURES, table.mean(0).tolist(), strict=True)),
        ci95={name: [float(lower[i]), float(upper[i])] for i, name in enumerate(FIGURES)},
    )


def overlap(predicted: Sequence[int], truth: Sequence[int]) -> tuple[float, float, float]:
    """Precision, recall and F1 of one prediction's tokens, as multisets."""
    shared = sum((Counter(predicted) & Counter(truth)).values())
    if not shared:
        return 0.0, 0.0, 0.0
    precision, recall = shared / len(predicted), shared / len(truth)
    return precision, recall, 2 * precision * recall / (precision + recall)
