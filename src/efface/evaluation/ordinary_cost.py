"""What does an edit cost on ordinary text? KL to the base and perplexity, both from one reading of the text.

Each is asked of as many of the first tokens of the text as its limit says, in the same windows: the states of a window
serve both. The figures are those of `kl_to_reference` and `perplexity`.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface.checks import one_or_more
from efface.errors import NotFinite, RunError
from efface.evaluation.budget import Cost
from efface.evaluation.divergence import check_same_vocabulary, kl_sum
from efface.evaluation.perplexity import Perplexity, read_windows
from efface.generation.likelihood import predicting_states, states_nll
from efface.model.copies import eval_mode, frozen
from efface.model.devices import doubled
from efface.model.forward import Head
from efface.model.head_check import check_head_once
from efface.model.vocabulary import pad_id
from efface.terminal.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class OrdinaryCost:
    """What models that were made from one base cost on one text.

    Args:
        base: must stay as it is; its states are computed once and kept, (max_kl_tokens, d).
        processing_class: the tokenizer of all.
        max_tokens: of the start of the text, for perplexity; None takes all of it.
        max_kl_tokens: the same for KL.

    Raises:
        UserError: if there is nothing to count or the settings cannot work.
        RunError: if the output of the base is not finite.
    """

    def __init__(
        self,
        base: "PreTrainedModel",
        processing_class: "PreTrainedTokenizerBase",
        texts: Sequence[str],
        *,
        max_tokens: int | None = None,
        max_kl_tokens: int | None = 4096,
        progress: bool = False,
    ):
        one_or_more("max_tokens", max_tokens)
        one_or_more("max_kl_tokens", max_kl_tokens)
        self.base, self.progress = base, progress
        most = None if max_tokens is None or max_kl_tokens is None else max(max_tokens, max_kl_tokens)
        self.text = read_windows(base, processing_class, texts, max_tokens=most)
        self.predicted = _first(self.text.counted, max_tokens)
        """Of the counted tokens of each window, how many perplexity is asked of: its first."""
        self.compared = _first(self.text.counted, max_kl_tokens)
        """The same for KL."""
        self.pad = pad_id(processing_class, base)
        self.expected: list[Tensor] = []
        """(compared, d) of each window, of the base."""
        self.base_perplexity = self._read(base, None)[1]

    def of(self, model: "PreTrainedModel") -> Cost:
        """KL(base || model) in nats a token, and perplexity; both None for a model whose output is not finite.

        Raises:
            UserError: if the vocabularies differ.
        """
        check_same_vocabulary(model, self.base)
        try:
            kl, perplexity = self._read(model, Head.of(self.base))
        except RunError:
            return Cost(None, None)
        return Cost(max(kl, 0.0), perplexity)  # rounding may leave the base a hair below zero

    @torch.no_grad()
    def _read(self, model: "PreTrainedModel", base_head: Head | None) -> tuple[float, float]:
        """KL and perplexity; without a head to compare with, the states are kept to be compared with."""
        check_head_once(model)
        nll = kl = 0.0
        with eval_mode(model), frozen(model):
            head, windows = Head.of(model), list(zip(self.text.sequences, self.text.counted, strict=True))
            for i, (sequence, counted) in enumerate(track(windows, "ordinary text", show=self.progress)):
                states = predicting_states(model, [sequence], [counted], self.pad)  # (N, d)
                targets = torch.tensor(sequence[-counted:], device=states.device)[: self.predicted[i]]
                nll += doubled(states_nll(head, states[: len(targets)], targets)).sum().item() if len(targets) else 0.0
                first = states[: self.compared[i]]
                if base_head is None:
                    self.expected.append(first.clone())
                elif len(first):
                    kl += kl_sum(first, head, self.expected[i], base_head)
        if not math.isfinite(nll):
            raise NotFinite("the output of the model is not finite: there is no perplexity of it.")
        perplexity = Perplexity.of(nll, sum(self.predicted), window=self.text.window, stride=self.text.stride)
        return kl / sum(self.compared), perplexity.value


def _first(counted: Sequence[int], most: int | None) -> list[int]:
    """How many of each are among the first `most` of all."""
    found, left = [], sum(counted) if most is None else most
    for count in counted:
        found.append(min(count, left))
        left -= found[-1]
    return found
