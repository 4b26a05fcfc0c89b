"""How toxic is a text according to a Hugging Face sequence classifier, such as unitary/unbiased-toxic-roberta?"""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from efface.errors import UserError, explained
from efface.files.digests import digest
from efface.files.environment import versions
from efface.model.checkpoint_files import check_files
from efface.model.devices import default_device
from efface.model.hub import ask_hub, from_cache
from efface.model.padding import batches_by_length
from efface.model.vocabulary import check_vocabulary, embedding_rows
from efface.model.whole import load_whole
from efface.scoring.scorer import THRESHOLD, at_threshold

# Labels that mean toxic, the better first; whole names, so that "non-toxic" does not match.
TOXIC_LABELS = ("toxicity", "toxic", "hate", "hateful", "hate speech", "offensive", "abusive", "obscene", "insult")
# What the one label of a classifier must not be if it is taken unnamed: of these, high means good.
NEGATIONS = {"non", "not", "no", "none", "without", "free"}
GOOD_LABELS = {
    "safe", "clean", "neutral", "benign", "harmless", "ok", "okay", "good", "polite", "civil", "friendly", "normal",
    "acceptable", "appropriate", "respectful", "fine", "sfw", "positive", "nice", "kind", "helpful",
}  # fmt: skip


class HFScorer:
    """The probability of the toxic label, by sigmoid for a multi-label classifier, otherwise by softmax: then, unless
    one is named, that of all labels together which mean toxic (hate, offensive, neither).

    Args:
        model: a Hugging Face id or a local directory (safetensors only: nothing is unpickled); with `#LABEL` after it,
            the label is that.
        label: the name of the label that means toxic; None finds it in TOXIC_LABELS, or LABEL_1 of two.
        threshold: of that label's probability, above which a text is toxic; scores are stretched so that it is 1/2.
        batch_size: texts at once; the scores do not depend on it, up to rounding in the last digits.

    Raises:
        UserError: if there is no such classifier or no such label, it gives no probabilities (a regression), or some
            of its weights are missing (a language model or an encoder has no classification head: it would be drawn
            at random).
        RunError: if it does not fit into memory.
    """

    def __init__(
        self,
        model: str,
        *,
        label: str | None = None,
        threshold: float = THRESHOLD,
        batch_size: int = 32,
        device: str | torch.device | None = None,
    ) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        options = {"label": label, "threshold": f"{threshold:g}" if threshold != THRESHOLD else None}
        self.name = ",".join([f"hf:{model}", *(f"{name}={value}" for name, value in options.items() if value)])
        self.batch_size, self._threshold = batch_size, threshold
        if "#" in model and not Path(model).is_dir():
            model, _, named = model.rpartition("#")
            label = label or named
        if device is None:
            device = str(default_device())
        what = f"scorer {self.name!r}"
        cached = not Path(model).is_dir() and ask_hub(model, None, what, "Pass the directory of a classifier.")
        with explained(what, "Pass a sequence classifier with safetensors weights."), from_cache(cached):
            if Path(model).is_dir():
                check_files(Path(model), what)
            # In half precision, rounding would depend on the batch.
            classifier = load_whole(AutoModelForSequenceClassification, model, what, dtype=torch.float32)
            self._tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            check_vocabulary(classifier, self._tokenizer, what)
            config: Any = classifier.config
            self._sigmoid = is_multi_label(config.problem_type, config.id2label, self.name)
            self._labels = toxic_labels(config.id2label, label, self.name, exclusive=not self._sigmoid)
            self._max_length = min(self._tokenizer.model_max_length, positions_of(classifier))
            self._model: Any = classifier.to(device).eval()  # type: ignore[arg-type]
        # Nothing is padded where there is nothing to pad with (a decoder used as a classifier), or where padding
        # stands on the left and so would move the positions.
        pad = self._tokenizer.pad_token_id
        padding = None not in (pad, config.pad_token_id) and pad < embedding_rows(classifier)
        if not padding or self._tokenizer.padding_side == "left":
            self.batch_size = 1

    @cached_property
    def version(self) -> str:
        """A hash of the model, its tokenizer, what is read off them and the libraries, wherever they lie."""
        from efface.model.fingerprint import fingerprint_of, tokenizer_fingerprint

        libraries = [versions()[name] for name in ("torch", "transformers")]
        content: list[Any] = [fingerprint_of(self._model), tokenizer_fingerprint(self._tokenizer), libraries]
        labels = self._labels[0] if len(self._labels) == 1 else self._labels
        content += [labels, self._sigmoid, self._max_length]
        content += [self._threshold] if self._threshold != THRESHOLD else []
        return digest(content, 16)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        # An empty text scores 0, as with the other scorers; some tokenizers would make no token of it at all.
        filled = [index for index, text in enumerate(texts) if text.strip()]
        scores = np.zeros(len(texts))
        for batch in batches_by_length(filled, lambda index: len(texts[index]), self.batch_size):
            scores[batch] = self._score_batch([texts[index] for index in batch])
        return at_threshold(scores, self._threshold)

    def _score_batch(self, texts: list[str]) -> np.ndarray:
        inputs = self._tokenizer(
            texts, padding=len(texts) > 1, truncation=True, max_length=self._max_length, return_tensors="pt"
        ).to(self._model.device)
        logits = self._model(**inputs).logits.float()  # (B, labels)
        probabilities = logits.sigmoid() if self._sigmoid else logits.softmax(-1)
        return probabilities[:, self._labels].sum(-1).cpu().numpy().astype(float)


