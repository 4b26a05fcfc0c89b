"""How far is a model from its reference on ordinary text? Mean KL in nats a token, the measure of a utility budget.

    (1 / N) sum over predicted tokens t of  KL( reference(. | x_<t) || model(. | x_<t) )      over the whole vocabulary

The tokens are those that perplexity counts: the same stream, windows, and BOS (`perplexity.py`). Where perplexity asks
for the one token that came, this asks for all that could have come, so that it is never below zero, is zero only for
the reference itself, and is known from fewer tokens.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface.errors import NotFinite, UserError
from efface.evaluation.perplexity import read_windows
from efface.generation.likelihood import predicting_states
from efface.model.chunked import weighted_kl
from efface.model.copies import eval_mode, frozen
from efface.model.devices import doubled
from efface.model.forward import Head
from efface.model.head_check import check_head_once
from efface.model.padding import max_positions
from efface.model.vocabulary import pad_id
from efface.terminal.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def kl_to_reference(
    model: "PreTrainedModel",
    reference: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    max_tokens: int | None = 4096,
    window: int = 1024,
    progress: bool = False,
) -> float:
    """Mean over the predicted tokens of `texts` of KL(reference || model), in nats a token.

    A window at a time goes through both models, and a piece of it through both heads (`model/chunked.py`).

    Args:
        processing_class: the tokenizer of both.
        max_tokens: of the start of the text; None takes all of it.
        window: tokens a prediction may look at; never more than either model has positions.
        progress: show a bar.

    Raises:
        UserError: if there is nothing to count, the settings cannot work, or the vocabularies differ.
        RunError: if the output of one of them is not finite.
    """
    limit = max_positions(model)
    window = window if limit is None else min(window, limit)
    found = Divergence(reference, processing_class, texts, max_tokens=max_tokens, window=window)
    return found.of(model, progress=progress)


class Divergence:
    """`kl_to_reference` of several models: the states of the reference are computed once and kept, (tokens, d).

    The reference must stay as it is. Arguments and errors are those of `kl_to_reference`.
    """

    def __init__(
        self,
        reference: "PreTrainedModel",
        processing_class: "PreTrainedTokenizerBase",
        texts: Sequence[str],
        *,
        max_tokens: int | None = 4096,
        window: int = 1024,
    ):
        self.reference = reference
        self.text = read_windows(reference, processing_class, texts, max_tokens=max_tokens, window=window)
        self.pad = pad_id(processing_class, reference)
        self.expected: list[Tensor] = []

    def of(self, model: "PreTrainedModel", *, progress: bool = False) -> float:
        """KL(reference || model), in nats a token."""
        check_same_vocabulary(model, self.reference)
        self._ask_reference()
        check_head_once(model)
        windows = list(zip(self.text.sequences, self.text.counted, self.expected, strict=True))
        with torch.no_grad(), eval_mode(model), frozen(model), frozen(self.reference):
            heads, total = (Head.of(model), Head.of(self.reference)), 0.0
            for sequence, counted, expected in track(windows, "KL to the reference", show=progress):
                found = predicting_states(model, [sequence], [counted], self.pad)  # (N, d)
                total += kl_sum(found, heads[0], expected, heads[1])
        return max(total / sum(self.text.counted), 0.0)  # rounding may leave the reference a hair below zero

    def _ask_reference(self) -> None:
        if self.expected:
            return
        check_head_once(self.reference)
        with eval_mode(self.reference):
            self.expected = [
                predicting_states(self.reference, [sequence], [counted], self.pad)
                for sequence, counted in zip(self.text.sequences, self.text.counted, strict=True)
            ]


def kl_sum(states: Tensor, head: Head, expected: Tensor, reference_head: Head) -> float:
    """Sum over tokens of KL(reference || model), in nats, from the final hidden states of both, (N, d).

    Raises:
        RunError: if it is not finite.
    """
    _, kl = weighted_kl(
        states, head, expected.to(states.device, states.dtype), reference_head, states.new_ones(len(states))
    )
    if not torch.isfinite(kl).all():
        raise NotFinite("the output of the model or its reference is not finite: there is no KL of them.")
    return doubled(kl).sum().item()


def check_same_vocabulary(model: "PreTrainedModel", reference: "PreTrainedModel") -> None:
    """Refuse two models between whose vocabularies there is no KL."""
    sizes = [one.config.get_text_config(decoder=True).vocab_size for one in (model, reference)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"model has a vocabulary of {sizes[0]} and reference one of {sizes[1]}: there is no KL between them. "
            "Pass as reference the model that this one was made from."
        )
