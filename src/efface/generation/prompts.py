"""Which token ids does a model continue? A prompt as it stands or as a user's message, cut to length, checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efface.data.conversation import as_message, check_template
from efface.data.tokens import bos_prefix, cut_ids, cut_message, encode_prompt
from efface.errors import UserError
from efface.generation.decoding import Decoding
from efface.model.padding import max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Context:
    """What a model continues."""

    ids: list[int]
    """Never empty."""
    text: str | None
    """The text that the continuation stands behind; None if only its beginning is read."""
    template: bool
    """It is that of a chat template."""


def encode_prompts(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    decoding: Decoding = Decoding(),
    *,
    room: int = 0,
) -> list[list[int]]:
    """The token ids of `encode_contexts` alone."""
    return [context.ids for context in encode_contexts(model, processing_class, prompts, decoding, room=room)]


def encode_contexts(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    decoding: Decoding = Decoding(),
    *,
    room: int = 0,
) -> list[Context]:
    """Token ids of each prompt, never empty; and their text.

    Args:
        decoding: how long prompts are cut, and whether they are messages. What the chat template puts around a
            message (up to and including the beginning of the answer, and the BOS if the model wants one) stays whole
            when the message is cut, and is not counted.
        room: so many new tokens must have a position after the prompt.

    Raises:
        UserError: naming the prompt, if it cannot be encoded or leaves no room; for settings that cannot work.
    """
    max_prompt_tokens, truncation, chat = decoding.max_prompt_tokens, decoding.truncation, decoding.chat
    if truncation not in ("last", "first"):
        raise UserError(f"truncation={truncation!r}: it is which end of a long prompt stays, 'last' or 'first'.")
    if max_prompt_tokens is not None and max_prompt_tokens < 1:
        raise UserError(f"max_prompt_tokens={max_prompt_tokens}: it must be at least 1, or None for no limit.")
    if chat:
        check_template(
            processing_class,
            "the prompts are to be messages (chat=True),",
            "Take an instruct model, or give the prompts as they stand.",
        )
    limit = max_positions(model)
    encoded = []
    for number, prompt in enumerate(prompts):
        try:
            if chat:
                message = cut_message(processing_class, prompt, max_prompt_tokens, truncation)
                text = as_message(processing_class, message)
                context = Context(encode_prompt(processing_class, text, template=True), text, True)
            else:
                ids = encode_prompt(processing_class, prompt)
                kept = cut_ids(ids, max_prompt_tokens, processing_class.bos_token_id, keep=truncation, least=1)
                ends_as_it_did = truncation == "last" or len(kept) == len(ids)
                context = Context(kept, prompt if ends_as_it_did else None, False)
        except UserError as error:
            raise UserError(f"prompt {number}: {error}") from error
        if limit is not None and len(context.ids) + room > limit:
            raise UserError(
                f"prompt {number} has {len(context.ids)} tokens, with {room} new ones more than the model's "
                f"{limit} positions. Shorten it or set max_prompt_tokens."
            )
        encoded.append(context)
    return encoded


def as_read(
    processing_class: "PreTrainedTokenizerBase", prompts: Sequence[str], decoding: Decoding = Decoding()
) -> list[str]:
    """The prompts as far as a model reads them: cut as `decoding` says, as text."""
    if decoding.max_prompt_tokens is None:
        return list(prompts)
    # A BOS counts as one of the tokens, but not before a message: see `encode_prompts`.
    room = max(decoding.max_prompt_tokens - (0 if decoding.chat else len(bos_prefix(processing_class))), 1)
    return [cut_message(processing_class, prompt, room, decoding.truncation) for prompt in prompts]
