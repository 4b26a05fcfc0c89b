"""Which token ids may a model be given? Those below its embedding's rows; a tokenizer may know more.

A padding token is often added to a published tokenizer without resizing the model: its id has no row. That is
tolerated, since padding can be any other id; a token that stands in ordinary text and has no row is not.
"""

from typing import Any

from torch import nn

from efface.data.conversation import as_message
from efface.data.tokens import token_ids
from efface.errors import UserError


def embedding_rows(model: nn.Module) -> int:
    """How many token ids the model takes, 0 and up."""
    find = getattr(model, "get_input_embeddings", None)
    weight = getattr(find() if find is not None else None, "weight", None)
    if weight is not None and weight.ndim == 2:
        return int(weight.shape[0])
    return int(model.config.get_text_config(decoder=True).vocab_size)  # type: ignore[union-attr,operator]


def pad_id(tokenizer: Any, model: nn.Module) -> int:
    """An id to fill up rows with, one that the model has. Which does not matter: masks tell padding from tokens."""
    rows = embedding_rows(model)
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None and 0 <= token < rows:
            return int(token)
    return 0


def check_vocabulary(model: nn.Module, tokenizer: Any, what: str = "the model") -> None:
    """Refuse a tokenizer that gives ids the model has no row for: in ordinary text, before it, or in its template.

    Raises:
        UserError: naming both sizes and such a token.
    """
    rows = embedding_rows(model)
    vocabulary = tokenizer.get_vocab()
    outside = {number: token for token, number in vocabulary.items() if number >= rows}
    if not outside:
        return
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    used = (set(outside) - special) | (set(outside) & _put_in(tokenizer))
    if used:
        raise UserError(
            f"{what} has {rows} rows of embeddings, but its tokenizer uses ids up to {max(used)} "
            f"({outside[min(used)]!r} is {min(used)}). Pass the tokenizer that belongs to it, or resize the model "
            "(model.resize_token_embeddings) and train the new rows."
        )


def _put_in(tokenizer: Any) -> set[int]:
    """The ids that the tokenizer adds of its own: around a text, and around a message in its chat template."""
    ids = set(tokenizer("a")["input_ids"])
    if tokenizer.chat_template:
        try:
            ids |= set(token_ids(tokenizer, as_message(tokenizer, "a")))
        except UserError:  # a template that does not take this is reported where it is used
            pass
    return ids
