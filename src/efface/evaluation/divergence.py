"""How far is a model from its reference on ordinary text? Mean KL in nats a token, the measure of a utility budget.

    (1 / N) sum over predicted tokens t of  KL( reference(. | x_<t) || model(. | x_<t) )      over the whole vocabulary

The tokens are those that perplexity counts: the same stream, windows, and BOS (`perplexity.py`). Where perplexity asks
for the one token that came, this asks for all that could have come, so that it is never below zero, is zero only for
the reference itself, and is known from fewer tokens.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from efface.errors import NotFinite, UserError
from efface.evaluation.perplexity import read_windows
from efface.generation.likelihood import predicting_states
from efface.model.chunked import weighted_kl
from efface.model.copies import eval_mode, frozen
from efface.model.forward import Head
from efface.model.head_check import check_head_once
from efface.model.vocabulary import pad_id
from efface.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
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

    Raises:
        UserError: if there is nothing to count, the settings cannot work, or the vocabularies differ.
        RunError: if the output of one of them is not finite.
    """
    sizes = [one.config.get_text_config(decoder=True).vocab_size for one in (model, reference)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"model has a vocabulary of {sizes[0]} and reference one of {sizes[1]}: there is no KL between them. Pass "
            "as reference the model that this one was made from."
        )
    for one in (model, reference):
        window = read_windows(one, processing_class, texts, max_tokens=max_tokens, window=window).window
        check_head_once(one)
    text = read_windows(model, processing_class, texts, max_tokens=max_tokens, window=window)
    pad, total = pad_id(processing_class, model), 0.0
    windows = list(zip(text.sequences, text.counted, strict=True))
    with eval_mode(model), eval_mode(reference), frozen(model), frozen(reference):
        heads = Head.of(model), Head.of(reference)
        for sequence, counted in track(windows, "KL to the reference", show=progress):
            found, expected = (predicting_states(one, [sequence], [counted], pad) for one in (model, reference))
            expected = expected.to(found.device, found.dtype)  # (N, d)
            _, kl = weighted_kl(found, heads[0], expected, heads[1], found.new_ones(len(found)))
            if not torch.isfinite(kl).all():
                raise NotFinite("the output of the model or its reference is not finite: there is no KL between them.")
            total += kl.double().sum().item()
    return max(total / sum(text.counted), 0.0)  # rounding may leave identical models a hair below zero
