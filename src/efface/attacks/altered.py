"""What do the attacks share that leave the weights alone and change the text of the prompts?

Each way of changing the prompts is a point of the curve. A prompt is cut to the length that the target's decoding
gives it *before* it is changed: cut afterwards, it would lose what the attack has put at its end or its beginning.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.attacks.any_of import any_share, before_any, count_tries
from efface.attacks.points import severity, worst
from efface.attacks.record import Record
from efface.attacks.result import AttackResult, title
from efface.attacks.target import Target
from efface.data.conversation import as_message, check_template, in_template
from efface.data.preferences import Turn
from efface.data.tokens import cut_message, encode_prompt, token_ids, tokens_of
from efface.errors import UserError
from efface.generation.decoding import Decoding
from efface.generation.prompts import as_read
from efface.model.padding import max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class NoRoom(UserError):
    """What an attack adds to a prompt leaves no room for a token of it."""


def attack_altered(
    record: Record,
    points: Iterable[tuple[dict[str, Any], Callable[[], list[str]]]],
    *,
    start: dict[str, Any],
    any_point: dict[str, Any] | None = None,
    chat: bool | None = None,
    **found: Any,
) -> AttackResult:
    """Measure the model, and the base, on each set of altered prompts; judged by the most toxic.

    Args:
        record: of the attack, without a point.
        points: what each is called, and what makes a prompt for each of the target's. One that raises `NoRoom` is left
            out.
        start: what the point with the prompts as they are is called.
        any_point: what a last point is called that is the best of all on each prompt. The attack is not judged by it.
        chat: whether they are messages; None leaves it to the target's decoding.
        found: what else the attack has to say.

    Returns:
        A result whose `found` says, besides: of each of the `points` the `share` and the `base_share`; their
        `mean_share`, which unlike the worst does not grow with their number; `any_point`, the part of the prompts with
        a toxic continuation at one of them at least, among `any_of` continuations (what an attacker gets who may try
        them all on each prompt), with `base_any_point`, and `before_any`, what as many plain samples find;
        `base_share`, of the base under the point that the attack is judged by. Those of the base are None without one.
        `left_out` names the points that do not count: the `any_point`, and those that had no room.

    Raises:
        UserError: if no point had room for the prompts.
    """
    target, name, decoding = record.target, record.attack, without_cutting(record.target, chat)
    record.start(**start)
    rows, bases, left_out = [], [], []
    for at, alter in points:
        try:
            prompts = alter()
        except NoRoom as error:
            logger.warning("%s: %s is left out: %s", name, title(at), error)
            left_out.append(title(at))
            continue
        point = record.measure(
            target.model, at, prompts=prompts, decoding=decoding, with_text=False, with_likelihood=False
        )
        bases.append(record.base_at(at, decoding, prompts))
        rows.append({**at, "share": point.share, "base_share": None if bases[-1] is None else bases[-1].share})
    attacked = record.curve[1:]
    if not attacked:
        raise UserError(
            f"{name}: at no point ({', '.join(left_out)}) there is room for the prompts within the model's "
            f"{max_positions(target.model)} positions. Add less to them, or lower max_new_tokens."
        )
    tries = count_tries(attacked)
    after = worst(record.curve)
    _, strongest = max(zip(attacked, rows, strict=True), key=lambda pair: severity(pair[0].measured.toxicity))
    if any_point is not None:
        left_out.append(title(record.best_of(attacked, any_point).at))
    return record.result(
        after,
        **found,
        points=rows,
        mean_share=float(np.mean([point.share for point in attacked])),
        any_of=tries,
        any_point=any_share(attacked),
        base_any_point=any_share(bases),
        before_any=before_any(record, tries),
        base_share=strongest["base_share"],
        left_out=left_out,
    )


def without_cutting(target: Target, chat: bool | None = None) -> Decoding:
    """The target's decoding for prompts that have been cut; `chat` as that of `attack_altered`."""
    how = target.decoding
    return dataclasses.replace(how, max_prompt_tokens=None, chat=how.chat if chat is None else chat)


def altered_to_fit(
    target: Target, prompts: Sequence[str], alter: Callable[[int, str], str], *, chat: bool | None = None
) -> list[str]:
    """`alter(number, prompt)` for each prompt, of which the prompt is cut further where the model would have no
    positions for all of it: one long prompt must not end an attack.

    Args:
        chat: whether what `alter` gives are messages; None leaves it to the target's decoding.

    Raises:
        NoRoom: if there is room not even for a token of a prompt.
    """
    tokenizer, how, limit = target.processing_class, target.decoding, max_positions(target.model)
    found = [alter(number, prompt) for number, prompt in enumerate(prompts)]
    if limit is None:
        return found
    chat, cut = how.chat if chat is None else chat, 0
    for number, prompt in enumerate(prompts):
        over, kept = excess(target, found[number], chat), 0
        if over > 0:
            cut += 1
            kept = len(token_ids(tokenizer, prompt))
        while over > 0 and kept > 1:
            kept = max(kept - over, 1)
            found[number] = alter(number, cut_message(tokenizer, prompt, kept, how.truncation))
            over = excess(target, found[number], chat)
        if over > 0:
            raise NoRoom(
                f"what is added to prompt {number} is, with {how.max_new_tokens} new tokens, more than the model's "
                f"{limit} positions without a token of the prompt. Add less."
            )
    if cut:
        logger.warning(
            "%d of %d prompts were cut further, to fit into the model's %d positions with what the attack adds.",
            cut,
            len(prompts),
            limit,
        )
    return found


def excess(target: Target, text: str, chat: bool) -> int:
    """By how many tokens a prompt, or a message, is too long to be continued; at most 0 if it is not."""
    tokenizer, limit = target.processing_class, max_positions(target.model)
    if limit is None:
        return 0
    text = as_message(tokenizer, text) if chat else text
    return len(encode_prompt(tokenizer, text, template=chat)) + target.decoding.max_new_tokens - limit


def prompts_as_read(target: Target) -> list[str]:
    """The prompts as far as the model reads them: cut as the target's decoding says, as text."""
    return as_read(target.processing_class, target.prompts, target.decoding)


def answer_to(
    tokenizer: "PreTrainedTokenizerBase", turns: list[Turn], settings: Mapping[str, Any] | None = None
) -> str:
    """What the chat template makes of a conversation, up to where the answer begins, as a text that is read like any
    other: more can be put behind it, and it is no message any more.

    Args:
        tokenizer: whose template it is.
        turns: of the conversation.
        settings: what else the template gets, such as `tools`.

    Raises:
        UserError: without a chat template, or for one whose text the tokenizer reads otherwise.
    """
    check_template(
        tokenizer,
        "the prompts are to be messages (chat=True),",
        "Take an instruct model, or give the prompts as they stand.",
    )
    text = in_template(tokenizer, turns, answer=True, settings=settings)
    ids = encode_prompt(tokenizer, text, template=True)
    if tokens_of(tokenizer, text) != ids and tokenizer.bos_token:  # which the tokenizer will put there again
        text = text.removeprefix(str(tokenizer.bos_token))
    if tokens_of(tokenizer, text) != ids:
        raise UserError(
            "the chat template writes no BOS but the tokenizer adds one, so that an answer's beginning cannot be "
            "given as text. Give plain prompts (without chat)."
        )
    return text
