"""Which token ids does a text become, alone or after another, and what stays of one that is too long? Which text do
ids become that follow others?

The ids of a prompt and of what follows are those of the whole text, wherever the tokenizer does not merge across the
boundary. Neither part may be tokenised, or decoded, as if it stood alone: many tokenizers put a space before a text
that starts a sequence (Llama 2's, with SentencePiece's dummy prefix) and take one away when they decode.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from efface.errors import UserError
from efface.files.jsonl import unreadable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Truncation = Literal["last", "first"]
"""Which end of a prompt that is cut stays."""
ANCHORS = ("\n", "a", ".", "0")
"""What a continuation is put behind where the text before it is not known, or is merged with it. Several, since the
first characters of a continuation may merge with some of them ("\\n" with "\\n")."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What bytes that are no character are decoded to."""
NEARBY = 16
"""Tokens of the context that are decoded with a continuation: more than any character or space stretches over."""


def token_ids(processing_class: "PreTrainedTokenizerBase", text: str, *, special: bool = False) -> list[int]:
    """Ids of a text; with `special`, those that the tokenizer adds are among them.

    Raises:
        UserError: for what is no text to a tokenizer: half of a character, such as half an emoji.
    """
    try:
        return list(processing_class(text, add_special_tokens=special, verbose=False)["input_ids"])
    except (TypeError, UnicodeEncodeError) as error:
        problem = unreadable(text)
        if problem is None:
            raise
        raise UserError(f"the text {problem}. Repair the text.") from error


def tokens_of(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Ids of a text that starts a sequence: with as many BOS as the tokenizer itself adds, without a closing EOS.

    A text that begins with a BOS of its own gets no second one.
    """
    ids = token_ids(tokenizer, text, special=True)
    if ids and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        ids = ids[:-1]
    if tokenizer.bos_token and text.startswith(str(tokenizer.bos_token)) and ids[:1] == [tokenizer.bos_token_id]:
        bare = token_ids(tokenizer, text)
        if ids[1:] == bare:
            return bare
    return ids


def bos_prefix(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """What the tokenizer itself puts before a text."""
    bare = token_ids(tokenizer, "a")
    whole = tokens_of(tokenizer, "a")
    return whole[: len(whole) - len(bare)]


def encode_prompt(processing_class: "PreTrainedTokenizerBase", text: str, *, template: bool = False) -> list[int]:
    """Ids of a prompt; never empty, since something must predict the first token of the continuation.

    Args:
        template: the text is that of a chat template, which writes its own BOS.
    """
    ids = _starting(processing_class, text, template)
    if not ids:
        start = (
            processing_class.bos_token_id
            if processing_class.bos_token_id is not None
            else processing_class.eos_token_id
        )
        if start is None:
            raise UserError("the prompt has no tokens and the tokenizer no BOS or EOS to stand in. Give a prompt.")
        ids = [start]
    return ids


def cut_ids(
    ids: list[int], limit: int | None, bos: int | None, *, keep: Truncation = "last", least: int = 0
) -> list[int]:
    """Those of a prompt's ids that stay within `limit` (None: all), its BOS in any case.

    Args:
        bos: the tokenizer's.
        least: tokens beside the BOS that stay even where there is no room for them.
    """
    if limit is None or len(ids) <= limit:
        return ids
    start = 1 if ids[0] == bos else 0
    room = max(limit - start, least)
    return ids[:start] + (ids[len(ids) - room :] if keep == "last" else ids[start : start + room])


def cut_message(
    processing_class: "PreTrainedTokenizerBase", message: str, max_tokens: int | None, truncation: Truncation
) -> str:
    """The part of a message that has at most `max_tokens` tokens, without a BOS; all of it for None."""
    if max_tokens is None:
        return message
    ids = token_ids(processing_class, message)
    if len(ids) <= max_tokens:
        return message
    kept = cut_ids(ids, max_tokens, None, keep=truncation)
    return str(processing_class.decode(kept, clean_up_tokenization_spaces=False))


def encode_continuation(
    processing_class: "PreTrainedTokenizerBase", text: str, before: str | None = None, *, template: bool = False
) -> list[int]:
    """Ids of a text that follows another, without special tokens and without an invented leading space.

    Args:
        before: the prompt, as `encode_prompt` gets it. The ids are then those that stand behind the prompt's in the
            whole text; where the tokenizer merges across the boundary, those with which both decode to the whole text.
            None: whatever may stand there.
        template: of `before`.
    """
    return _following(processing_class, text, before, template)[0]


def continuation_offsets(
    processing_class: "PreTrainedTokenizerBase", text: str, before: str | None = None
) -> list[tuple[int, int]]:
    """Where in `text` each token of `encode_continuation` stands, as [start, end) of characters; a fast tokenizer."""
    ids, lead, special = _following(processing_class, text, before, False)
    encoded = processing_class(
        lead + text, add_special_tokens=special, return_offsets_mapping=True, return_special_tokens_mask=True
    )
    own = [
        offsets
        for offsets, added in zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
        if not (special and added)
    ]
    start = len(lead)
    return [(max(left - start, 0), max(right - start, 0)) for left, right in own[len(own) - len(ids) :]]


def decode_continuation(
    processing_class: "PreTrainedTokenizerBase", context_ids: Sequence[int], ids: Sequence[int]
) -> str:
    """The text of `ids` as it stands behind `context_ids`, without special tokens."""
    ids = list(ids)
    for context in (list(context_ids[-NEARBY:]), list(context_ids)):
        before, whole = _decoded(processing_class, context), _decoded(processing_class, context + ids)
        # Special tokens alone tell nothing of what stands before; and what begins within a character may be no text to
        # its end, for some decoders give up a whole run of bytes.
        if before and REPLACEMENT not in before:
            break
    if not whole.startswith(before):  # a character whose bytes are parted, punctuation that is joined to a word
        before = os.path.commonprefix([before, whole])
    return whole[len(before) :]


def _decoded(processing_class: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    return str(processing_class.decode(ids, skip_special_tokens=True))


def _starting(processing_class: "PreTrainedTokenizerBase", text: str, template: bool) -> list[int]:
    return token_ids(processing_class, text) if template else tokens_of(processing_class, text)


def _following(
    processing_class: "PreTrainedTokenizerBase", text: str, before: str | None, template: bool
) -> tuple[list[int], str, bool]:
    """The ids of `text` behind `before`; with what it was tokenised behind, and whether with special tokens."""
    anchors: Sequence[str] = ANCHORS
    own: list[int] = []
    wanted = None
    if before is not None:
        own, whole = (_starting(processing_class, each, template) for each in (before, before + text))
        if whole[: len(own)] == own:
            return whole[len(own) :], before, not template
        # Merged across the boundary: the prompt keeps its ids, and what follows is what completes the text.
        anchors = [*ANCHORS, *(before[-n:] for n in range(1, min(len(before), 4) + 1))]
        wanted = _exactly(processing_class, whole)
    found: list[tuple[list[int], str, bool]] = []
    for anchor in anchors:
        lead, anchored = token_ids(processing_class, anchor), token_ids(processing_class, anchor + text)
        if anchored[: len(lead)] == lead:
            found.append((anchored[len(lead) :], anchor, False))
            if wanted is None:
                break
    found.append((token_ids(processing_class, text), "", False))
    if wanted is not None:
        for candidate in found:
            if _exactly(processing_class, own + candidate[0]) == wanted:
                return candidate
    return found[0]


def _exactly(processing_class: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    return str(processing_class.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
