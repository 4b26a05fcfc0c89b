"""Which token ids does a model continue? A prompt as it stands or as a user's message, cut to length, checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efface.data.conversation import in_template
from efface.data.tokens import encode_prompt, token_ids
from efface.errors import UserError
from efface.generation.decoding import Decoding, Truncation
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
    if chat and not processing_class.chat_template:
        raise UserError(
            "the prompts are to be messages (chat=True), but the tokenizer has no chat template. Take an instruct "
            "model, or give the prompts as they stand."
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
                kept = _cut(ids, max_prompt_tokens, truncation, processing_class.bos_token_id)
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


def as_message(processing_class: "PreTrainedTokenizerBase", message: str) -> str:
    """What the chat template makes of a user's message, up to where the answer begins."""
    return in_template(processing_class, [{"role": "user", "content": message}], answer=True)


def cut_message(
    processing_class: "PreTrainedTokenizerBase", message: str, max_tokens: int | None, truncation: Truncation
) -> str:
    """The part of a message that has at most `max_tokens` tokens, without a BOS; all of it for None."""
    if max_tokens is None:
        return message
    ids = token_ids(processing_class, message)
    if len(ids) <= max_tokens:
        return message
    kept = ids[:max_tokens] if truncation == "first" else ids[-max_tokens:]
    return str(processing_class.decode(kept, clean_up_tokenization_spaces=False))


def _cut(ids: list[int], limit: int | None, truncation: Truncation, bos: int | None) -> list[int]:
    if limit is None or len(ids) <= limit:
        return ids
    start = 1 if ids[0] == bos else 0
    room = max(limit - start, 1)
    return ids[:start] + (ids[-room:] if truncation == "last" else ids[start : start + room])
