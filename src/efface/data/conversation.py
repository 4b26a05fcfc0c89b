"""What does a chat template make of a conversation, and which part of one fits into a number of tokens?

A conversation that is too long loses text, never anything that the template writes: neither markers of roles nor the
beginning of the answer. First go its oldest turns, up to a user's; then the beginning of what is left; then the end of
the system's turn.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from efface.data.preferences import Turn
from efface.data.tokens import decode_continuation, token_ids
from efface.errors import UserError, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM = ("system", "developer")


def in_template(
    processing_class: "PreTrainedTokenizerBase",
    turns: list[Turn],
    *,
    answer: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """The text of a conversation; with `answer`, up to where the model's answer begins.

    Args:
        settings: what else the template gets, such as `tools`.

    Raises:
        UserError: if the template refuses the conversation, or is broken.
    """
    try:
        text = processing_class.apply_chat_template(
            turns, add_generation_prompt=answer, tokenize=False, **(settings or {})
        )
    except Exception as error:  # a template is a program, and raises what it likes
        raise UserError(
            f"the chat template does not take the conversation ({reason_of(error)}). Change its turns (a system "
            "turn, say, is not for every model), or give plain text."
        ) from error
    return str(text)


def as_message(processing_class: "PreTrainedTokenizerBase", message: str) -> str:
    """What the chat template makes of a user's message, up to where the answer begins; raises as `in_template`."""
    return in_template(processing_class, [{"role": "user", "content": message}], answer=True)


def check_template(processing_class: "PreTrainedTokenizerBase", what: str, hint: str) -> None:
    """Refuse a tokenizer without chat template.

    Args:
        what: needs one, for the error: "the pairs are conversations".
        hint: what to do about it.
    """
    if not processing_class.chat_template:
        raise UserError(f"{what} but the tokenizer has no chat template. {hint}")


def fitting(
    processing_class: "PreTrainedTokenizerBase",
    turns: list[Turn],
    limit: int,
    settings: Mapping[str, Any] | None = None,
) -> tuple[list[Turn], str, bool]:
    """The turns that fit into `limit` tokens with what the template writes, their text, and whether they were cut.

    Raises:
        UserError: if the template refuses them, or alone takes more than `limit` tokens.
    """
    written = partial(in_template, processing_class, answer=True, settings=settings)

    def excess(some: list[Turn]) -> int:
        return len(token_ids(processing_class, written(some))) - limit

    text = written(turns)
    if len(token_ids(processing_class, text)) <= limit:
        return turns, text, False
    first = next((i for i, turn in enumerate(turns) if turn["role"] not in SYSTEM), len(turns))
    while excess(turns) > 0:
        later = next((i for i in range(first + 1, len(turns)) if turns[i]["role"] == "user"), None)
        if later is None:
            break
        turns = turns[:first] + turns[later:]
    for i in range(first, len(turns)):
        last = i == len(turns) - 1
        turns = _shortened(processing_class, turns, i, excess, beginning=True, least=int(last))
    for i in reversed(range(first)):
        turns = _shortened(processing_class, turns, i, excess, beginning=False, least=0)
    too_many = excess(turns)
    if too_many > 0:
        raise UserError(
            f"the chat template alone takes {too_many + limit} tokens, and the prompt may have {limit}. "
            "Raise max_prompt_length."
        )
    return turns, written(turns), True


def _shortened(
    processing_class: "PreTrainedTokenizerBase",
    turns: list[Turn],
    number: int,
    excess: Callable[[list[Turn]], int],
    *,
    beginning: bool,
    least: int,
) -> list[Turn]:
    """The turns, of which that `number` has lost its beginning (or its end) until nothing is in excess.

    Args:
        least: tokens of it that stay in any case.
    """
    over = excess(turns)
    if over <= 0:
        return turns
    ids = token_ids(processing_class, turns[number]["content"])
    room = len(ids)
    while over > 0 and room > least:
        room = max(room - over, least)
        if beginning:
            kept = decode_continuation(processing_class, ids[: len(ids) - room], ids[len(ids) - room :])
            kept = kept.lstrip("\N{REPLACEMENT CHARACTER}")  # of a character that is cut in two
        else:
            kept = decode_continuation(processing_class, [], ids[:room]).rstrip("\N{REPLACEMENT CHARACTER}")
        turns = [*turns[:number], turns[number] | {"content": kept}, *turns[number + 1 :]]
        over = excess(turns)
    return turns
