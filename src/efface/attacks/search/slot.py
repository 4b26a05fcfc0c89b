"""Where do optimised tokens stand? In a slot after (suffix) or before (prefix) a prompt; a continuation must follow.

The sequence is  before | slot | after | target,  of which `before` holds the BOS. What is attacked in the end is a
text, so a slot also knows the texts around it: tokens count only if the whole prompt tokenises to them (`candidates`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from efface.attacks.altered import altered_to_fit, prompts_as_read
from efface.attacks.draw import draw
from efface.attacks.target import Target
from efface.data.conversation import check_template, in_template
from efface.data.pair_tokens import tokenize_pair
from efface.data.tokens import bos_prefix, encode_continuation, token_ids, tokens_of
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.generation.decoding import Decoding
from efface.model.padding import max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACES = SUFFIX, PREFIX = ("suffix", "prefix")
MARK = "\N{INVISIBLE SEPARATOR}slot\N{INVISIBLE SEPARATOR}"  # stands for the slot while a chat template is written


@dataclass(frozen=True)
class Slot:
    """One prompt with a gap in it, and the continuation that is wanted."""

    texts: tuple[str, str]
    """Before and after the slot, as they are tokenised."""
    before: list[int]
    """Token ids, with the BOS if there is one; may be empty."""
    after: list[int]
    """Token ids between the slot and the target."""
    target: list[int]
    """Token ids of the continuation."""
    template: bool = False
    """The texts are those of a chat template, which writes its own BOS."""
    trimmed: str = ""
    """PREFIX or SUFFIX, where the slot is at an edge of a message whose white space the template takes away, as those
    of Llama 3 and Gemma do."""

    def keeps(self, text: str) -> bool:
        """Whether `text` in the slot reaches the model as it is."""
        edge = {PREFIX: text[:1], SUFFIX: text[-1:], "": ""}[self.trimmed]
        return not edge.isspace()

    def prompt(self, ids: Sequence[int]) -> list[int]:
        """The whole prompt with `ids` in the slot."""
        return [*self.before, *ids, *self.after]


def put(prompt: str, text: str, place: str) -> str:
    """The prompt with the text of a slot; white space at the seam belongs to the slot."""
    return prompt.rstrip() + text if place == "suffix" else f"{text} {prompt.lstrip()}"


def slot_in(
    row: Row, processing_class: "PreTrainedTokenizerBase", place: str, *, target_tokens: int = 16, chat: bool = False
) -> Slot:
    """A slot in the prompt of a preference pair; its rejected continuation is the target.

    Args:
        place: one of PLACES.
        target_tokens: a longer target loses its end.
        chat: a plain prompt is the user's message, and the target begins the answer. (For a conversation it always
            is; the slot then is in its last turn.)

    Raises:
        UserError: for a conversation or `chat` without chat template, or a target without tokens.
    """
    prompt, rejected = row["prompt"], row["rejected"]
    gap = slot_before([], prompt, processing_class, place, chat=chat)
    if isinstance(prompt, str):
        # What is in a slot at the end of the prompt is not known yet, so neither is what the target stands behind.
        before = "".join(gap.texts) if gap.texts[1] else None
        target = encode_continuation(
            processing_class, rejected.lstrip() if chat else rejected, before, template=gap.template
        )
    else:
        target = tokenize_pair(row, processing_class).rejected_ids
    if not target:
        raise UserError(f"rejected has no tokens under this tokenizer: {rejected!r}.")
    return replace(gap, target=target[:target_tokens])


def slot_before(
    target: list[int],
    prompt: str | list[dict[str, str]],
    processing_class: "PreTrainedTokenizerBase",
    place: str,
    *,
    chat: bool = False,
) -> Slot:
    """A slot in `prompt`, whose target is given as token ids; arguments and errors as those of `slot_in`."""
    template = chat or not isinstance(prompt, str)
    if template:
        check_template(processing_class, "the prompts are messages,", "Take an instruct model, or plain text.")
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
    content = turns[-1]["content"]
    turns[-1]["content"], trimmed = put(content, MARK, place), ""
    if template:
        whole = in_template(processing_class, turns, answer=True)
        spaced = MARK + " " if place == SUFFIX else " " + MARK
        turns[-1]["content"] = put(content, spaced, place)
        if in_template(processing_class, turns, answer=True) != whole.replace(MARK, spaced):
            trimmed = place
    else:
        whole = turns[-1]["content"]
    first, last = whole.split(MARK)
    if template:
        before = token_ids(processing_class, first)
    else:
        before = tokens_of(processing_class, first) if first else bos_prefix(processing_class)
    after = encode_continuation(processing_class, last) if last else []
    return Slot((first, last), before, after, target, template, trimmed)


def universal(target: Target, k: int, place: str, *, length: int, target_tokens: int = 16) -> list[Slot]:
    """A slot in each of `k` drawn pairs of the target: one text is to work in all.

    Args:
        length: tokens in the slot.

    Raises:
        UserError: if there are fewer pairs, or one with its slot and target does not fit into the model's positions.
    """
    tokenizer, chat = target.processing_class, target.decoding.chat
    rows = draw(target.rows, k, target.seed)
    slots = [slot_in(row, tokenizer, place, target_tokens=target_tokens, chat=chat) for row in rows]
    check_slots_fit(target, slots, length)
    return slots


def has_room(target: Target, prompt: str, place: str, tokens: int) -> bool:
    """Whether the model has positions for the prompt and so many tokens more, in a slot and after it."""
    limit = max_positions(target.model)
    if limit is None:
        return True
    slot = slot_before([], prompt, target.processing_class, place, chat=target.decoding.chat)
    return len(slot.before + slot.after) + tokens <= limit


def check_slots_fit(target: Target, slots: Sequence[Slot], length: int) -> None:
    """Raise UserError if a slot of `length` tokens with what is around it does not fit into the model's positions."""
    limit = max_positions(target.model)
    needed = max(len(slot.before + slot.after + slot.target) for slot in slots) + length
    if limit is not None and needed > limit:
        raise UserError(
            f"the longest prompt with {length} tokens in its slot and its target has {needed} tokens, more than the "
            f"model's {limit} positions. Lower length or target_tokens, or give shorter rows."
        )


def altered(target: Target, text: str, place: str) -> tuple[list[str], Decoding]:
    """The target's prompts with `text` in the slot, and how to decode after them: whole, as they are cut before."""
    prompts = altered_to_fit(target, prompts_as_read(target), lambda _, prompt: put(prompt, text, place))
    return prompts, replace(target.decoding, max_prompt_tokens=None)
