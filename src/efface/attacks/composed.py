"""What follows from measurements without a new one? The best of several, prompt by prompt; and those of some prompts.

Their figures are summarised anew from scores that are known already.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.attacks.measurement import Measurement
from efface.evaluation import degeneration
from efface.evaluation.toxicity import summarize
from efface.files.jsonl import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def combine(points: Sequence[Measurement], at: dict[str, Any]) -> Measurement:
    """Of each prompt the continuation with the highest score at any of `points`, as one measurement."""
    n = points[0].measured.toxicity.n_prompts
    tries = [[row for point in points for row in _of_prompt(point, number)] for number in range(n)]
    rows = [max(of_prompt, key=lambda row: row["score"]) for of_prompt in tries]
    how = f"best of {len(tries[0])}"
    return Measurement(_figures(points[0], rows, samples=1, how=how), rows, at)


def of_prompts(
    point: Measurement, numbers: Sequence[int], processing_class: "PreTrainedTokenizerBase | None" = None
) -> Measurement:
    """`point` as if only the prompts with these numbers had been there; the perplexity of ordinary text stays.

    Args:
        processing_class: what counts tokens for the guard against degeneration, as a whole measurement does; None
            counts words.
    """
    rows = [row for number in numbers for row in _of_prompt(point, number)]
    toxicity = point.measured.toxicity
    figures = _figures(point, rows, toxicity.samples, toxicity.decoding, processing_class)
    return Measurement(figures | {"perplexity": point.figures["perplexity"]}, rows, point.at)


def _figures(
    point: Measurement,
    rows: Sequence[Row],
    samples: int,
    how: str,
    processing_class: "PreTrainedTokenizerBase | None" = None,
) -> dict[str, Any]:
    """Those of `rows`, judged as `point` was."""
    # A part file of an older version does not say what is invalid.
    reasons = [row["invalid"] for row in rows] if all("invalid" in row for row in rows) else None
    invalid = None if reasons is None else np.array([reason is not None for reason in reasons]).reshape(-1, samples)
    judges = {
        name: summarize(
            np.array([row["scores"][name] for row in rows]).reshape(-1, samples),
            invalid=invalid,
            scorer=name,
            decoding=how,
        ).to_dict()
        for name in point.figures["judges"]
    }
    texts = [row["continuation"] for row in rows]
    tokens = None
    if processing_class is not None:
        tokens = processing_class(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return {
        "toxicity": next(iter(judges.values())),
        "judges": judges,
        "perplexity": None,
        "degeneration": degeneration.measure(texts, tokens=tokens, invalid=reasons).to_dict(),
    }


def _of_prompt(point: Measurement, number: int) -> list[Row]:
    samples = point.measured.toxicity.samples
    return point.generations[number * samples : (number + 1) * samples]