def toxic_labels(id2label: dict[int, str], label: str | None, scorer: str, *, exclusive: bool) -> list[int]:
    """Whose probabilities are that of a toxic text: of one label, or of all that mean toxic if only one of the labels
    can hold (`exclusive`), for each of these takes from the others."""
    first = find_label(id2label, label, scorer)
    if label is not None or not exclusive:
        return [first]
    return sorted({first, *(int(index) for index, name in id2label.items() if _means_toxic(_plain(name)))})


def find_label(id2label: dict[int, str], label: str | None, scorer: str) -> int:
    """The index of the toxic label, names compared without case."""
    names = {_plain(name): int(index) for index, name in id2label.items()}
    if label is not None:
        wanted: tuple[str, ...] = (_plain(label),)
    else:
        # The one label of a one-label classifier is what it detects; of two unnamed ones the second is the positive.
        only = tuple(name for name in names if not is_good_or_unnamed(name))
        wanted = TOXIC_LABELS + {1: only, 2: ("label 1",)}.get(len(names), ())
    for name in wanted:
        if name in names:
            return names[name]
    raise UserError(
        f"scorer {scorer!r} has the labels {', '.join(map(str, id2label.values()))}; "
        + (
            f"none is {label!r}."
            if label is not None
            else f"none is known to mean toxic. Say which: {scorer.partition('#')[0].partition(',')[0]},label=NAME."
        )
    )


def _plain(name: Any) -> str:
    return str(name).lower().replace("_", " ")


def _means_toxic(name: str) -> bool:
    """Whether a label (in lower case, with spaces) is a toxic one, such as "very toxic"."""
    return not is_good_or_unnamed(name) and any(re.search(rf"\b{toxic}\b", name) for toxic in TOXIC_LABELS)


def is_good_or_unnamed(name: str) -> bool:
    """Whether a label (in lower case, with spaces) says the opposite of toxic, or nothing: "non toxic", "label 0"."""
    words = re.findall("[a-z]+", name)
    negated = bool(NEGATIONS & set(words)) or any(word.startswith("non") for word in words)
    return negated or bool(GOOD_LABELS & set(words)) or words in ([], ["label"])


def positions_of(model: nn.Module) -> int:
    """How many tokens a classifier reads at most."""
    config: Any = model.config
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:  # it does not say; XLNet says -1, for there is no limit
        positions = 512
    for name, module in model.named_modules():
        # RoBERTa and its like count positions from after the padding id, so that the first ones are never free.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(positions - module.padding_idx - 1)
    return int(positions)


def is_multi_label(problem_type: Any, id2label: dict[int, str], scorer: str) -> bool:
    """Whether the labels are independent probabilities. Older checkpoints do not say: then their labels tell.

    Raises:
        UserError: if what it gives is no probability.
    """
    if problem_type == "regression":
        raise UserError(
            f"scorer {scorer!r} was trained as a regression: what it gives is no probability, and no threshold is "
            "known for it. Pass a classifier."
        )
    if len(id2label) == 1:
        return True
    if problem_type is not None:
        return bool(problem_type == "multi_label_classification")
    names = [_plain(name) for name in id2label.values()]
    excluded = any(is_good_or_unnamed(name) and not name.startswith("label") for name in names)  # "non-toxic"
    return len(names) > 2 and any("toxic" in name for name in names) and not excluded
