"""How toxic is a text according to a Hugging Face sequence classifier, such as unitary/unbiased-toxic-roberta?"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from efface.errors import UserError

# Labels that mean toxic, the better first; whole names, so that "non-toxic" does not match.
TOXIC_LABELS = ("toxicity", "toxic", "hate", "hateful", "hate speech", "offensive", "abusive", "obscene", "insult")


class HFScorer:
    """The probability of the toxic label, by sigmoid for a multi-label classifier, otherwise by softmax.

    Args:
        model: a Hugging Face id or a local directory (safetensors only: nothing is unpickled).
        label: the name of the label that means toxic; None finds it in TOXIC_LABELS, or LABEL_1 of two.
        batch_size: texts at once; the scores do not depend on it, up to rounding in the last digits.

    Raises:
        UserError: if there is no such classifier or no such label.
    """

    def __init__(
        self, model: str, *, label: str | None = None, batch_size: int = 32, device: str | torch.device | None = None
    ) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.name = f"hf:{model}"
        self.batch_size = batch_size
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            # In half precision, rounding would depend on the batch.
            classifier = AutoModelForSequenceClassification.from_pretrained(
                model, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"scorer {self.name!r} cannot be loaded: {reason} Pass a sequence classifier with safetensors weights."
            ) from error
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = classifier.to(device).eval()
        config = classifier.config
        self._index = find_label(config.id2label, label, self.name)
        self._sigmoid = is_multi_label(config.problem_type, config.id2label)
        # RoBERTa starts counting positions after its padding id, so two of its positions are never free.
        offset = 2 if "roberta" in config.model_type else 0
        positions = config.max_position_embeddings - offset if hasattr(config, "max_position_embeddings") else 512
        self._max_length = min(self._tokenizer.model_max_length, positions)
        # Nothing is padded where there is nothing to pad with (a decoder used as a classifier), or where padding
        # stands on the left and so would move the positions.
        padding = None not in (self._tokenizer.pad_token, config.pad_token_id)
        if not padding or self._tokenizer.padding_side == "left":
            self.batch_size = 1

    @cached_property
    def version(self) -> str:
        """A hash of the weights, the vocabulary and what is read off them, wherever they lie."""
        from efface.fingerprint import fingerprint_of

        vocabulary = sorted(self._tokenizer.get_vocab().items())
        content = [fingerprint_of(self._model), vocabulary, self._index, self._sigmoid, self._max_length]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        # An empty text scores 0, as with the other scorers; some tokenizers would make no token of it at all.
        filled = [index for index, text in enumerate(texts) if text.strip()]
        order = sorted(filled, key=lambda index: -len(texts[index]))
        scores = np.zeros(len(texts))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            scores[batch] = self._score_batch([texts[index] for index in batch])
        return scores

    def _score_batch(self, texts: list[str]) -> np.ndarray:
        inputs = self._tokenizer(
            texts, padding=len(texts) > 1, truncation=True, max_length=self._max_length, return_tensors="pt"
        ).to(self._model.device)
        logits = self._model(**inputs).logits.float()  # (B, labels)
        probabilities = logits.sigmoid() if self._sigmoid else logits.softmax(-1)
        return probabilities[:, self._index].cpu().numpy().astype(float)


def find_label(id2label: dict[int, str], label: str | None, scorer: str) -> int:
    """The index of the toxic label, names compared without case."""
    names = {str(name).lower().replace("_", " "): int(index) for index, name in id2label.items()}
    if label is not None:
        wanted: tuple[str, ...] = (label.lower().replace("_", " "),)
    else:
        # The one label of a one-label classifier is what it detects; of two unnamed ones the second is the positive.
        wanted = TOXIC_LABELS + {1: tuple(names), 2: ("label 1",)}.get(len(names), ())
    for name in wanted:
        if name in names:
            return names[name]
    raise UserError(
        f"scorer {scorer!r} has the labels {', '.join(map(str, id2label.values()))}; "
        + (f"none is {label!r}." if label is not None else "none is known to mean toxic. Say which: label=...")
    )


def is_multi_label(problem_type: Any, id2label: dict[int, str]) -> bool:
    """Whether the labels are independent probabilities. Older checkpoints do not say: then their labels tell."""
    if len(id2label) == 1:
        return True
    if problem_type is not None:
        return problem_type == "multi_label_classification"
    return len(id2label) > 2 and any("toxic" in str(name).lower() for name in id2label.values())
